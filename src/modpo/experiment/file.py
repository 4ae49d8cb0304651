"""The YAML experiment file: read, checked and written. The dataclasses behind it are in `modpo.experiment.sections`.

A file is read before any model is loaded, and all of its problems are told at once.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode

from modpo.base.errors import InputError, Problem
from modpo.base.simplex import Weights
from modpo.base.text import without_secrets
from modpo.experiment.method_rules import check_methods
from modpo.experiment.objectives import RewardSection, RewardTraining
from modpo.experiment.rules import check_sections
from modpo.experiment.sections import AUTO, Experiment, ExperimentFile, ModelSection, Sections, TrainingSection
from modpo.experiment.sweep_sections import SweepChoice, SweepMethod, SweepSection
from modpo.experiment.vectors import expand_sweep
from modpo.experiment.yaml_nodes import TEXT_TAG, compose, line_of, override, seen
from modpo.experiment.yaml_reader import NUMBER, SectionReader

EXPERIMENT_FILE = "experiment.yaml"  # the complete file, beside the results
REFUSED = {"trust_remote_code": "give `trust_remote_code` to the call, where you see what you trust"}
# reward: "package.module:function"; train: reward_model
SHORTHAND: dict[type, str] = {RewardSection: "function", RewardTraining: "kind"}


def read_experiment(path: str | Path, overrides: Sequence[str] = (), *, trust_remote_code: bool = False) -> Experiment:
    """Read and check an experiment file.

    Args:
        path: the YAML file. Relative paths in it are relative to the working directory.
        overrides: "training.beta=0.2", "sweep={grid: 3}": what replaces the file's values, as YAML.
        trust_remote_code: let model repositories run their own code; a file cannot allow that.

    Raises:
        InputError: everything that is wrong with the file and the overrides.
        PermissionError: the file may not be read.
    """
    source = str(path)
    root = _root(compose(_text(Path(path)), source), source)
    reader = SectionReader(source, refused=REFUSED, shorthand=SHORTHAND)
    for assignment in overrides:
        try:
            override(root, assignment)
        except InputError as error:
            reader.problems += error.problems
    shape = reader.read(root, ExperimentFile, "")
    if not isinstance(shape, ExperimentFile):  # the whole file is tagged
        raise InputError(reader.problems)
    check_sections(shape, reader)
    check_methods(shape, reader)
    named = shape.training.objective if isinstance(shape.training, TrainingSection) else None
    vectors = expand_sweep(shape.sweep, shape.objectives, named if isinstance(named, str) else None, reader)
    if reader.problems:
        raise InputError(reader.problems)
    given = {f.name: getattr(shape, f.name) for f in dataclasses.fields(Sections)}
    given |= {
        "model": dataclasses.replace(_model(shape), trust_remote_code=trust_remote_code),
        "sweep": _sweep(shape.sweep or SweepChoice(), vectors),
        "output_dir": Path(shape.output_dir or f"runs/{Path(path).stem}").expanduser(),
        "cache_dir": Path(shape.cache_dir or os.environ.get("MODPO_CACHE") or "~/.cache/modpo").expanduser(),
    }
    return Experiment(**given, source=source, lines=reader.lines)


def _model(shape: ExperimentFile) -> ModelSection:
    """The model, in float32 where all weights are trained and the file names no number format.

    In 16 bits a weight does not move by steps as small as training all weights takes: they are rounded away.
    """
    whole = shape.lora is None and shape.model.dtype == AUTO
    return dataclasses.replace(shape.model, dtype="float32") if whole else shape.model


def _sweep(choice: SweepChoice, vectors: list[Weights]) -> SweepSection:
    return SweepSection(vectors, **{f.name: getattr(choice, f.name) for f in dataclasses.fields(SweepMethod)})


def _text(path: Path) -> str:
    """The file's text, with or without a byte order mark."""
    fix = "give the path of an experiment's YAML file"
    try:
        raw = path.read_bytes()
    except PermissionError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(Problem(str(path), "", "no such file", fix)) from None
    except IsADirectoryError:
        raise InputError(Problem(str(path), "", "is a directory", fix)) from None
    except (OSError, ValueError) as error:  # a name that is too long or holds a NUL
        raise InputError(Problem(str(path), "", f"cannot be read: {error}", fix)) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(Problem(f"{path}:{line}", "", "is not UTF-8 text", "save it as UTF-8")) from None


def _root(node: yaml.Node | None, source: str) -> MappingNode:
    fix = "write `model:`, `data:` and `objectives:`, each with its keys below"
    if node is None:
        raise InputError(Problem(source, "", "is empty", fix))
    if not isinstance(node, MappingNode):
        raise InputError(Problem(f"{source}:{line_of(node)}", "", f"expected sections, got {seen(node)}", fix))
    return node


def to_yaml(experiment: Experiment) -> str:
    """The complete effective configuration, defaults filled in, as YAML.

    `read_experiment` reads it back to an equal experiment. Not written are secrets among the `kwargs` of rewards, and
    `trust_remote_code`: no file may allow it.
    """
    values = dataclasses.asdict(experiment)
    tree = {f.name: values[f.name] for f in dataclasses.fields(Sections)}
    del tree["model"]["trust_remote_code"]
    for objective in tree["objectives"].values():
        del objective["name"]
    tree |= {name: without_secrets(tree[name]) for name in ("objectives", "evaluation")}
    tree |= {name: str(tree[name]) for name in ("output_dir", "cache_dir")}
    if not experiment.sweep.weights:
        tree["sweep"] = None
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes what `SectionReader` reads: no aliases, and quotes around a text that looks like a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """In double quotes if there is more than printable characters: other styles fold rare line breaks."""
        return self.represent_scalar(TEXT_TAG, text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"(?:{NUMBER.pattern})$"), list("-+.0123456789"))
