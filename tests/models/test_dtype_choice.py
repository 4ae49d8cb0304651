"""`model.dtype: auto`: measured on this machine, kept with it and with the folder that was begun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import modpo.models.dtype_choice as choice
import modpo.models.matmul_speed as matmul
from modpo.base.errors import EnvironmentFault, InputError
from modpo.base.files import write_sealed
from modpo.base.progress import say_once
from modpo.experiment.file import EXPERIMENT_FILE, read_experiment, to_yaml
from modpo.experiment.sections import Experiment, resolved
from modpo.models.dtype_choice import FILE, with_dtype
from modpo.models.matmul_speed import FOLDER, MatmulSpeed, matmul_speed

FAST_BF16, FAST_FLOAT32 = MatmulSpeed(2e11, 1e11), MatmulSpeed(5e9, 5e10)
MEASURE = "import sys; from pathlib import Path; from modpo.models.matmul_speed import matmul_speed as speed; {}"


@pytest.fixture(autouse=True)
def nothing_was_said() -> None:
    say_once.cache_clear()


@pytest.fixture
def experiment(tmp_path: Path):
    """Reads an experiment whose model section and adapters are as given."""

    def read(model: str = "", lora: str = "{r: 4}") -> Experiment:
        file = tmp_path / "experiment.yaml"
        file.write_text(
            f"data: {{path: rows.jsonl}}\nmodel: {{model_name_or_path: m{model}}}\nlora: {lora}\n"
            f"objectives: {{kind: {{pairs: data}}}}\noutput_dir: {tmp_path / 'out'}\ncache_dir: {tmp_path / 'cache'}\n"
        )
        return read_experiment(file)

    return read


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Makes the machine one on which a measurement gives the numbers that are given."""

    def become(speed: MatmulSpeed, name: str = "there") -> None:
        monkeypatch.setattr(matmul.platform, "node", lambda: name)
        monkeypatch.setattr(matmul, "_measured", lambda where: speed)

    return become


# --- the measurement ----------------------------------------------------------------------------------------


def measured_in_a_process(cache_dir: Path, **environment: str) -> MatmulSpeed:
    code = MEASURE.format("s = speed(Path(sys.argv[1])); print(s.bfloat16, s.float32)")
    settings = {name: value for name, value in os.environ.items() if name not in matmul.SETTINGS}
    command = [sys.executable, "-c", code, str(cache_dir)]
    done = subprocess.run(command, env=settings | environment, capture_output=True, text=True, check=True, timeout=120)
    return MatmulSpeed(*map(float, done.stdout.split()))


def test_without_units_for_bfloat16_float32_is_faster_and_each_instruction_set_is_kept_apart(tmp_path: Path) -> None:
    avx2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    slow = measured_in_a_process(tmp_path, **avx2)
    assert slow.faster == "float32"
    assert slow.factor("bfloat16") < 0.7
    own = measured_in_a_process(tmp_path)
    assert len(list((tmp_path / FOLDER).iterdir())) == 2
    assert (measured_in_a_process(tmp_path, **avx2), measured_in_a_process(tmp_path)) == (slow, own)


def test_what_is_kept_is_used_and_what_is_damaged_is_measured_anew(tmp_path: Path, machine) -> None:
    machine(FAST_BF16)
    assert matmul_speed(tmp_path) == FAST_BF16
    machine(FAST_FLOAT32)
    assert matmul_speed(tmp_path) == FAST_BF16
    (kept,) = (tmp_path / FOLDER).iterdir()
    for damage in (kept.read_text().replace("2", "3"), "{}", "", "\0"):
        kept.write_text(damage)
        assert matmul_speed(tmp_path) == FAST_FLOAT32
        machine(MatmulSpeed(1, 2))
        assert matmul_speed(tmp_path) == FAST_FLOAT32  # the file is whole again
        machine(FAST_FLOAT32)
    write_sealed(kept, {"flops": {"bfloat16": 3, "float32": 1}})
    assert matmul_speed(tmp_path) == MatmulSpeed(3, 1)
    machine(FAST_FLOAT32, "elsewhere")
    assert matmul_speed(tmp_path) == FAST_FLOAT32


def test_a_cache_that_cannot_be_written_keeps_nothing(tmp_path: Path, machine) -> None:
    machine(FAST_BF16)
    (tmp_path / "file").write_text("")
    assert matmul_speed(tmp_path / "file" / "cache") == FAST_BF16


def test_a_device_without_a_format_is_not_faster_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    linear = torch.nn.functional.linear

    def lacking(tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if tokens.dtype == torch.bfloat16:
            raise RuntimeError("not implemented for 'BFloat16'")
        return linear(tokens, weight)

    ones = torch.ones

    def no_tensor(*shape: int, dtype: torch.dtype, device: str) -> torch.Tensor:
        if dtype == torch.bfloat16:
            raise TypeError("BFloat16 is not supported on this device")
        return ones(*shape, dtype=dtype, device=device)

    for module, name, without in ((torch.nn.functional, "linear", lacking), (torch, "ones", no_tensor)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, without)
            found = matmul._measured.__wrapped__("cpu")
        assert (found.bfloat16, found.faster) == (0, "float32")
        assert found.factor("bfloat16") == 0
        assert found.factor("float32") == float("inf")
        assert found.compared("bfloat16") == "not there"
        assert found.compared("float32") == "the only format: bfloat16 is not there"


# --- the choice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speed", "said"),
    [
        (FAST_BF16, "model.dtype: auto is bfloat16 here (2 times as fast as float32)"),
        (FAST_FLOAT32, "model.dtype: auto is float32 here (10 times as fast as bfloat16)"),
    ],
)
def test_auto_is_the_faster_one_and_is_said_once(experiment, machine, capsys, speed: MatmulSpeed, said: str) -> None:
    machine(speed)
    asked = experiment()
    assert asked.model.dtype == "auto"
    for _ in range(2):
        assert with_dtype(asked).model.dtype == speed.faster
    assert capsys.readouterr().err.splitlines() == [said]


def test_what_was_asked_for_is_resolved_too(experiment, machine) -> None:
    machine(FAST_BF16)
    found = with_dtype(resolved(experiment()))
    assert found.model == found.asked.model == replace(experiment().model, dtype="bfloat16")


def test_a_folder_goes_on_in_what_its_experiment_names(experiment, machine, capsys) -> None:
    """Also where the file named a format when the folder was begun."""
    machine(FAST_BF16)
    folder = experiment().output_dir
    folder.mkdir()
    begun = to_yaml(experiment(", dtype: float32"))
    (folder / EXPERIMENT_FILE).write_text(begun)
    assert with_dtype(experiment()).model.dtype == "float32"
    assert f"auto is float32, as {folder} was begun (here bfloat16 is 2 times as fast" in capsys.readouterr().err
    (folder / EXPERIMENT_FILE).write_text("of another version: 1")
    assert with_dtype(experiment()).model.dtype == "bfloat16"


def test_a_folder_goes_on_as_it_was_begun(experiment, machine, capsys) -> None:
    machine(FAST_BF16, "here")
    assert with_dtype(experiment(), writes=False).model.dtype == "bfloat16"
    assert not experiment().output_dir.exists()
    with_dtype(experiment())
    machine(FAST_FLOAT32, "there")
    capsys.readouterr()
    assert with_dtype(experiment()).model.dtype == "bfloat16"
    said = "(here float32 is 10 times as fast as bfloat16; another `output_dir` chooses anew)"
    assert capsys.readouterr().err == (
        f"model.dtype: auto is bfloat16, as {experiment().output_dir} was begun {said}\n"
    )
    elsewhere = replace(experiment(), output_dir=experiment().output_dir / "other")
    assert with_dtype(elsewhere).model.dtype == "float32"


@pytest.mark.parametrize("content", ["{}", "[]", "", '{"dtype": "float8"}', '{"dtype": ["bfloat16"]}'])
def test_a_folder_that_does_not_say_what_it_was_begun_in_is_refused(experiment, machine, content: str) -> None:
    machine(FAST_BF16)
    folder = experiment().output_dir
    folder.mkdir()
    (folder / FILE).write_text(content)
    with pytest.raises(InputError, match=rf"{FILE}:dtype: .*; fix: write "):
        with_dtype(experiment())


@pytest.mark.parametrize(
    ("speed", "named", "lora", "factor"),
    [
        (FAST_BF16, "float32", "{r: 4}", "float32 is 0.5 times as fast as bfloat16"),
        (FAST_FLOAT32, "bfloat16", "{r: 4}", "bfloat16 is 0.1 times as fast as float32"),
        (FAST_FLOAT32, "bfloat16", "null", "bfloat16 is 0.1 times as fast as float32"),
        (FAST_BF16, "float32", "null", None),  # 16 bits would round small steps away
        (FAST_BF16, "bfloat16", "{r: 4}", None),
        (MatmulSpeed(12, 10), "float32", "{r: 4}", None),
    ],
)
def test_a_name_is_obeyed_and_said_to_be_slow(experiment, machine, capsys, speed, named, lora, factor) -> None:
    machine(speed)
    asked = experiment(f", dtype: {named}", lora)
    for _ in range(2):
        assert with_dtype(asked) is asked
    said = f"warning: {asked.source}:2:model.dtype: {factor} on this machine; fix: leave it out, for `auto`"
    assert capsys.readouterr().err.splitlines() == ([said] if factor else [])
    assert not asked.output_dir.exists()


def test_what_auto_became_is_not_said_to_be_named(experiment, machine, capsys) -> None:
    machine(FAST_BF16, "here")
    with_dtype(experiment(", dtype: auto"))
    machine(FAST_FLOAT32, "there")
    found = with_dtype(experiment(", dtype: auto"))
    capsys.readouterr()
    assert with_dtype(found) is found
    assert capsys.readouterr().err == ""


def test_a_number_format_that_a_cpu_cannot_train_in_is_refused(experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    half = experiment(", dtype: float16")
    monkeypatch.setattr(choice, "device", lambda: "cpu")
    with pytest.raises(EnvironmentFault, match=r"experiment.yaml:2:dtype: float16 .*; fix: use bfloat16 or float32"):
        with_dtype(half)
    monkeypatch.setattr(choice, "device", lambda: "cuda")
    assert with_dtype(half) is half


def test_a_folder_begun_in_what_a_cpu_cannot_train_in_is_refused(experiment, machine, monkeypatch) -> None:
    machine(FAST_BF16)
    folder = experiment().output_dir
    folder.mkdir()
    (folder / EXPERIMENT_FILE).write_text(to_yaml(experiment(", dtype: float16")))
    monkeypatch.setattr(choice, "device", lambda: "cuda")
    assert with_dtype(experiment()).model.dtype == "float16"
    monkeypatch.setattr(choice, "device", lambda: "cpu")
    with pytest.raises(
        EnvironmentFault, match=r"dtype: float16 .*; fix: name another `output_dir`: .*out was begun in"
    ):
        with_dtype(experiment())


def test_what_is_kept_is_readable(experiment, machine) -> None:
    machine(FAST_BF16)
    found = with_dtype(experiment())
    assert json.loads((found.output_dir / FILE).read_text()) == {"dtype": "bfloat16"}
    (kept,) = (found.cache_dir / FOLDER).iterdir()
    assert json.loads(kept.read_text())["machine"]["host"] == "there"
