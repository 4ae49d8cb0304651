"""The documents agree with the code: names, defaults, commands and examples are read out of them and tried."""

from __future__ import annotations

import dataclasses
import pkgutil
import re
import runpy
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from modpo import cli
from modpo.base import errors
from modpo.base.costs import Cost
from modpo.data.formats import FORMATS
from modpo.experiment.file import read_experiment
from modpo.experiment.objectives import Objective
from modpo.front.pareto import Hypervolume, Score
from modpo.front.schema import Estimate, Front, FrontObjective, Point, write_front
from tests.repository.documents import README, ROOT, blocks, inline_code, section, table
from tools import experiment_reference as reference

SOURCE = ROOT / "src" / "modpo"
EXPERIMENT = (ROOT / "docs" / "experiment.md").read_text("utf-8")
COMMANDS = (ROOT / "docs" / "commands.md").read_text("utf-8")
FRONT = (ROOT / "docs" / "front.md").read_text("utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS += sorted((ROOT / "recipes").rglob("*.md"))

SECTIONS = reference.sections()  # heading in docs/experiment.md -> the dataclass behind it


# --- docs/experiment.md -------------------------------------------------------------------------------------


def documented_keys(heading: str) -> dict[str, str]:
    """Key -> default, as the table under a heading has them."""
    head = "| key | default | meaning |"
    under = section(EXPERIMENT, heading)
    assert head in under
    return {cells[0].strip("`"): cells[1] for cells in table(under.partition(head)[2])}


def test_tables_of_keys_are_those_that_the_command_writes() -> None:
    """`make reference` writes them."""
    assert reference.with_tables(EXPERIMENT) == EXPERIMENT


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_documented(heading: str) -> None:
    fields = {field.name for field in dataclasses.fields(SECTIONS[heading])}
    if SECTIONS[heading] is Objective:
        fields -= {"name"}  # the key itself
    assert set(documented_keys(heading)) == fields


@pytest.mark.parametrize("heading", SECTIONS)
def test_documented_defaults_are_the_defaults(heading: str) -> None:
    for field in dataclasses.fields(SECTIONS[heading]):
        documented = documented_keys(heading).get(field.name, "required")
        if documented.startswith("`") and field.name not in reference.IN_WORDS:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            assert yaml.safe_load(documented.strip("`")) == default


def test_a_table_that_is_missing_is_told() -> None:
    with pytest.raises(ValueError, match="below the heading 'lora' there is no table of keys"):
        reference.with_tables(EXPERIMENT.replace("## lora\n", "## adapters\n"))


def test_defaults_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = documented_keys("The file itself")
    assert keys["output_dir"] == "`runs/` and the file's name"
    assert keys["cache_dir"] == "`$MODPO_CACHE`, else `~/.cache/modpo`"
    file = tmp_path / "name.yaml"
    file.write_text(blocks(EXPERIMENT, "yaml")[0])
    monkeypatch.delenv("MODPO_CACHE", raising=False)
    assert read_experiment(file).output_dir == Path("runs/name")
    assert read_experiment(file).cache_dir == Path.home() / ".cache" / "modpo"
    monkeypatch.setenv("MODPO_CACHE", "elsewhere")
    assert read_experiment(file).cache_dir == Path("elsewhere")


def test_every_layout_is_documented() -> None:
    assert {cells[0].strip("`") for cells in table(section(EXPERIMENT, "Layouts"))} == set(FORMATS)


# --- examples -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", blocks(README, "yaml") + blocks(EXPERIMENT, "yaml"))
def test_yaml_examples_are_experiments(tmp_path: Path, example: str) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(example)
    experiment = read_experiment(file)
    assert experiment.label_sets == {"helpful": "data"}
    assert list(experiment.objectives) == ["helpful", "concise"]
    assert [vector["helpful"] for vector in experiment.sweep.weights] == [0.9, 0.7, 0.5, 0.3, 0.1]


def test_training_example_runs(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands in the README, on a tiny model and a CPU."""
    (example,) = blocks(README, "python")
    assert example.count('"HuggingFaceTB/SmolLM2-135M-Instruct"') == 1
    script = tmp_path / "example.py"
    script.write_text(example.replace('"HuggingFaceTB/SmolLM2-135M-Instruct"', repr(str(tiny_model))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODPO_CACHE", str(tmp_path / "cache"))
    left = runpy.run_path(str(script))
    assert left["trainer"].state.global_step == 1
    assert (tmp_path / left["trainer"].args.output_dir / "adapter_model.safetensors").is_file()


def test_word_counts_of_the_training_example() -> None:
    """Its column holds minus the words of each response."""
    (example,) = blocks(README, "python")
    for side in ("chosen", "rejected"):
        (response,) = re.findall(rf'"{side}": \[{{"role": "assistant", "content": "(.*?)"', example)
        (number,) = re.findall(rf'"{side}_concise": (\S+),', example)
        assert float(number) == -len(response.split())


def test_front_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of docs/front.md; tests/policies/test_steering.py runs all of them, which needs policies."""
    folder = tmp_path / "runs" / "quickstart"
    folder.mkdir(parents=True)
    score, estimate = Score(0.4, 0.3, 0.5), Estimate(2.5, 0.1)
    measured: dict[str, Any] = {
        "scores": {"positive": score},
        "kl": estimate,
        "response_length": estimate,
        "cost": Cost(1.0, 10),
    }
    write_front(
        Front(
            folder=folder,
            objectives=[FrontObjective("positive")],
            reference=Point("reference", dominated=False, **measured),
            points=[Point("p", dominated=False, weights={"positive": 1.0}, adapter="points/p", **measured)],
            hypervolume=Hypervolume(1.0, 0.9, 1.1, {"positive": 0.0}),
        )
    )
    script = tmp_path / "example.py"
    script.write_text(blocks(FRONT, "python")[0])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script))
    assert capsys.readouterr().out.splitlines() == [
        "p positive 0.4 0.3 0.5",
        "p KL 2.5 on the front",
        f"p adapter {Path('runs/quickstart/points/p')}",
    ]


# --- commands -----------------------------------------------------------------------------------------------


def commands(program: str) -> Iterator[list[str]]:
    """Every call of a program in the documents, without the program's name."""
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        shell = [line for block in blocks(text, "sh") for line in block.splitlines()]
        for line in [*shell, *inline_code(text)]:
            if re.match(rf"{program} \S", line):
                yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("arguments", sorted(set(map(tuple, commands("modpo")))), ids=" ".join)
def test_commands_are_understood(arguments: tuple[str, ...]) -> None:
    """A bare name is a mention of the command; with arguments, it must be callable like that."""
    if arguments[0].startswith("-"):
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code in (0, None)
        return
    assert arguments[0] in cli.SUBCOMMANDS
    if len(arguments) > 1:
        assert cli._parser().parse_args(arguments).run


def test_every_command_is_documented() -> None:
    listed = {cells[0].strip("`").split()[1] for cells in table(section(COMMANDS, "Commands")) if "modpo" in cells[0]}
    assert listed == set(cli.SUBCOMMANDS)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.M))
    mentioned = {arguments[0] for arguments in commands("make")}
    assert {"demo", "test"} <= mentioned <= targets
    assert {"make demo", "make test"} <= {
        line.partition("#")[0].strip() for line in blocks(README, "sh")[0].splitlines()
    }
    assert {cells[0].strip("`").split()[1] for cells in table(section(COMMANDS, "Make targets"))} == targets


def test_exit_codes_are_those_of_the_errors() -> None:
    documented = re.findall(r"^\| (\d+) \|", section(COMMANDS, "Errors and exit codes"), flags=re.M)
    codes = {kind.exit_code for kind in errors.ModpoError.__subclasses__()} | {0, errors.ModpoError.exit_code}
    signals = {cli.INTERRUPTED, cli.BROKEN_PIPE, 128 + signal.SIGTERM}
    assert sorted(map(int, documented)) == sorted(codes | signals)


# --- names and files ----------------------------------------------------------------------------------------


def names_of_modpo() -> set[str]:
    said = {code for document in DOCUMENTS for code in inline_code(document.read_text("utf-8"))}
    return {code for code in said if re.fullmatch(r"modpo(\.\w+)+(:\w+)?", code)}


@pytest.mark.parametrize("name", sorted(names_of_modpo()))
def test_names_exist(name: str) -> None:
    assert pkgutil.resolve_name(name) is not None


def anchors(text: str) -> set[str]:
    return {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, flags=re.M)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text("utf-8")
    links = re.findall(r"\[[^]]*\]\((?!\w+://)([^)#\s]*)(?:#([^)\s]*))?\)", text)
    for path, anchor in links:
        target = document.parent / path if path else document
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target.read_text("utf-8"))


def test_versions_agree() -> None:
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == version
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.M)
    assert newest is not None
    assert newest[1] == version
