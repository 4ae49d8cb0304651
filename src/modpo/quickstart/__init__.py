"""The embedded default: from nothing to a measured front, without a hub and without data to bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modpo.base.progress import say
from modpo.experiment.sections import Experiment

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Size:
    """How much the quickstart does."""

    train_prompts: int
    held_out_prompts: int
    vectors: int
    max_new_tokens: int = 48


FULL = Size(train_prompts=128, held_out_prompts=112, vectors=9)
FAST = Size(train_prompts=32, held_out_prompts=48, vectors=3, max_new_tokens=40)
# A training for each vector, as settings over those of the file: docs/decisions/0005 has what was tried.
SEPARATE = ("sweep.mode=separate", "training.num_train_epochs=1")


def run_quickstart(output: Path, *, separate: bool = False, fast: bool = False) -> None:
    """Sample, score, train, evaluate and report into `output`; what is there already is kept.

    Args:
        separate: a training for each preference vector, in place of one for all.
        fast: fewer prompts and vectors.
    """
    from modpo.pipeline.stages import run_pipeline

    size = FAST if fast else FULL
    if separate:
        size = replace(size, vectors=2 if fast else 5)
    run_pipeline(quickstart_experiment(output, size, SEPARATE if separate else ()))
    say(
        f"the front:    {output / 'front.png'} (to the right more positive, upwards fewer words; the star is the model)"
    )
    say(f"the answers:  {output / 'report.html'} (open it in a browser: a slider moves the weights)")
    say(f"the policies: {output / 'points'} (PEFT adapters, made by {output / 'experiment.yaml'})")


def quickstart_experiment(output: Path, size: Size, overrides: Sequence[str] = ()) -> Experiment:
    """The shipped experiment at that size, with its data and results in `output`."""
    from modpo.experiment.file import read_experiment

    return read_experiment(
        HERE / "experiment.yaml",
        [
            f"data.path={output / 'data' / 'train.jsonl'}",
            f"data.eval_path={output / 'data' / 'held_out.jsonl'}",
            f"data.eval_prompts={size.held_out_prompts}",
            f"sample.prompts={HERE / 'prompts.jsonl'}",
            f"sample.max_prompts={size.train_prompts}",
            f"sample.held_out={size.held_out_prompts}",
            f"sample.max_new_tokens={size.max_new_tokens}",
            f"output_dir={output}",
            f"sweep.grid={size.vectors}",
            f"evaluation.max_new_tokens={size.max_new_tokens}",
            *overrides,
        ],
    )
