"""The embedded default: from nothing to a measured front, without a hub and without data to bring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modpo.base.progress import say, working
from modpo.data.groups import group_rows
from modpo.data.sources import open_rows
from modpo.experiment.sections import Experiment
from modpo.models.dtype_choice import with_dtype
from modpo.quickstart.plan import make_plan
from modpo.quickstart.rates import measure_rates
from modpo.quickstart.size import FULL, Rates, Size

HERE = Path(__file__).parent
PROMPTS = HERE / "prompts.jsonl"


def run_quickstart(output: Path, *, separate: bool = False, fast: bool = False, minutes: float | None = None) -> None:
    """Sample, score, train, evaluate and report into `output`; what is there already is kept.

    Args:
        separate: a training for each preference vector, in place of one for all.
        fast: few prompts and vectors.
        minutes: that it may take: on a slow machine it does less. Default: 15.
    """
    from modpo.pipeline.stages import run_pipeline

    plan = make_plan(output, lambda: _rates(output), separate=separate, fast=fast, minutes=minutes)
    run_pipeline(quickstart_experiment(output, plan.size), expected=plan.expected)
    say(
        f"the front:    {output / 'front.png'} (to the right more positive, upwards fewer words; the star is the model)"
    )
    say(f"the answers:  {output / 'report.html'} (open it in a browser: a slider moves the weights)")
    say(f"the policies: {output / 'points'} (PEFT adapters, made by {output / 'experiment.yaml'})")


def _rates(output: Path) -> Rates:
    """This machine's, measured with the full experiment's model and prompts."""
    experiment = with_dtype(quickstart_experiment(output, FULL), writes=False)
    with working("measuring this machine"):
        return measure_rates(experiment, group_rows(open_rows(str(PROMPTS)), format="prompts"))


def quickstart_experiment(output: Path, size: Size, overrides: Sequence[str] = ()) -> Experiment:
    """The shipped experiment at that size, with its data and results in `output`."""
    from modpo.experiment.file import read_experiment

    return read_experiment(
        HERE / "experiment.yaml",
        [
            f"data.path={output / 'data' / 'train.jsonl'}",
            f"data.eval_path={output / 'data' / 'held_out.jsonl'}",
            f"data.eval_prompts={size.held_out_prompts}",
            f"sample.prompts={PROMPTS}",
            f"sample.max_prompts={size.train_prompts}",
            f"sample.held_out={size.held_out_prompts}",
            f"sample.max_new_tokens={size.max_new_tokens}",
            f"output_dir={output}",
            f"sweep.grid={size.vectors}",
            f"evaluation.max_new_tokens={size.max_new_tokens}",
            f"training.num_train_epochs={size.epochs}",
            f"sweep.mode={'separate' if size.separate else 'continuous'}",
            *overrides,
        ],
    )
