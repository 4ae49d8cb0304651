"""How near each stage comes to what the processor can multiply.

    python -m benchmarks.roofline [--rounds 3] [--only STAGE ...] [--dtype bfloat16]

Stages take turns with the products of the model's own matrices, whose best rate is the peak; a stage counts with its
fastest round. Both number formats are measured, the slower one on fewer rows. Writes benchmarks/results/roofline.json:
`stages` are those in the faster format, `dtype`; `measured` holds every format of every instruction set that was tried.
A processor without bf16 units can be had by ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 before the command.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import TrainerCallback

from benchmarks.flops import Shapes, Work, packed
from benchmarks.peak import Peak, timed
from benchmarks.preference_rows import qa_rows
from benchmarks.train_side import lora, settings
from benchmarks.trl import machine
from modpo import MODPOConfig, MODPOTrainer
from modpo.base.costs import Meter
from modpo.data.groups import PromptGroups, group_rows
from modpo.data.rows import rows_from_list
from modpo.data.sources import open_rows
from modpo.evaluation.answers import Answers, Questions
from modpo.experiment.sections import EvaluationSection, ModelSection
from modpo.forward.frozen import TOKENS_PER_FORWARD, logps_by_group
from modpo.forward.packing import pack, packed_tokens, runs
from modpo.forward.policy import Policy
from modpo.models.folders import default_cache_dir
from modpo.models.matmul_speed import matmul_speed
from modpo.models.reference import ReferenceModel
from modpo.quickstart import HERE

RESULTS = Path(__file__).parent / "results" / "roofline.json"
ANSWERS, NEW_TOKENS = 4, 48  # as in the quickstart
Between = Callable[[], None]


@dataclass(frozen=True)
class Stage:
    """Something that is timed: its work, and the seconds of some rounds, `between` which the peak is measured."""

    name: str
    work: Callable[[], Work]
    seconds: Callable[[int, Between], list[float]]


class Bench:
    """One number format: a model, rows and stages.

    Args:
        prompts: of the quickstart, each with four answers. long: prompts of QA-Feedback's length.
    """

    def __init__(self, dtype: str, prompts: int, long: int, folder: Path) -> None:
        self.dtype, self.long, self.folder = dtype, long, folder
        self.reference = ReferenceModel(ModelSection("smollm2-135m-instruct", dtype=dtype), default_cache_dir())
        self.groups: PromptGroups = group_rows(
            rows_from_list(list(open_rows(str(HERE / "prompts.jsonl")))[:prompts]), format="prompts"
        )
        self.shapes = Shapes.of(self.reference.model)
        self.peak = Peak(self.shapes, getattr(torch, dtype))

    def stages(self) -> Iterator[Stage]:
        yield self._sampling()
        yield self._reading("reference log-probs", self._answered_ids)
        yield self._training("training step", self._pairs)
        yield self._training("training step, one prompt", lambda: self._pairs()[:6])
        yield self._reading("reference log-probs, long prompts", self._long_ids)
        yield self._training("training step, long prompts", lambda: qa_rows(None, self.long))
        yield self._measuring()

    # --- sampling and measuring -----------------------------------------------------------------------------------

    def _questions(self) -> Questions:
        section = EvaluationSection(max_new_tokens=NEW_TOKENS, samples_per_prompt=ANSWERS, batch_size=112)
        return Questions(self.reference, self.groups, section, max_prompt_length=256, packing=True)

    @cached_property
    def sampled(self) -> Answers:
        """Answers of the model itself, which the other stages read."""
        with Meter() as meter:
            found = self._questions().sampled(Policy(self.reference), self.reference.model, "the model")
        self.passes = meter.cost.forward_passes
        return found

    def _sampling(self) -> Stage:
        def run() -> None:
            self.__dict__.pop("sampled", None)
            self.sampled  # noqa: B018 (sampled here)

        return Stage("sampling", lambda: self._sampling_work(self.sampled), _rounds(run))

    def _sampling_work(self, answers: Answers) -> Work:
        prompts = [len(ids) for ids in self._questions().prompts_ids]
        return self.shapes.sampled(prompts, _by_prompt(answers.tokens), self.passes)

    def _measuring(self) -> Stage:
        """Answers of a policy with an adapter, and their log-probs under it and under the reference."""
        found: list[Answers] = []
        model = get_peft_model(self.reference.model, lora())
        model.save_pretrained(self.folder / "adapter")
        model.unload()

        def run() -> None:
            policy = Policy(self.reference, self.folder / "adapter")
            with policy.loaded(merged=True) as model:
                found[:] = [self._questions().sampled(policy, model, "a policy")]

        self.sampled  # noqa: B018 (its passes)

        def work() -> Work:
            """Sampling, and every answer read once by the reference: the policy's log-probs are known from sampling."""
            prompts = self._questions().prompts_ids
            of_each = zip(prompts, _by_prompt(found[0].tokens), strict=True)
            read = sum((self.shapes.answered(len(prompt), answers) for prompt, answers in of_each), start=Work())
            sampled = self._sampling_work(found[0])  # in as many passes as the model itself
            return Work(sampled.tokens, sampled.flops + read.flops, sampled.bytes + read.bytes)

        return Stage("measuring", work, _rounds(run))

    # --- log-probs --------------------------------------------------------------------------------------------------

    def _answered_ids(self) -> tuple[list[list[int]], list[list[list[int]]]]:
        prompts = self._questions().prompts_ids
        tokenizer = self.reference.tokenizer
        ids = [tokenizer(text or " ", add_special_tokens=False)["input_ids"] for text in self.sampled.texts]
        return prompts, _by_prompt(ids)

    def _long_ids(self) -> tuple[list[list[int]], list[list[list[int]]]]:
        encode = self.reference.tokenizer.encode
        groups = group_rows(rows_from_list(qa_rows(None, self.long)))
        return [encode(g.prompt) for g in groups], [[encode(text) for text in g.responses] for g in groups]

    def _reading(self, name: str, ids: Callable[[], Any]) -> Stage:
        def work() -> Work:
            prompts, responses = ids()
            sizes = [packed_tokens(p, r) for p, r in zip(prompts, responses, strict=True)]
            rows = [pack(prompts[part], responses[part]) for part in runs(sizes, TOKENS_PER_FORWARD)]
            return sum((packed(self.shapes, row, trained=False) for row in rows), start=Work())

        def run() -> None:
            for _ in logps_by_group(self.reference.model, *ids(), packing=True):
                pass

        return Stage(name, work, _rounds(run))

    # --- training ---------------------------------------------------------------------------------------------------

    def _pairs(self) -> list[dict[str, Any]]:
        """Every two answers of a prompt, in the order in which they were sampled."""
        rows, texts = [], self.sampled.texts
        for n, group in enumerate(self.groups):
            mine = [t or " " for t in texts[n * ANSWERS : (n + 1) * ANSWERS]]
            rows += [
                {"prompt": group.prompt, "chosen": _turn(mine[a]), "rejected": _turn(mine[b])}
                for a in range(ANSWERS)
                for b in range(a + 1, ANSWERS)
            ]
        return rows

    def _training(self, name: str, rows: Callable[[], list[dict[str, Any]]]) -> Stage:
        """Steps of the trainer itself, logs and optimizer with them, over all rows."""
        found: list[Work] = []

        def seconds(rounds: int, between: Between) -> list[float]:
            with self._trainer(rows(), rounds) as trainer:
                shapes = Shapes.of(trainer.model)
                parts = [part for batch in trainer.get_train_dataloader() for part in batch["parts"]]
                found[:] = [sum((packed(shapes, part["packed_row"], trained=True) for part in parts), start=Work())]
                clock = _Clock(between)
                trainer.add_callback(clock)
                trainer.train()
            return clock.seconds

        return Stage(name, lambda: found[0], seconds)

    @contextmanager
    def _trainer(self, rows: list[dict[str, Any]], steps: int) -> Iterator[MODPOTrainer]:
        shared = settings(steps, str(self.folder), self.dtype)
        prompts = len({json.dumps(row["prompt"]) for row in rows})
        args = MODPOConfig(
            weights={"preference": 1.0},
            per_device_train_batch_size=prompts,
            cache_dir=str(self.folder),
            **shared,
        )
        model, tokenizer = self.reference.model, self.reference.tokenizer
        trainer = MODPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer, peft_config=lora())
        try:
            yield trainer
        finally:
            trainer.model.unload()
            self.reference.release()  # the model read again is what it was


class _Clock(TrainerCallback):
    """Seconds of every optimizer step, and what is done between them."""

    def __init__(self, between: Between) -> None:
        self.seconds: list[float] = []
        self._between = between

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)
        self._between()


def _by_prompt(of_answers: list[Any]) -> list[list[Any]]:
    return [of_answers[i : i + ANSWERS] for i in range(0, len(of_answers), ANSWERS)]


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _rounds(run: Callable[[], None]) -> Callable[[int, Between], list[float]]:
    def seconds(rounds: int, between: Between) -> list[float]:
        found = []
        for _ in range(rounds):
            found.append(timed(run)[0])
            between()
        return found

    return seconds


def measured(bench: Bench, rounds: int, only: list[str]) -> dict[str, Any]:
    """Every stage of one number format; prints a line for each."""
    stages: dict[str, dict[str, Any]] = {}
    for stage in bench.stages():
        if only and stage.name not in only:
            continue
        bench.peak.measure()
        bench.peak.best = 0.0  # the processor's clock is another one at another time
        bench.peak.measure()
        seconds = min(stage.seconds(rounds, bench.peak.measure))
        work = stage.work()
        stages[stage.name] = {
            **asdict(work),
            "seconds": seconds,
            "flops_per_second": work.flops / seconds,
            "bytes_per_second": work.bytes / seconds,
            "peak_flops_per_second": bench.peak.best,
            "share_of_peak": work.flops / seconds / bench.peak.best,
        }
        print(
            f"{bench.dtype:9} {stage.name:34} {work.tokens:6} tokens {work.flops / 1e9:8.0f} GFLOP "
            f"{work.bytes / 1e9:6.1f} GB {seconds:7.2f} s {work.flops / seconds / 1e9:6.0f} GFLOP/s, "
            f"{work.flops / seconds / bench.peak.best:.0%} of {bench.peak.best / 1e9:.0f}",
            flush=True,
        )
    return stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=24, help="of the quickstart, four answers each")
    parser.add_argument("--long", type=int, default=3, help="prompts of QA-Feedback's length")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="this format alone; nothing is written")
    parser.add_argument("--only", nargs="*", default=[], metavar="STAGE", help="these stages; nothing is written")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    best = matmul_speed(default_cache_dir()).faster
    found: dict[str, Any] = {}
    for dtype in [options.dtype] if options.dtype else sorted(("bfloat16", "float32"), key=lambda name: name != best):
        sizes = (options.prompts, options.long, options.rounds)
        prompts, long, rounds = sizes if dtype == best or options.dtype else (1, 1, 1)
        with tempfile.TemporaryDirectory() as folder:
            found[dtype] = measured(Bench(dtype, prompts, long, Path(folder)), rounds, options.only)
    if not options.only and not options.dtype:
        write(options.output, best, found)


def write(path: Path, best: str, found: dict[str, Any]) -> None:
    """Add what was measured; `stages` are those of the processor as it is, not held back to another one's units."""
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"measured": {}}
    capability = torch.backends.cpu.get_cpu_capability()
    results["measured"][capability] = {"dtype": best, "machine": machine(), "stages": found}
    if "ATEN_CPU_CAPABILITY" not in os.environ or "stages" not in results:
        results |= {"stages": found[best], "dtype": best, "capability": capability}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
