"""Answers of a policy by vLLM: many prompts at a time on a GPU. An option: pip install vllm."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from modpo.base.costs import count
from modpo.forward.sampled import SamplingSettings


class VllmPolicy:
    """A causal language model in vLLM, sampled from as `generate` does: softmax(logits / temperature) alone."""

    def __init__(self, folder: Path, dtype: str, *, trust_remote_code: bool = False) -> None:
        """Read the model in `folder` onto the GPU."""
        self._vllm = importlib.import_module("vllm")
        # "vllm": without the sampling settings and stop tokens of the model's own generation_config.json.
        self._llm = self._vllm.LLM(
            model=str(folder), dtype=dtype, trust_remote_code=trust_remote_code, generation_config="vllm"
        )

    def generate(self, prompts_ids: Sequence[Sequence[int]], settings: SamplingSettings) -> list[list[list[int]]]:
        """Token ids of the answers to each prompt, every one sampled with a seed of its own."""
        n = settings.answers_per_prompt
        first = (settings.seed + settings.first_prompt) * n
        asked = [
            self._vllm.SamplingParams(
                temperature=settings.temperature,
                max_tokens=settings.max_new_tokens,
                stop_token_ids=sorted(settings.ends),
                ignore_eos=True,  # what ends an answer is in `ends`
                seed=first + i,
                detokenize=False,
            )
            for i in range(len(prompts_ids) * n)
        ]
        prompts = [{"prompt_token_ids": list(ids)} for ids in prompts_ids for _ in range(n)]
        outputs = self._llm.generate(prompts, asked, use_tqdm=False)
        answers = [list(output.outputs[0].token_ids) for output in outputs]
        count(tokens_generated=sum(map(len, answers)))  # how vLLM puts them into passes it keeps to itself
        return [answers[i : i + n] for i in range(0, len(answers), n)]


def vllm_is_usable() -> bool:
    """Whether vLLM is installed and has a GPU."""
    import torch

    return importlib.util.find_spec("vllm") is not None and torch.cuda.is_available()
