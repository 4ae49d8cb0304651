"""The same faults without modpo: what transformers, TRL, PEFT and datasets do, beside what modpo does.

Run by `make stack`. Each test does something small and real with the installed versions, says what happened, and
checks modpo's side. Of the stack nothing is asserted: what no longer happens is said as it is now found.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from . import damage, surroundings
from .experiment import rows
from .harness import House
from .table import write_between

BEGIN, END = "<!-- stack: begin -->", "<!-- stack: end -->"
VERSIONS = ("transformers", "trl", "peft", "datasets")

# A DPOTrainer on the experiment's rows: four steps, a checkpoint after each. argv: model, folder, what is done to it.
TRAIN = """
import os, signal, sys
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback, TrainerState
from trl import DPOConfig, DPOTrainer

model, folder, rows, what = sys.argv[1:]

class TurnNaN(TrainerCallback):
    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == 2:
            next(p for n, p in model.named_parameters() if "lora_B.default" in n).data.fill_(float("nan"))

if what == "killed":
    save = TrainerState.save_to_json
    def save_or_die(self, path):
        if self.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, path)
    TrainerState.save_to_json = save_or_die

trainer = DPOTrainer(
    model,
    args=DPOConfig(
        output_dir=folder, max_steps=4, save_strategy="steps", save_steps=1, per_device_train_batch_size=2,
        learning_rate=1e-2, logging_steps=1, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
        max_length=64,
    ),
    train_dataset=load_dataset("json", data_files=rows, split="train", cache_dir=folder + "-data"),
    processing_class=AutoTokenizer.from_pretrained(model),
    peft_config=LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"),
    callbacks=[TurnNaN()] if what == "nan" else None,
)
trainer.train(resume_from_checkpoint=what == "resumed")
trainer.save_model(os.path.join(folder, "final"))
print("LOSSES", [log["loss"] for log in trainer.state.log_history if "loss" in log])
"""


@dataclass
class Comparison:
    """Lines of the table: what was done, what the stack did, what modpo did."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, fault: str, stack: str, ours: str) -> None:
        self.lines.append((fault, stack, ours))
        print(f"\n{fault}\n  the stack: {stack}\n  modpo:     {ours}", flush=True)

    def __str__(self) -> str:
        used = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
        head = ["| what was done | the stack | modpo |", "| --- | --- | --- |"]
        return "\n".join([f"With {used}:", "", *head, *(f"| {' | '.join(line)} |" for line in self.lines)])


def _last_line(errors: str) -> str:
    """What went wrong, without the path, which is of this run only."""
    return errors.strip().splitlines()[-1].partition(": '/")[0][:120]


@pytest.fixture(scope="module")
def comparison() -> Iterator[Comparison]:
    made = Comparison()
    yield made
    print(f"\n{made}")
    if os.environ.get("MODPO_FAULT_TABLE"):
        write_between(BEGIN, END, str(made))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stack") / "undisturbed"
    done = train(tiny_model, folder, data, "undisturbed")
    assert done.returncode == 0, done.stderr
    return folder


def train(model: Path, folder: Path, data: Path, what: str) -> subprocess.CompletedProcess[str]:
    """Train with TRL in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRAIN, str(model), str(folder), str(data), what]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def how_it_ended(done: subprocess.CompletedProcess[str], folder: Path, undisturbed: Path) -> str:
    """In words: the last line of its error, or how far its weights are from those of the undisturbed run."""
    if done.returncode:
        return f"fails: `{_last_line(done.stderr)}`"
    off = relative_difference(folder / "final", undisturbed / "final")
    return "finishes with the same weights" if off == 0 else f"finishes, weights {off:.1%} off"


def relative_difference(one: Path, other: Path) -> float:
    """|a - b| / |b| over all of an adapter's tensors."""
    from safetensors.torch import load_file

    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return float(sum((a[n] - b[n]).square().sum() for n in b) / sum(t.square().sum() for t in b.values())) ** 0.5


def test_killed_in_the_middle_of_a_save(
    house: House, comparison: Comparison, tiny_model: Path, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    assert train(tiny_model, folder, data, "killed").returncode == -9
    there = sorted(path.name for path in folder.iterdir())
    stack = how_it_ended(train(tiny_model, folder, data, "resumed"), folder, undisturbed)
    ours = house.strike(house.site("folder.filled", "checkpoint-"), "kill")
    assert ours.wrong == []
    comparison.add(
        "killed in the middle of a checkpoint save, then resumed",
        f"{stack} ({', '.join(there)} are there)",
        "goes on from the newest checkpoint that is whole, and ends with the same bits",
    )


def test_optimizer_deleted(
    house: House, comparison: Comparison, tiny_model: Path, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed, tmp_path / "deleted")
    for later in ("checkpoint-3", "checkpoint-4", "final"):
        shutil.rmtree(folder / later)
    (folder / "checkpoint-2" / "optimizer.pt").unlink()
    stack = how_it_ended(train(tiny_model, folder, data, "resumed"), folder, undisturbed)
    case = house.new_case()
    site = [site for site in house.whole.sites if site.point == "step.done"][2]
    assert house.server.run(case, fault=site.fault("kill")).code == -9
    optimizer = next(p for p in sorted(case.rglob("optimizer.*"), reverse=True))
    assert damage.damaged(house, case, optimizer, damage.delete).wrong == []
    comparison.add(
        "`optimizer.pt` deleted, then resumed",
        stack,
        "says that the checkpoint does not verify, takes the one before, and ends with the same bits",
    )


def test_an_adapter_that_turns_nan(
    house: House, comparison: Comparison, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "nan"
    done = train(tiny_model, folder, data, "nan")
    if done.returncode:
        stack = f"fails: `{_last_line(done.stderr)}`"
    else:
        saved = load_file(folder / "final" / "adapter_model.safetensors")
        nan = sum(not tensor.isfinite().all() for tensor in saved.values())
        losses = done.stdout.partition("LOSSES ")[2].strip()
        stack = f"exits 0, logs losses {losses}, saves {nan} of {len(saved)} tensors with NaN"
    assert surroundings.nan_loss(house, 0, 2).wrong == []
    comparison.add("the adapter turned NaN after two of four steps", stack, "stops at the step, records it, exits 5")


def test_rows_edited_with_the_same_time(comparison: Comparison, data: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    from modpo.data.sources import open_rows

    path = tmp_path / "rows.jsonl"
    path.write_text(data.read_text())
    status, cache = path.stat(), str(tmp_path / "cache")
    seen = [(load_dataset("json", data_files=str(path), split="train", cache_dir=cache)["prompt"][0],)]
    fingerprints = [open_rows(str(path)).fingerprint]
    path.write_text(path.read_text().replace("0: the sun?", "0: the SUN?"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    seen.append((load_dataset("json", data_files=str(path), split="train", cache_dir=cache)["prompt"][0],))
    rows_now = open_rows(str(path))
    fingerprints.append(rows_now.fingerprint)
    assert fingerprints[0] != fingerprints[1]
    assert "SUN" in rows_now[0]["prompt"]
    stack = "returns the old rows" if seen[0] == seen[1] else "returns the new rows"
    comparison.add("a JSONL file edited, with the same size and time of change", stack, "keyed by content: scores anew")


def test_a_flipped_byte_in_a_cache(house: House, comparison: Comparison, tmp_path: Path) -> None:
    count, rng = 40, Random(0)
    silent, said = _flip_map_cache(tmp_path, count, rng)
    shards = [p for p in damage.published_files(house.undisturbed) if damage.kind(p) == "shard"]
    found = sum(not outcome.wrong for outcome in damage.flips(house.undisturbed, shards, count))
    assert found == count
    stack = f"{silent} wrong without a word, {said} with an error, {count - silent - said} without effect"
    comparison.add(f"one byte flipped in a `datasets` map cache, {count} times", stack, f"{found} of {count} found")


def _flip_map_cache(folder: Path, count: int, rng: Random) -> tuple[int, int]:
    """How many flips in the file of a `map` change what is read silently, and how many raise."""
    from datasets import Dataset

    file = folder / "map.arrow"
    source = Dataset.from_dict({"x": list(range(2000))})
    expected = source.map(_numbers, cache_file_name=str(file)).to_dict()
    whole, silent, said = file.read_bytes(), 0, 0
    for _ in range(count):
        place = rng.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        file.unlink()  # what is mapped into memory stays as it was
        file.write_bytes(flipped)
        try:
            read: Any = source.map(_numbers, cache_file_name=str(file)).to_dict()
        except Exception:
            said += 1
            continue
        silent += read != expected
    return silent, said


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {"ids": [row["x"] * 7 % 1000 + i for i in range(20)]}


def test_two_adapters_averaged(comparison: Comparison, tiny_model: Path, tmp_path: Path) -> None:
    errors = {kind: _average_error(tiny_model, kind) for kind in ("linear", "svd", "cat")}
    stack = ", ".join(f"`{kind}` {error:.2g}" for kind, error in errors.items())
    ours = _our_average_error(tiny_model, tmp_path)
    assert ours < 1e-5
    comparison.add(
        "two random adapters averaged by PEFT's `add_weighted_adapter`",
        f"relative error of the weight update: {stack}",
        f"ranks are concatenated: {ours:.2g}",
    )


def _two_adapters(model: Path) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config, adapter_name="one")
    policy.add_adapter("two", config)
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    return policy


def _updates(policy: Any, adapter: str) -> dict[str, Any]:
    """The weight update of each layer."""
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in policy.named_modules() if isinstance(module, LoraLayer)}
    return {name: layer.get_delta_weight(adapter).detach() for name, layer in layers.items()}


def _error(found: dict[str, Any], policy: Any) -> float:
    one, two = _updates(policy, "one"), _updates(policy, "two")
    mean = {name: (one[name] + two[name]) / 2 for name in one}
    off = sum((found[n] - mean[n]).square().sum() for n in mean)
    return float(off / sum(m.square().sum() for m in mean.values())) ** 0.5


def _average_error(model: Path, kind: str) -> float:
    policy = _two_adapters(model)
    policy.add_weighted_adapter(["one", "two"], [0.5, 0.5], "mean", combination_type=kind)
    return _error(_updates(policy, "mean"), policy)


def _our_average_error(model: Path, folder: Path) -> float:
    from modpo.models.combine import combine_adapters

    policy = _two_adapters(model)
    policy.save_pretrained(folder)
    combine_adapters({folder / "one": 0.5, folder / "two": 0.5}, folder / "mean")
    policy.load_adapter(folder / "mean", "mean")
    return _error(_updates(policy, "mean"), policy)
