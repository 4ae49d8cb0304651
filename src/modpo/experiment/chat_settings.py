"""`chat_template_kwargs`: variables that a chat template gets besides the messages, such as `enable_thinking`."""

from __future__ import annotations

from collections.abc import Iterable

FIELD = "chat_template_kwargs"  # of the experiment's `data`, of `MODPOConfig`, and of a row, as TRL reads it
# What rendering sets by itself, and what would make something else than the text of a conversation.
RESERVED = """
messages conversation conversations tools chat_template add_generation_prompt continue_final_message tokenize
sanitize_control_tokens padding truncation max_length return_tensors return_dict return_assistant_tokens_mask
tokenizer_kwargs strftime_now bos_token eos_token unk_token sep_token pad_token cls_token mask_token
"""


def reserved(names: Iterable[str]) -> list[tuple[str, str]]:
    """(problem, fix) for each name that cannot be given."""
    fix, taken = "leave it out: it is set where the conversation is rendered", RESERVED.split()
    return [(f"holds {name!r}, which is no variable of a chat template alone", fix) for name in names if name in taken]
