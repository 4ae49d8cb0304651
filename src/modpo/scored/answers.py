"""Answers of the reference policy to prompts: data for those who have rewards and no preference labels.

Rows go into a JSONL file, with `<file>.manifest.json` beside it: what they were made from, and that modpo made them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.costs import Cost
from modpo.base.errors import InputError, Problem
from modpo.base.files import MANIFEST, new_file, sha256_file, sha256_json, write_json
from modpo.base.progress import Progress, say
from modpo.data.groups import PromptGroups
from modpo.data.tokens import answer_text, tokenize_prompt
from modpo.data.tokens import identity as tokenizer_identity
from modpo.experiment.sections import AUTO
from modpo.forward.packing_choice import packing_of
from modpo.forward.packing_needs import Needs, Packing
from modpo.forward.sampled import RULES, SamplingSettings
from modpo.models.reference import ReferenceModel, answer_ends, answer_turn
from modpo.scored.columns import Column, Row, column

if TYPE_CHECKING:
    from modpo.models.reference import Reference

SAMPLE = "sample"  # the stage
# Prompts in a shard, which is what a killed run can lose. vLLM wants many at a time.
SHARD_PROMPTS = {"transformers": 48, "vllm": 1024}
ANSWERS_AT_A_TIME = 192  # where a CPU multiplies at 95 % of its best rate

# Token ids of prompts, the number of the first of them and a label -> token ids of the answers to each.
Sampler = Callable[[list[list[int]], int, str], list[list[list[int]]]]


@dataclass(frozen=True)
class SampleSettings:
    """What decides the answers besides model and prompts.

    Attributes:
        engine: "transformers", or "vllm", for a reference on disk.
    """

    responses_per_prompt: int = 4
    max_new_tokens: int = 128
    temperature: float = 1.0
    seed: int = 0
    engine: str = "transformers"


def sample_responses(
    reference: Reference,
    prompts: PromptGroups,
    output: Path,
    settings: SampleSettings,
    *,
    cache_dir: Path,
    packing: Packing = AUTO,
) -> None:
    """Sample answers to each prompt into rows of {prompt, responses} at `output` (JSONL).

    A killed run continues, and the same call again samples nothing: see `sample_column`, which takes the same.

    Raises:
        InputError: at `output` is a file that modpo did not write.
    """
    samples = _column(reference, prompts, cache_dir, settings)
    if not _is_written(output, samples.key):
        _fill(reference, prompts, samples, settings, cache_dir=cache_dir, packing=packing)
        _write_rows(output, samples.key, _answered_rows(prompts, samples), samples.cost)


def answers_cost(output: Path) -> Cost | None:
    """The cost of sampling the answers at `output`, from scratch; None where it was not recorded."""
    written = _read_manifest(output).get("cost")
    return Cost.of(written) if isinstance(written, dict) else None


def sample_column(
    reference: Reference,
    prompts: PromptGroups,
    settings: SampleSettings,
    *,
    cache_dir: Path,
    packing: Packing = AUTO,
) -> Column:
    """The answers in the cache, one row a prompt: under a key of model, prompts and settings, sampled where missing.

    Args:
        packing: whether the model reads packed rows while it samples; the answers are of one distribution either way.
    """
    samples = _column(reference, prompts, cache_dir, settings)
    _fill(reference, prompts, samples, settings, cache_dir=cache_dir, packing=packing)
    return samples


def write_prompts(prompts: PromptGroups, output: Path) -> None:
    """The prompts alone, as rows of the format `prompts`.

    Raises:
        InputError: at `output` is a file that modpo did not write.
    """
    key = sha256_json({"prompts": prompts.fingerprint})
    if not _is_written(output, key):
        _write_rows(output, key, (group.prompt_row for group in prompts))


# --- sampling -----------------------------------------------------------------------------------------------


def _column(reference: Reference, prompts: PromptGroups, cache_dir: Path, settings: SampleSettings) -> Column:
    """The answers' place in the cache, sampled or not."""
    identity = {
        "model": reference.fingerprint,
        "tokenizer": tokenizer_identity(reference.tokenizer, 0, None),
        "prompts": prompts.fingerprint,
        "ends": answer_ends(reference, prompts),
        **asdict(settings),
        "sampling": RULES,
    }
    return column(cache_dir, "samples", identity, len(prompts), SHARD_PROMPTS[settings.engine])


def _fill(
    reference: Reference,
    prompts: PromptGroups,
    samples: Column,
    settings: SampleSettings,
    *,
    cache_dir: Path,
    packing: Packing,
) -> None:
    if samples.complete:
        say(f"samples: {len(prompts)} prompts, in the cache")
        return
    tokenizer, ends = reference.tokenizer, answer_ends(reference, prompts)
    turn = answer_turn(reference, prompts)
    sampler = _sampler(reference, settings, ends, packing, cache_dir)

    def sampled(shard: range) -> Iterator[Row]:
        asked = [tokenize_prompt(prompts[i].prompt, tokenizer, prompts[i].template_kwargs) for i in shard]
        label = f"samples for prompts {shard.start + 1} to {shard.stop} of {len(prompts)}"
        with progress.part(len(shard), spanned=True):
            answered = sampler(asked, shard.start, label)
        for answers in answered:
            texts = [answer_text(ids, ends, tokenizer, turn) for ids in answers]
            yield {"responses": [text for text in texts if text]}  # an empty answer teaches nothing

    done = len(prompts) - sum(len(samples.groups_of(shard)) for shard in samples.missing_shards())
    with Progress("samples", len(prompts), "prompts", done=done, spans=True) as progress:
        samples.fill(sampled)


def _sampler(
    reference: Reference, settings: SampleSettings, ends: list[int], packing: Packing, cache_dir: Path
) -> Sampler:
    asked = SamplingSettings(
        ends, settings.max_new_tokens, settings.responses_per_prompt, settings.temperature, settings.seed
    )
    if settings.engine == "vllm":
        from modpo.forward.vllm import VllmPolicy

        assert isinstance(reference, ReferenceModel)
        section = reference.section
        policy = VllmPolicy(reference.folder, section.number_format, trust_remote_code=section.trust_remote_code)
        return lambda prompts, first, label: policy.generate(prompts, replace(asked, first_prompt=first))

    from modpo.forward.generate import generate

    def sample(prompts: list[list[int]], first: int, label: str) -> list[list[list[int]]]:
        needs = Needs(max(map(len, prompts)) + settings.max_new_tokens)
        packed = packing_of(packing, reference, needs, cache_dir)
        answers = generate(
            reference.model,
            reference.tokenizer,
            prompts,
            replace(asked, first_prompt=first),
            packing=packed,
            batch_size=ANSWERS_AT_A_TIME,
            label=label,
        )
        return [[answer.ids for answer in group] for group in answers]

    return sample


def _answered_rows(prompts: PromptGroups, samples: Column) -> Iterator[Row]:
    for group, texts in zip(prompts, samples.open()["responses"], strict=True):
        if texts:
            chats = [[{"role": "assistant", "content": text}] for text in texts]
            yield {**group.prompt_row, "responses": chats if prompts.conversational else texts}


# --- files --------------------------------------------------------------------------------------------------


def _manifest_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.{MANIFEST}")


def _read_manifest(output: Path) -> dict[str, Any]:
    """`key`, `cost`, and `sha256`: the file's, then that of the one it replaced. Empty where there is none."""
    try:
        read = json.loads(_manifest_path(output).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def require_ours(output: Path) -> None:
    """Refuse to write over a file that modpo did not write, or that was edited since."""
    if output.exists() and (output.is_dir() or sha256_file(output) not in _read_manifest(output).get("sha256", [])):
        problem = "is there already, and is not as it was sampled"
        raise InputError(Problem(str(output), "", problem, "move it away, or name another file"))


def _is_written(output: Path, key: str) -> bool:
    """Whether the file is there as `_write_rows` made it under this key."""
    require_ours(output)
    manifest = _read_manifest(output)
    if not output.exists() or manifest.get("key") != key or manifest["sha256"][0] != sha256_file(output):
        return False
    say(f"{output}: written before, kept")
    return True


def _write_rows(output: Path, key: str, rows: Iterable[Row], cost: Cost | None = None) -> None:
    before = [sha256_file(output)] if output.exists() else []
    with new_file(output) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # First the manifest: killed between the two, what stands at `output` is still known as modpo's.
        manifest = {"key": key, "sha256": [sha256_file(temporary), *before], "cost": cost and cost.written()}
        write_json(_manifest_path(output), manifest)
