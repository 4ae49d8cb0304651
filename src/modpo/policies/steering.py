"""Any preference vector of a finished folder as a model: an exact point, the continuous policy, or between points.

`Front.at` and `Front.bake` are these, found by the front's folder. `SteeredPolicy` moves the weights of a model that
stays in memory, for `modpo chat`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base import simplex
from modpo.base.artifact import require_free
from modpo.base.errors import InputError, Problem
from modpo.base.files import new_folder, read_manifest
from modpo.base.progress import say, working
from modpo.base.simplex import Weights
from modpo.data.chat_template import stop_ids
from modpo.data.clock import Clock, save_tokenizer
from modpo.experiment.chat_settings import FIELD
from modpo.experiment.file import EXPERIMENT_FILE, read_experiment
from modpo.experiment.methods import CONTINUOUS  # also the folder of a continuous policy, beside `points`
from modpo.experiment.sections import Experiment
from modpo.forward.conversation import Conversation
from modpo.forward.policy import Policy
from modpo.front.schema import Front, Point
from modpo.models.adapters import ADAPTER_WEIGHTS, attach_adapter, merge_adapter, require_adapter
from modpo.models.combine import combine_adapters, plain_config, steer
from modpo.models.dtype_choice import say_if_slow
from modpo.models.folders import ADAPTER_CONFIG, is_adapter
from modpo.models.quantized import is_quantized
from modpo.models.reference import ReferenceModel
from modpo.policies.interpolate import coefficients, hull_problem

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Source:
    """What a vector's policy is built from.

    Attributes:
        kind: "point", "continuous" or "interpolation".
        adapters: adapter folder -> its coefficient in the weight update; a point may be a whole model's folder.
        description: for a reader.
    """

    kind: str
    adapters: dict[Path, float]
    description: str

    @property
    def whole_model(self) -> Path | None:
        """The folder of a point that was trained without adapters."""
        first = next(iter(self.adapters))
        return first if self.kind == "point" and not is_adapter(first) else None


class Steering:
    """The policies of a front's folder.

    Args:
        trust_remote_code: let the model run code that comes with it.
    """

    def __init__(self, front: Front, *, trust_remote_code: bool = False) -> None:
        self.folder, self._trust_remote_code = front.folder, trust_remote_code
        self.names = [objective.name for objective in front.objectives]
        if any(point.best_of_n for point in front.points):
            problem = "holds choices among the reference's answers (`method: best_of_n`), no policies to load"
            raise InputError(Problem(str(self.folder), "", problem, "name the folder of a method that trains"))
        self._points = [p for p in front.points if p.adapter is not None and p.weights is not None]

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment that the folder holds, its model that of `sft` if there was one."""
        path = self.folder / EXPERIMENT_FILE
        experiment = read_experiment(path, trust_remote_code=self._trust_remote_code)
        say_if_slow(experiment, "answer on a machine like that of the training, or more patiently")
        if experiment.sft is not None:
            model = replace(experiment.model, model_name_or_path=str(self.folder / "sft"), revision=None)
            experiment = replace(experiment, model=model)
        return experiment

    @cached_property
    def reference(self) -> ReferenceModel:
        """The model from which all policies start."""
        return ReferenceModel(self.experiment.model, self.experiment.cache_dir, clock=Clock(self.folder))

    @property
    def ends(self) -> list[int]:
        """The ids that end an answer, in a conversation if the model has a chat template."""
        tokenizer, kwargs = self.reference.tokenizer, self.experiment.data.chat_template_kwargs
        conversational, own = bool(tokenizer.chat_template), self.reference.own_ends
        return stop_ids(tokenizer, conversational=conversational, template_kwargs=kwargs, own=own)

    def vector(self, weights: Weights) -> Weights:
        """A preference vector over the front's objectives, checked."""
        return simplex.read_weights(weights, self.names, where="weights")

    def middle(self) -> Weights:
        """Where all objectives weigh alike; without a continuous policy, the point that is nearest to that."""
        alike = simplex.middle(self.names)
        if not self._points or read_manifest(self.folder / CONTINUOUS) is not None:
            return alike
        return min((p.weights or {} for p in self._points), key=lambda w: sum((w[n] - alike[n]) ** 2 for n in alike))

    def source(self, weights: Weights) -> Source:
        """What the policy at a vector is built from: a trained point, the continuous policy, or neighbours.

        Raises:
            InputError: no such vector, or one outside what the points span; a point that is not there.
            IntegrityError: an adapter was changed.
        """
        weights = self.vector(weights)
        for point in self._points:
            if all(abs((point.weights or {})[name] - weights[name]) < simplex.SUM_TOLERANCE for name in self.names):
                return Source("point", {self._folder(point): 1.0}, f"point {point.name}")
        if (manifest := read_manifest(self.folder / CONTINUOUS)) is not None:
            scales = simplex.spread_out(weights, manifest.get("spread", 1.0))
            adapters = {self.folder / CONTINUOUS / name: scale for name, scale in scales.items() if scale != 0}
            return Source("continuous", adapters, "the continuous policy")
        return self._interpolated(weights)

    def _folder(self, point: Point) -> Path:
        folder = self.folder / str(point.adapter)
        if read_manifest(folder) is None:
            problem, fix = "holds no finished policy, though the front knows it", "train the sweep again"
            raise InputError(Problem(str(folder), "", problem, fix))
        return folder

    def _interpolated(self, weights: Weights) -> Source:
        shares = coefficients([p.weights or {} for p in self._points], weights) if self._points else None
        if shares is None:
            span = hull_problem({p.name: p.weights or {} for p in self._points}) if self._points else "no point"
            fix = "ask for a vector between trained points, or add it to `sweep.weights` and train it"
            raise InputError(Problem(str(self.folder), "weights", f"{simplex.label(weights)} is outside {span}", fix))
        used = {p.name: (self._folder(p), c) for p, c in zip(self._points, shares, strict=True) if c > 0}
        for folder, _ in used.values():
            if not is_adapter(folder):
                fix = "ask for the vector of a point, or train adapters (`lora`)"
                raise InputError(Problem(str(folder), "weights", "whole models are not interpolated", fix))
            plain_config(folder)
        parts = ", ".join(f"{c:.3g} of {name}" for name, (_, c) in used.items())
        return Source("interpolation", dict(used.values()), f"interpolated in weight space: {parts}")

    def at(self, weights: Weights) -> PeftModel | PreTrainedModel:
        """The policy at a vector, ready to generate. Reports what it is built from."""
        source = self._said(weights)
        if source.whole_model:
            return self.whole_model(source.whole_model)
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            _write_adapter(source, Path(folder))
            model = attach_adapter(self.reference.model, Path(folder))
        self.reference.release()  # the next call reads a base of its own: two adapters on one would mix
        return model

    @working("the policy, baked")
    def bake(self, weights: Weights, folder: Path, *, rank: int | None = None, merge: bool = False) -> float:
        """Write the policy at a vector as a plain PEFT folder, or merged into the base as a plain model folder.

        Args:
            rank: compress the adapter to this rank; None keeps it exact.

        Returns:
            The relative error of the weight update; 0 without `rank`.
        """
        if merge and rank is not None:
            raise InputError(Problem("bake", "rank", "does not go with `merge`", "leave one of them out"))
        require_free(folder)
        source = self._said(weights)
        if source.whole_model and not merge:
            problem = "was trained without adapters, so there is none to write"
            raise InputError(Problem(str(source.whole_model), "", problem, "bake it with `merge=True`"))
        beta = self.experiment.training.beta  # what makes the policy an implicit reward
        about: dict[str, Any] = {"weights": self.vector(weights), "made_of": source.description, "beta": beta}
        if kwargs := self.experiment.data.chat_template_kwargs:  # whoever serves it has to give them
            about[FIELD] = kwargs
        with new_folder(folder, about) as temporary:
            if merge:
                self._write_merged(source, temporary)
                return 0.0
            about["error"] = _write_adapter(source, temporary, rank=rank)
        return float(about["error"])

    def _said(self, weights: Weights) -> Source:
        source = self.source(weights)
        say(f"{simplex.label(self.vector(weights))}: {source.description}")
        return source

    def whole_model(self, folder: Path) -> PreTrainedModel:
        """The model of a point that was trained without adapters."""
        return Policy(self.reference, folder).own_model.model

    def _write_merged(self, source: Source, output: Path) -> None:
        if source.whole_model:
            merged = self.whole_model(source.whole_model)
        else:
            adapter = output / "adapter"
            adapter.mkdir()
            _write_adapter(source, adapter)
            if is_quantized(self.reference.model):
                dtype = self.reference.model.dtype
                say(f"the base is quantised; a merged policy is not, but has its weights in {dtype}")
            merged = merge_adapter(self.reference.model, adapter)
            shutil.rmtree(adapter)
            self.reference.release()  # its weights are the policy's now
        if merged.generation_config is not None:  # whoever serves it stops where policies were measured to stop
            merged.generation_config.eos_token_id = self.ends
        merged.save_pretrained(output)
        save_tokenizer(self.reference.tokenizer, output)


class SteeredPolicy:
    """One base in memory with a folder's adapters beside it, scaled by the weights.

    Attributes:
        model: the policy at the vector of the last `steer`.
    """

    def __init__(self, steering: Steering) -> None:
        self._steering = steering
        self._adapters: dict[Path, str] = {}
        self.model: PeftModel | PreTrainedModel = steering.reference.model
        steering.reference.release()  # adapters are put into this one

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer."""
        return self._steering.reference.tokenizer

    def conversation(self, room: int) -> Conversation:
        """A new conversation of at most so many tokens, read as in training."""
        kwargs = self._steering.experiment.data.chat_template_kwargs
        return Conversation(self.tokenizer, room, template_kwargs=kwargs, ends=self._steering.ends)

    def steer(self, weights: Weights) -> str:
        """Make `model` the policy at a vector, and return what it is built from. The base is not read again.

        Raises:
            InputError: see `Steering.source`; the policy stays what it was.
        """
        from peft import PeftModel

        source = self._steering.source(weights)
        if source.whole_model:  # nothing to scale: each is read when it is asked for
            self.model = self._steering.whole_model(source.whole_model)
            return source.description
        scales = {self._loaded(folder): c for folder, c in source.adapters.items()}
        assert isinstance(self.model, PeftModel)
        self.model.base_model.set_adapter(list(scales), inference_mode=True)
        steer(self.model, scales)
        return source.description

    def _loaded(self, folder: Path) -> str:
        """The name of an adapter in the model, read if it is not there yet, in the base's dtype."""
        from peft import PeftModel

        if folder not in self._adapters:
            require_adapter(folder, str(folder), "")
            name = f"adapter_{len(self._adapters)}"
            if isinstance(self.model, PeftModel):
                self.model.load_adapter(folder, adapter_name=name, autocast_adapter_dtype=False)
            else:
                self.model = attach_adapter(self.model, folder, name=name)
            self._adapters[folder] = name
        return self._adapters[folder]


def _write_adapter(source: Source, output: Path, *, rank: int | None = None) -> float:
    """A source's adapters as one; a point as it is."""
    if source.kind == "point" and rank is None:
        (folder,) = source.adapters
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            shutil.copyfile(folder / name, output / name)
        return 0.0
    return combine_adapters(source.adapters, output, rank=rank)
