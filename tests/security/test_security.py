"""Nobody is let in: hostile files run nothing, write nothing outside, steer no terminal; the source asks for nothing
dangerous; secrets are not said. Positive controls show that each payload works where it is let in.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

import modpo
from modpo.base import simplex
from modpo.base.progress import Progress, say
from modpo.base.text import printable, redacted
from modpo.cli import main
from modpo.front.schema import read_front
from modpo.report import write_report
from modpo.report.page import page
from modpo.report.responses import read_responses
from tests.report.fronts import Page
from tests.security.attack import TERMINAL, Attack
from tests.security.browser import CHROMIUM, Host, payloads, rendered
from tests.security.corpus import CORPUS
from tests.security.dangers import dangers
from tests.security.runs import chatted_with_it, evaluated_with_it, run_folder
from tests.security.yard import Pickled, Yard

SOURCE = Path(modpo.__file__).parent


@pytest.fixture(scope="session")
def tiny_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA over the tiny model, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(folder)
    return folder


@pytest.fixture
def yard(tiny_model: Path, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Yard:
    made = Yard(tmp_path / "yard", tiny_model, tiny_adapter)
    monkeypatch.chdir(made.folder)
    monkeypatch.syspath_prepend(made.folder)  # as `python -m modpo` does: what lies there could be imported
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)  # as the command does when it starts
    return made


# --- the corpus ---------------------------------------------------------------------------------------------

_watched: list[str] | None = None  # what is started or called while an attack runs; None: nothing runs
STARTS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork")


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is not None and event in STARTS:
        _watched.append(f"{event} {arguments!r}")


sys.addaudithook(_watch)


@pytest.fixture
def started() -> Iterator[list[str]]:
    """Processes started and hosts called while the test runs."""
    global _watched
    _watched = []
    yield _watched
    _watched = None


def test_the_corpus_is_large_enough():
    assert len(CORPUS) >= 25


@pytest.mark.parametrize("attack", CORPUS.values(), ids=CORPUS)
def test_a_hostile_input_is_refused_or_harmless(attack: Attack, yard: Yard, capfd, started):
    command = attack.build(yard)
    before = yard.found()
    capfd.readouterr()
    started.clear()
    code = main(command)
    printed = capfd.readouterr()
    assert not yard.canary.exists()
    assert started == []
    assert yard.found() == before
    assert steering(printed.out + printed.err) == set()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert (code, attack.words in "".join(errors)) == (attack.code, True), printed.err
    assert bool(errors) == (code != 0)
    assert "Traceback" not in printed.err


def steering(text: str) -> set[str]:
    """Characters that steer a terminal or turn text round."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")} - set("\n\u200c\u200d")


def test_the_yard_itself_is_harmless(yard: Yard, capfd):
    """Without an attack everything works, so that refusals are of the attacks."""
    assert main(yard.experiment()) == 0, capfd.readouterr().err
    assert main(yard.by_adapter()) == 0, capfd.readouterr().err
    assert main(evaluated_with_it(yard)) == 0, capfd.readouterr().err


def test_a_planted_adapter_that_is_harmless_can_be_talked_to(yard: Yard, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("/quit\n"))
    assert main(chatted_with_it(yard)) == 0, capfd.readouterr().err


# --- controls: each payload works where it is let in ----------------------------------------------------------


def test_control_of_the_pickles(yard: Yard):
    pickle.loads(pickle.dumps(Pickled(yard.shell)))
    assert yard.canary.exists()


def test_control_of_the_modules(yard: Yard):
    (yard.folder / "evil_control.py").write_text(yard.python)
    importlib.import_module("evil_control")
    assert yard.canary.exists()


def test_control_of_the_yaml_tags(yard: Yard):
    yaml.unsafe_load(f"!!python/object/apply:os.system [{json.dumps(yard.shell)}]")
    assert yard.canary.exists()


def test_control_of_the_templates(yard: Yard):
    jinja2.Environment().from_string("{{ lipsum.__globals__['os'].popen('" + yard.shell + "').read() }}").render()
    assert yard.canary.exists()


def test_control_of_the_watch(yard: Yard, started):
    subprocess.run(["true"], check=True)
    os.system("true")
    assert {event.split()[0] for event in started} >= {"subprocess.Popen", "os.system"}


def test_control_of_the_code_that_comes_with_a_model(yard: Yard):
    """--trust-remote-code is what lets it in."""
    command = CORPUS["model_with_code_of_its_own"].build(yard)
    main([*command, "--trust-remote-code"])
    assert yard.canary.exists()


# --- what transformers does for us, held fast -----------------------------------------------------------------


def test_chat_templates_are_rendered_in_a_sandbox(tiny_model):
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from transformers.utils import chat_template_utils

    template = chat_template_utils._compile_jinja_template("{{ messages }}")
    assert isinstance(template.environment, ImmutableSandboxedEnvironment)


# --- the source -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_the_source_asks_for_nothing_dangerous(path: Path):
    assert dangers(path.read_text("utf-8"), path.relative_to(SOURCE).as_posix()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, dill.source as d",
        "from cloudpickle import loads",
        "from os import system",
        "from torch import load",
        "from yaml import load",
        "from importlib import import_module",
        "eval('1')",
        "exec(source)",
        "compile(a, b, c)",
        "__import__(name)",
        "os.system(x)",
        "os.popen(x)",
        "os.execv(a, b)",
        "yaml.load(x)",
        "yaml.unsafe_load_all(x)",
        "yaml.compose(x, Loader=yaml.Loader)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)",
        "auto.from_pretrained(x, trust_remote_code=True)",
        "archive.extractall(folder)",
        "importlib.import_module(name)",
        "from jinja2 import Environment",
        "jinja2.Environment(loader=x, autoescape=True, undefined=jinja2.StrictUndefined)",
        "def f():\n    class A:\n        x = [eval(y) for y in z]",
    ],
)
def test_what_is_dangerous_is_seen(source: str):
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "re.compile(x)",
        "torch.load(path, map_location='cpu', weights_only=True)",
        "yaml.safe_load(x)",
        "yaml.compose(x, Loader=yaml.SafeLoader)",
        "auto.from_pretrained(x, trust_remote_code=section.trust_remote_code)",
        "subprocess.run([a, b])",
        "safetensors.torch.load(x)",
    ],
)
def test_what_is_harmless_is_let_be(source: str):
    assert dangers(source) == []


@pytest.mark.parametrize("missing", ["", "autoescape", "undefined"])
def test_templates_are_rendered_in_one_place_and_escaped(missing: str):
    settings = {"loader": "x", "autoescape": "True", "undefined": "jinja2.StrictUndefined"}
    given = ", ".join(f"{name}={value}" for name, value in settings.items() if name != missing)
    assert bool(dangers(f"jinja2.Environment({given})", "report/page.py")) is bool(missing)


def test_only_the_user_trusts():
    """Trust is read off the command line, and off the arguments of a trainer that a script makes."""
    reads = [path for path in SOURCE.rglob("*.py") if "args.trust_remote_code" in path.read_text("utf-8")]
    places = {path.relative_to(SOURCE).as_posix() for path in reads}
    assert {place for place in places if not place.startswith("cli/")} == {"training/loading.py"}


# --- the pins ---------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


def pins(file: str) -> dict[str, str]:
    """Name to version, names as pip compares them."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / file).read_text("utf-8"), flags=re.M)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_lock_holds_the_pinned_versions():
    tested, locked = pins("constraints.txt"), pins("requirements.lock")
    assert tested
    assert {name: locked.get(name) for name in tested} == tested, "run `make lock`"


def test_the_lock_has_hashes_of_every_file():
    blocks = re.split(r"^(?=[\w.-]+==)", (ROOT / "requirements.lock").read_text("utf-8"), flags=re.M)[1:]
    assert len(blocks) == len(pins("requirements.lock"))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", block) for block in blocks)


# --- what is said -----------------------------------------------------------------------------------------------

HF, OPENAI, GITHUB = "hf_" + "aB3" * 11, "sk-proj-" + "x9_" * 9, "ghp_" + "Zz1" * 12


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"401 for {HF}.", "401 for ***."),
        (f"key={OPENAI}, {GITHUB}", "key=***, ***"),
        (f"Authorization: Bearer {'abc.' * 5}x", "Authorization: Bearer ***"),
        ("https://user:pass@host/x", "https://***@host/x"),
        ("s3cr3t-of-the-environment!", "***!"),
        ("hf_hub_download of task-oriented-dialogue-systems from hf_transfer", None),
        ("models at https://huggingface.co/a/b@main, by somebody@example.com", None),
        ("TOKENIZERS_PARALLELISM is false", None),
    ],
)
def test_secrets_are_not_said(monkeypatch, text, shown):
    monkeypatch.setenv("SOME_API_KEY", "s3cr3t-of-the-environment")
    monkeypatch.setenv("CI_TOKEN", "false")  # too short to be one
    assert redacted(text) == (text if shown is None else shown)


def test_no_error_and_no_traceback_says_a_secret(yard: Yard, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "not-a-usual-token-9")
    name = f"https://me:{HF}@host/not-a-usual-token-9"
    for debug in ([], ["--debug"]):
        assert main([*yard.experiment(model={"model_name_or_path": name}), *debug]) == 2
        printed = capsys.readouterr().err
        assert "***" in printed
        assert HF not in printed
        assert "not-a-usual-token-9" not in printed


def test_no_secret_is_written(yard: Yard, capsys, monkeypatch):
    """Neither one given to a reward nor one in the error of a point: not into the run, not into the cache."""
    from modpo.training.trainer import MODPOTrainer

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"401 for {OPENAI}")

    body = "assert key.startswith('hf_aB3'); return [float(len(c)) for c in completions]"
    (yard.folder / "keyed_reward.py").write_text(f"def score(completions, key, **_):\n    {body}\n")
    reward = {"function": "keyed_reward:score", "kwargs": {"key": HF}}
    objectives = {"good": {"pairs": "data"}, "brief": {"reward": reward}}
    command = ["sweep", *yard.experiment(objectives=objectives, evaluation={"max_new_tokens": 4, "bootstrap": 20})[1:]]
    with monkeypatch.context() as patch:
        patch.setattr(MODPOTrainer, "compute_loss", broken)
        assert main(command) == 5
    failed = next((yard.out / "failed").iterdir()).read_text("utf-8")
    assert "RuntimeError: 401 for ***" in failed
    assert main(command) == 0, capsys.readouterr().err  # it is known as the same experiment
    written = [path for place in (yard.out, yard.cache) for path in place.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert [path for path in written if HF.encode() in path.read_bytes() or OPENAI.encode() in path.read_bytes()] == []


def test_progress_says_no_secret_and_steers_nothing(capsys, monkeypatch):
    say(f"{TERMINAL}{HF}")
    with Progress(TERMINAL + HF, total=1) as progress:
        progress.note(TERMINAL)
        progress.advance()
    printed = capsys.readouterr().err
    assert steering(printed) == set()
    assert HF not in printed
    assert printed.count("\n") == 2


def test_a_live_bar_steers_nothing_and_reads_no_markup(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(f"[/red][link=x]{TERMINAL}", total=1, unit="[/b]") as progress:
        progress.note("[/i]")
        progress.advance()
    shown = terminal.getvalue()
    assert "[/red]" in shown
    assert "owned" in shown
    assert "\x1b]0;" not in shown
    assert "\u202e" not in shown


@pytest.mark.parametrize("text", [TERMINAL, "a\nb", "\ud800", "\U000e0041", "\ufeff", "\u061c"])
def test_what_does_not_show_is_spelled_out(text):
    assert steering(printable(text)) == set()
    assert "\n" not in printable(text)
    assert printable(text) == text.encode("unicode_escape").decode() or text == TERMINAL


def test_what_shows_is_left_as_it_is():
    text = "naïve «日本語» 👩\u200d💻 می\u200cخواهم \\x1b"
    assert printable(text) == text


@pytest.mark.parametrize("objective", ["../../x", "/etc/x", "a b", "..", "\x00", "\ud800", "é" * 99, "a\\b"])
def test_a_vector_has_a_contained_name_whatever_its_objectives_are_called(objective):
    names = {simplex.name({objective: value, "b": 1 - value}) for value in (0.25, 0.5)}
    assert len(names) == 2
    assert all(re.fullmatch(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}", name) for name in names)


# --- the report -------------------------------------------------------------------------------------------------


def html_of(folder: Path) -> str:
    """The report's page alone, which does not take the time that its picture takes."""
    front = read_front(folder)
    return page(front, read_responses(front), png=b"")


def test_hostile_text_is_no_element_of_the_report(tmp_path: Path):
    html = html_of(run_folder(tmp_path, "\n".join(payloads("http://127.0.0.1:9"))))
    seen = Page(html)
    own = [attributes.get("type") != "application/json" for attributes in seen.all("script")]
    assert sum(own) == html.count("'sha256-")
    assert {tag for tag, _ in seen.elements}.isdisjoint(
        {"a", "base", "embed", "form", "iframe", "link", "object", "video"}
    )
    assert [attributes["src"][:22] for attributes in seen.all("img")] == ["data:image/png;base64,"]
    assert [attributes["name"] for attributes in seen.all("meta") if "name" in attributes] == ["viewport"]
    assert len(seen.all("meta")) == 3
    names = {name for _, attributes in seen.elements for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    assert names.isdisjoint({"href", "srcdoc", "action", "formaction", "poster", "background"})


def test_a_secret_in_a_setting_is_not_in_the_report(tmp_path: Path):
    html = html_of(run_folder(tmp_path, f"my_rewards:judge (api_key='{OPENAI}')"))
    assert OPENAI not in html
    assert "my_rewards:judge (api_key=&#39;***&#39;)" in html


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


@pytest.mark.slow
@needs_chromium
def test_chromium_runs_no_script_of_the_report_but_its_own(tmp_path: Path, host: Host):
    folder = run_folder(tmp_path / "run", "\n".join(payloads(host.url)))
    write_report(folder)
    document = rendered(folder / "report.html", tmp_path / "profile")
    title = re.search(r"<title>(.*?)</title>", document, re.DOTALL)
    assert title is not None
    assert title[1].startswith("Front of 3 policies")
    assert document.count("main-svg") >= 1  # plotly did draw
    assert "&lt;script&gt;" in document
    assert host.asked == []


@pytest.mark.slow
@needs_chromium
def test_control_of_chromium(tmp_path: Path, host: Host):
    """Unescaped, and without a policy, the same text takes the page over."""
    naive = tmp_path / "page.html"
    naive.write_text("<!doctype html><title>Front</title><p>" + "".join(payloads(host.url)), "utf-8")
    assert "<title>owned</title>" in rendered(naive, tmp_path / "profile")
    assert {"/script", "/image", "/fetch", "/svg"} <= set(host.asked)


@pytest.mark.slow
@needs_chromium
def test_the_policy_holds_where_escaping_would_fail(tmp_path: Path, host: Host):
    """The second line of defence alone: the report with the text put back unescaped."""
    folder = run_folder(tmp_path / "run", "MARK")
    write_report(folder)
    report = folder / "report.html"
    parts = [part for part in payloads(host.url) if "refresh" not in part]  # no policy covers leaving
    html = report.read_text("utf-8")
    assert "MARK</td>" in html
    report.write_text(html.replace("MARK</td>", "".join(parts) + "</td>", 1), "utf-8")
    document = rendered(report, tmp_path / "profile")
    assert "owned</title>" not in document
    assert host.asked == []
