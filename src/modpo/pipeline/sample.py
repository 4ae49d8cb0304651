"""The data of an experiment that has prompts and rewards only: answers of its reference policy.

They go to `data.path` as rows of {prompt, responses}; prompts that are held out go to `data.eval_path` unanswered.
"""

from __future__ import annotations

from pathlib import Path

from modpo.base.errors import EnvironmentFault, InputError, Problem
from modpo.data.formats import PROMPTS
from modpo.data.groups import PromptGroups, group_rows
from modpo.data.loading import check_layouts, load_groups, load_held_out
from modpo.data.sources import open_rows
from modpo.data.tokens import require_usable, tokenize_prompt
from modpo.experiment.sections import Experiment, SampleSection
from modpo.models.dtype_choice import with_dtype
from modpo.models.positions import require_answerable
from modpo.models.reference import ReferenceModel
from modpo.scored.answers import SampleSettings, require_ours, sample_responses, write_prompts


def sample_experiment(experiment: Experiment) -> None:
    """Write the answers and the held-out prompts that an experiment's `sample` section asks for; kept when there.

    Raises:
        InputError: no such section, bad prompts, or files that modpo did not write where they would go.
        EnvironmentFault: `engine: vllm` without vLLM or a GPU.
    """
    section = _section(experiment)
    answered, held_out = sample_prompts(experiment)
    answers_path, prompts_path = _outputs(experiment, section)
    engine = _engine(section, experiment.where("sample.engine"))
    _check(experiment, answered)
    experiment = with_dtype(experiment)
    reference = ReferenceModel.of(experiment)
    if prompts_path is not None:
        write_prompts(held_out, prompts_path)
    seed = experiment.seed if section.seed is None else section.seed
    answers, tokens, temperature = section.responses_per_prompt, section.max_new_tokens, section.temperature
    settings = SampleSettings(answers, tokens, temperature, seed, engine)
    cache_dir, packing = experiment.cache_dir, experiment.training.packing
    sample_responses(reference, answered, answers_path, settings, cache_dir=cache_dir, packing=packing)


def _check(experiment: Experiment, prompts: PromptGroups) -> None:
    """What can be known before anything is measured or written."""
    reference = ReferenceModel.of(experiment, writes=False)
    require_usable(
        reference.tokenizer,
        conversational=prompts.conversational,
        where=reference.where,
        template_kwargs=prompts.template_kwargs,
    )
    require_room(experiment, reference, prompts)


def sample_prompts(experiment: Experiment) -> tuple[PromptGroups, PromptGroups]:
    """The prompts that are answered, and those that are held out, drawn by `data.split_seed`.

    Raises:
        InputError: no `sample` section, bad rows, or more held-out prompts than there are.
    """
    section = _section(experiment)
    check_layouts(experiment)
    rows = open_rows(section.prompts, split=section.split, name=section.name, data_dir=section.data_dir)
    data = experiment.data
    prompts = group_rows(
        rows,
        format=section.format,
        unanswered=True,
        skip_empty=data.skip_empty,
        template_kwargs=data.chat_template_kwargs,
    )
    answered, held_out = prompts.split_held_out(section.held_out, experiment.data.split_seed)
    if section.max_prompts is not None:
        answered = answered[: section.max_prompts]
    return answered, held_out


def held_out_prompts(experiment: Experiment) -> PromptGroups:
    """The prompts on which policies are measured, also before they are written: no stage may learn from them.

    Raises:
        InputError: bad rows, or more held-out prompts than there are.
    """
    if experiment.sample is None:
        return load_groups(experiment)[1]
    if not experiment.sample.held_out and experiment.data.eval_path is not None:
        return load_held_out(experiment)
    answered, unanswered = sample_prompts(experiment)
    if len(unanswered):
        return unanswered
    return answered.split_held_out(experiment.data.eval_prompts, experiment.data.split_seed)[1]


def require_room(experiment: Experiment, reference: ReferenceModel, prompts: PromptGroups) -> None:
    """Refuse answers that could be longer, with their prompt, than the model has positions.

    Raises:
        InputError: they could.
    """
    tokens, field = _section(experiment).max_new_tokens, "sample.max_new_tokens"
    ids = (tokenize_prompt(group.prompt, reference.tokenizer, group.template_kwargs) for group in prompts)
    require_answerable(prompts, ids, reference.positions, tokens, experiment.where(field), field)


def _section(experiment: Experiment) -> SampleSection:
    if experiment.sample is None:
        fix = "add `sample: {prompts: prompts.jsonl}`; the answers go to `data.path`"
        raise InputError(Problem(experiment.source, "sample", "there is no such section", fix))
    return experiment.sample


def _outputs(experiment: Experiment, section: SampleSection) -> tuple[Path, Path | None]:
    """Where answers and held-out prompts go."""
    data, problems = experiment.data, []
    outputs = {"data.path": data.path} | ({"data.eval_path": data.eval_path} if section.held_out else {})
    for field, path in outputs.items():
        if path is None or not path.endswith(".jsonl"):
            unset = "is not set, and the held-out prompts of `sample` go there"
            problem = unset if path is None else f"{path!r} is no .jsonl file, which `sample` writes"
            problems.append(Problem(experiment.where(field), field, problem, "name a .jsonl file"))
    if section.held_out and (data.eval_format or data.format) != PROMPTS:
        problem, fix = "the held-out prompts of `sample` have no answers", f"set `eval_format: {PROMPTS}`"
        problems.append(Problem(experiment.where("data.eval_format"), "data.eval_format", problem, fix))
    if problems:
        raise InputError(problems)
    for path in filter(None, outputs.values()):
        require_ours(Path(path))
    return Path(data.path), Path(data.eval_path) if section.held_out and data.eval_path else None


def _engine(section: SampleSection, where: str) -> str:
    if section.engine == "transformers":
        return section.engine
    from modpo.forward.vllm import vllm_is_usable

    usable = vllm_is_usable()
    if section.engine == "vllm" and not usable:
        fix = "pip install vllm on a machine with one, or `engine: auto`"
        raise EnvironmentFault(f"{where}:sample.engine: vLLM is not installed, or has no GPU; fix: {fix}")
    return "vllm" if usable else "transformers"
