"""The front of a folder with the policies behind it: `modpo.load_front`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modpo.base.simplex import Weights
from modpo.front.schema import Front, read_front

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class SteeredFront(Front):
    """A front whose policies can be loaded and written, at any preference vector."""

    def at(self, weights: Weights) -> PreTrainedModel | PeftModel:
        """The policy at a preference vector as a transformers model, ready to generate; reports what it is built from.

        A trained point is itself; a continuous policy was trained at all vectors; between points that were trained
        alone their adapters are interpolated.

        Raises:
            InputError: no such vector, or one outside what the points span.
        """
        from modpo.policies.steering import Steering  # torch only where a policy is wanted

        return Steering(self).at(weights)

    def bake(self, weights: Weights, folder: str | Path, *, rank: int | None = None, merge: bool = False) -> float:
        """Write that policy as a plain PEFT folder (`merge`: as a plain model folder).

        Args:
            rank: compress the adapter to this rank; None keeps it exact.

        Returns:
            The relative error of the weight update; 0 without `rank`.
        """
        from modpo.policies.steering import Steering  # torch only where a policy is wanted

        return Steering(self).bake(weights, Path(folder), rank=rank, merge=merge)


def load_front(folder: str | Path) -> SteeredFront:
    """Read `front.json` of a sweep's folder.

    Raises:
        InputError, IntegrityError: see `read_front`.
    """
    return SteeredFront(**vars(read_front(folder)))
