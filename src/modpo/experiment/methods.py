"""Every method by which the policy of a preference vector comes about, and what each needs of an experiment.

A new method is one file in `modpo.methods` and one entry here.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTINUOUS = "continuous"  # a `sweep.mode`, and MODPO with it as a method of a comparison


@dataclass(frozen=True)
class Method:
    """What a method needs of the objectives and adapters of an experiment.

    Attributes:
        name: as `sweep.method` and `comparison.methods` have it.
        module: the file in `modpo.methods` with its `maker`.
        mode: `sweep.mode`: a training per vector, or one for all.
        margins: trains on the pairs of one objective, with rewards of the others as margins.
        own_pairs: trains on the pairs of each objective.
        new_answers: scores answers that stand in no data.
        adds_adapters: makes the policy of a vector by adding adapters up.
        one_objective: has a policy for each objective, and none between.
    """

    name: str
    module: str
    mode: str = "separate"
    margins: bool = False
    own_pairs: bool = False
    new_answers: bool = False
    adds_adapters: bool = False
    one_objective: bool = False


METHODS = {
    method.name: method
    for method in (
        Method("modpo", module="modpo", margins=True),
        Method(CONTINUOUS, module="continuous", mode=CONTINUOUS, margins=True, adds_adapters=True),
        Method("morlhf", module="morlhf", new_answers=True),
        Method("rlhf", module="morlhf", new_answers=True, one_objective=True),  # MORLHF at the unit vectors
        Method("soups", module="soups", adds_adapters=True),
        Method("loss_weighting", module="loss_weighting", own_pairs=True),
        Method("best_of_n", module="best_of_n", new_answers=True),
        # all weight on one objective's pairs
        Method("dpo", module="loss_weighting", own_pairs=True, one_objective=True),
    )
}
MODES = ("separate", CONTINUOUS)
