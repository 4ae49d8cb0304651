"""`packing: auto` made true or false, for models on disk: whether their weights can be read packed is tried once.

What came out is kept in the cache under the model's fingerprint, so that no later run reads the weights to know it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modpo.base.artifact import Artifact
from modpo.base.errors import InputError, Problem
from modpo.base.files import sha256_json
from modpo.experiment.sections import AUTO, Experiment
from modpo.forward.packing_needs import Needs, Packing, say_padded, unpackable
from modpo.forward.rope import fixed_up_to
from modpo.models.folders import device, skeleton
from modpo.models.reference import Reference, ReferenceModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    AnyExperiment = TypeVar("AnyExperiment", bound=Experiment)

FOLDER = "packing"  # in the cache
REASON = "reason"  # of the manifest


def with_packing(experiment: AnyExperiment, reference: ReferenceModel) -> AnyExperiment:
    """An experiment whose `training.packing` is true or false; said, once, where `auto` means padded.

    Raises:
        InputError: it is true, and the model's configuration or a setting stands in the way.
    """
    asked = experiment.training.packing
    packing = packing_of(asked, reference, _needs(experiment), experiment.cache_dir)
    return replace(experiment, training=replace(experiment.training, packing=packing))


def require_fixed_rope(reference: ReferenceModel, longest: int, where: str, field: str) -> None:
    """Refuse rows so long that TRL's own trainers, which pad them beside one another, would read them as others.

    Raises:
        InputError: the model's rope depends on the longest row, where one may be so long.
    """
    limit = fixed_up_to(_outline(reference).config)
    if limit is not None and longest > limit:
        problem = f"rows of up to {longest} tokens, but beyond {limit} the model's rotary frequencies depend on the"
        fix = f"lower `{field}`, so that no row has more than {limit} tokens"
        raise InputError(Problem(where, field, f"{problem} longest row in a batch", fix))


def _needs(experiment: Experiment) -> Needs:
    data, new = experiment.data, experiment.evaluation.max_new_tokens
    longest = max(data.max_length, data.prompt_room(new) + new)  # of the data's rows and of new answers
    more = experiment.training.arguments
    return Needs(longest, more.get("neftune_noise_alpha"), dropout=more.get("disable_dropout") is False)


def packing_of(asked: Packing, reference: Reference, needs: Needs, cache_dir: Path) -> bool:
    """Whether a model is to be read packed: where `asked` leaves it open, if it can be. The same in every run.

    Raises:
        InputError: it is to be, and its configuration or a need stands in the way. What only its weights can tell is
            found when it reads its first row.
    """
    if asked is False:
        return False
    if not isinstance(reference, ReferenceModel):
        from modpo.forward.packability import choose_packing

        return choose_packing(asked, reference.model, needs)
    outline = _outline(reference)
    reason = _outlined_obstacle(outline, needs)
    if asked != AUTO:
        if reason:
            raise unpackable(outline.config, reason)
        return True
    reason = reason or _kept_obstacle(reference, cache_dir)
    if reason:
        say_padded(reason)
    return not reason


def expected_packing(experiment: AnyExperiment, reference: ReferenceModel) -> AnyExperiment:
    """`with_packing` as far as it is known without the weights; nothing is said, nothing refused."""
    if experiment.training.packing != AUTO:
        return experiment
    packing = not _outlined_obstacle(_outline(reference), _needs(experiment))
    return replace(experiment, training=replace(experiment.training, packing=packing))


def _outline(reference: ReferenceModel) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    trust = reference.section.trust_remote_code
    return skeleton(AutoModelForCausalLM, reference.folder, reference.where, reference.field, trust_remote_code=trust)


def _outlined_obstacle(outline: PreTrainedModel, needs: Needs) -> str | None:
    from modpo.forward.packability import known_obstacle

    return needs.obstacle(outline.config) or known_obstacle(outline)


def _kept_obstacle(reference: ReferenceModel, cache_dir: Path) -> str | None:
    """What a model's weights have shown to be in the way, now or in an earlier run."""
    import torch
    import transformers

    from modpo.forward.packability import packing_obstacle

    parts: dict[str, Any] = {
        "model": reference.fingerprint,
        "device": device(),
        "versions": [torch.__version__, transformers.__version__],
    }
    verdict = Artifact(cache_dir / FOLDER / sha256_json(parts)[:24], parts)
    manifest = verdict.there()
    if manifest is None:
        with verdict.making(**{REASON: packing_obstacle(reference.model)}):
            pass
        manifest = verdict.there() or {}
    reason: str | None = manifest[REASON]
    return reason
