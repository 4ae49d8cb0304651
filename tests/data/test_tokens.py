"""Token ids by hand, and against TRL's own tokenization.

The tokenizer is built here: one token a byte, a few merges, and special tokens. Ids are compared as the pieces that
they stand for, so that a golden sequence can be read.
"""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from modpo.base.errors import InputError
from modpo.data.chat_template import stop_ids
from modpo.data.prompt_group import PromptGroup, Text
from modpo.data.tokens import identity, require_usable, tokenize_group, tokenize_prompt

SPECIAL = ["<bos>", "<eos>", "<turn>", "<end>"]
MERGES = [("t", "h"), ("th", "e"), ("a", "n"), ("an", "d"), (".", ".")]

CHATML = (  # like SmolLM2's: eos is the end of turn, a line break behind it
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
END_OF_TURN = (  # like Llama 3's: a beginning, and an end of turn that is not eos
    "<bos>{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
BOTH_ENDS = (  # like Phi-3's: the end of turn, then eos behind the last
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% else %}<eos>{% endif %}"
)
NO_END = (  # like Vicuna's without eos: nothing marks the end
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
THINKING = (  # the generation prompt ends in something that a finished turn has not
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\nhmm{% endif %}"
)
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML


def build(template: str | None = CHATML, *, bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer; with `bos` or `eos` it adds that token to every plain text by itself."""
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if bos or eos:
        frame = ["<bos>"] * bos + ["$A"] + ["<eos>"] * eos
        special = [(token, vocabulary[token]) for token in ("<bos>", "<eos>")]
        backend.post_processor = processors.TemplateProcessing(single=" ".join(frame), special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


def pieces(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    names = tokenizer.convert_ids_to_tokens(ids)
    return [name.replace("Ġ", " ").replace("Ċ", "\n") for name in names]


def text(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return "".join(pieces(tokenizer, ids))


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(*responses: str, prompt: str = "hi") -> PromptGroup:
    return PromptGroup([message("user", prompt)], tuple([message("assistant", r)] for r in responses), where="rows:1")


def plain(prompt: str, *responses: str) -> PromptGroup:
    return PromptGroup(prompt, responses, where="rows:1")


# --- golden sequences ---------------------------------------------------------------------------------------


def test_plain() -> None:
    tokenizer = build()
    made = tokenize_group(plain("the\n", "and", "no.."), tokenizer, max_length=99)
    assert pieces(tokenizer, made.prompt_ids) == ["the", "\n"]
    assert [pieces(tokenizer, ids) for ids in made.responses_ids] == [["and", "<eos>"], ["n", "o", "..", "<eos>"]]
    assert vars(made) | {"prompt_ids": 0, "responses_ids": 0} == {
        "prompt_ids": 0,
        "responses_ids": 0,
        "prompt_truncated": False,
        "responses_truncated": 0,
        "merged_boundary": 0,
        "special_in_text": 0,
        "prompt_differs": False,
        "responses_changed": 0,
        "unread": 0,
    }


def test_plain_merged_boundary() -> None:
    """ "th" and "e" become one token "the": the prompt ends before it, for the other response too."""
    tokenizer = build()
    made = tokenize_group(plain("a th", "e z", "b"), tokenizer, max_length=99)
    assert pieces(tokenizer, made.prompt_ids) == ["a", " "]
    assert [pieces(tokenizer, ids) for ids in made.responses_ids] == [
        ["the", " ", "z", "<eos>"],
        ["th", "b", "<eos>"],
    ]
    assert made.merged_boundary == 1


@pytest.mark.parametrize("written", ["b<eos>", "b<eos>\n", "b<eos> <eos>", "b"])
def test_plain_ends_once(written: str) -> None:
    tokenizer = build()
    made = tokenize_group(plain("a\n", written), tokenizer, max_length=99)
    assert pieces(tokenizer, made.responses_ids[0]) == ["b", "<eos>"]


@pytest.mark.parametrize("prompt", ["a\n", "<bos>a\n"])
def test_tokenizer_that_frames_plain_text(prompt: str) -> None:
    """The tokenizer's own beginning stands once, its own end does not cut prompt from response."""
    tokenizer = build(bos=True, eos=True)
    made = tokenize_group(plain(prompt, "b", "c<eos>"), tokenizer, max_length=99)
    assert pieces(tokenizer, made.prompt_ids) == ["<bos>", "a", "\n"]
    assert [pieces(tokenizer, ids) for ids in made.responses_ids] == [["b", "<eos>"], ["c", "<eos>"]]
    assert made.merged_boundary == 0
    assert tokenize_prompt(prompt, tokenizer) == made.prompt_ids


@pytest.mark.parametrize(
    ("template", "prompt", "response", "stops"),
    [
        (CHATML, "<turn>user\nhi<eos>\n<turn>assistant\n", "yes<eos>\n", ["<eos>"]),
        (END_OF_TURN, "<bos><turn>user\nhi<end><turn>assistant\n", "yes<end>", ["<eos>", "<end>"]),
        (BOTH_ENDS, "<turn>user\nhi<end>\n<turn>assistant\n", "yes<end>\n<eos>", ["<eos>", "<end>"]),
        (NO_END, "user: hi\nassistant:", " yes\n<eos>", ["<eos>"]),
        (THINKING, "<turn>user\nhi<eos>\n<turn>assistant\n", "yes<eos>\n", ["<eos>"]),
    ],
)
@pytest.mark.parametrize("bos", [False, True])
def test_chat(template: str, prompt: str, response: str, stops: list[str], bos: bool) -> None:
    tokenizer = build(template, bos=bos)  # what the tokenizer adds to plain text does not enter a conversation
    made = tokenize_group(chat("yes", "no"), tokenizer, max_length=99)
    assert text(tokenizer, made.prompt_ids) == prompt
    assert text(tokenizer, made.responses_ids[0]) == response
    assert text(tokenizer, made.responses_ids[1]) == response.replace("yes", "no")
    assert (made.merged_boundary, made.prompt_differs) == (0, template == THINKING)
    assert stop_ids(tokenizer, conversational=True) == tokenizer.convert_tokens_to_ids(stops)


def test_chat_prompt_is_what_generation_starts_from() -> None:
    tokenizer = build()
    group = chat("yes")
    assert tokenize_group(group, tokenizer, max_length=99).prompt_ids == tokenize_prompt(group.prompt, tokenizer)
    assert stop_ids(tokenizer, conversational=False) == [tokenizer.eos_token_id]


@pytest.mark.parametrize("written", ["yes<eos>", "yes<eos>\n", "yes<eos><eos>"])
def test_chat_ends_once(written: str) -> None:
    tokenizer = build(CHATML)
    made = tokenize_group(chat(written), tokenizer, max_length=99)
    assert text(tokenizer, made.responses_ids[0]) == "yes<eos>\n"
    assert made.special_in_text == 0


def test_response_of_several_turns() -> None:
    tokenizer = build()
    turns: Text = [message("assistant", "one"), message("assistant", "two")]
    made = tokenize_group(PromptGroup([message("user", "hi")], (turns,)), tokenizer, max_length=99)
    assert text(tokenizer, made.responses_ids[0]) == "one<eos>\n<turn>assistant\ntwo<eos>\n"


@pytest.mark.parametrize(
    ("group", "response", "count"),
    [
        (chat("say <eos> now"), "say <eos> now<eos>\n", 1),
        (chat("say <end>", prompt="<turn>x"), "say <end><eos>\n", 2),
        (plain("<turn>a\n", "say <eos> now", "b"), "say <eos> now<eos>", 1),
    ],
)
def test_special_tokens_in_text_end_no_response(group: PromptGroup, response: str, count: int) -> None:
    tokenizer = build()
    made = tokenize_group(group, tokenizer, max_length=99)
    assert text(tokenizer, made.responses_ids[0]) == response
    assert made.special_in_text == count


# --- lengths ------------------------------------------------------------------------------------------------


def lengths(prompt: int, *responses: int, **limits: Any) -> tuple[str, list[str], bool, int]:
    """Tokens p1 p2 ... and r1 r2 ..., here letters, cut to `limits`. A response counts without its end."""
    tokenizer = build()
    letters = "bcdfgijklmopqrsuvwxyz"
    group = plain(letters[:prompt], *(letters[:n].upper() for n in responses))
    made = tokenize_group(group, tokenizer, **limits)
    shown = [text(tokenizer, ids).replace("<eos>", "!") for ids in made.responses_ids]
    return text(tokenizer, made.prompt_ids), shown, made.prompt_truncated, made.responses_truncated


def test_nothing_is_cut_that_fits() -> None:
    assert lengths(6, 3, 1, max_length=10) == ("bcdfgi", ["BCD!", "B!"], False, 0)


def test_long_prompt_loses_its_beginning() -> None:
    """10 tokens, of which the longest response takes 4: the prompt keeps its last 6."""
    assert lengths(8, 3, 1, max_length=10) == ("dfgijk", ["BCD!", "B!"], True, 0)


def test_long_response_loses_its_end() -> None:
    """The prompt takes 4 of 10 tokens: 6 are left, and the end is lost with the rest."""
    assert lengths(4, 8, 5, 1, max_length=10) == ("bcdf", ["BCDFGI", "BCDFG!", "B!"], False, 1)


def test_long_prompt_and_response_share_the_length() -> None:
    assert lengths(8, 9, max_length=10) == ("fgijk", ["BCDFG"], True, 1)


def test_max_prompt_length() -> None:
    assert lengths(8, 9, max_length=10, max_prompt_length=3) == ("ijk", ["BCDFGIJ"], True, 1)
    assert lengths(8, 9, max_length=10, max_prompt_length=9) == ("bcdfgijk", ["BC"], False, 1)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_length": 1}, "max_length: 1 leaves no room"),
        ({"max_length": 8, "max_prompt_length": 8}, "max_prompt_length: a prompt of 8 tokens leaves no response"),
        ({"max_length": 8, "max_prompt_length": 0}, "max_prompt_length: a prompt of 0 tokens"),
    ],
)
def test_lengths_without_room(limits: dict[str, int], expected: str) -> None:
    with pytest.raises(InputError, match=expected) as error:
        tokenize_group(plain("a\n", "b"), build(), **limits)  # type: ignore[arg-type]
    assert "raise max_length" in str(error.value)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (plain("a\n", "b", ""), r"rows:1:responses\[1\]: the response has no token"),
        (plain("a\n", "<eos>"), r"rows:1:responses\[0\]: the response has no token"),
        (chat("yes", "<eos>\n"), r"rows:1:responses\[1\]: the response has no token"),
        (plain("", "b"), "rows:1:prompt: no token of the prompt"),
        (plain("th", "e"), "rows:1:prompt: no token of the prompt"),
    ],
)
def test_nothing_left(group: PromptGroup, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        tokenize_group(group, build(), max_length=99)


def test_template_refuses_a_role() -> None:
    group = PromptGroup([message("system", "s"), message("user", "u")], ([message("assistant", "a")],), where="rows:7")
    with pytest.raises(InputError, match="rows:7:prompt: the chat template refuses roles system, user: no system"):
        tokenize_group(group, build(STRICT), max_length=99)


def test_require_usable() -> None:
    require_usable(build(), conversational=True, where="model")
    require_usable(build(None), conversational=False, where="model")
    with pytest.raises(InputError, match="model: the data is conversational, the tokenizer has no chat template"):
        require_usable(build(None), conversational=True, where="model")
    endless = build(None)
    endless.eos_token = None
    with pytest.raises(InputError, match="model: the tokenizer has no eos_token"):
        require_usable(endless, conversational=False, where="model")


# --- identity -----------------------------------------------------------------------------------------------


def test_identity_is_of_what_changes_ids() -> None:
    tokenizer = build()
    same = identity(tokenizer, 99, None)
    tokenizer.pad_token = "<eos>"
    tokenizer(["a", "bcd"], padding="max_length", max_length=9, truncation=True)
    assert identity(tokenizer, 99, None) == same == json.loads(json.dumps(same))
    others = [
        identity(tokenizer, 98, None),
        identity(tokenizer, 99, 50),
        identity(build(END_OF_TURN), 99, None),
        identity(build(bos=True), 99, None),
    ]
    tokenizer.eos_token = "<end>"
    others.append(identity(tokenizer, 99, None))
    keys = {json.dumps(one, sort_keys=True) for one in [same, *others]}
    assert len(keys) == 6


def test_identity_survives_saving(tmp_path: Any) -> None:
    tokenizer = build()
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert identity(loaded, 99, None) == identity(tokenizer, 99, None)


# --- TRL as the oracle --------------------------------------------------------------------------------------


def trl_rows(tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as TRL's DPOTrainer tokenizes them: its own code, given a tokenizer and no model."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    arguments = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode=DPOConfig.truncation_mode)
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    prepared = DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, arguments, "train")
    return list(prepared)


def words(rng: random.Random) -> str:
    return "".join(rng.choices(["the", "th", "e", "an", "d", " ", ".", "\n", "é"], k=rng.randint(1, 8))) + "x"


@pytest.mark.parametrize("bos", [False, True])
def test_plain_equals_trl(bos: bool) -> None:
    rng = random.Random(0)
    tokenizer = build(bos=bos)
    rows = [{"prompt": "x" + words(rng)[:-1], "chosen": words(rng), "rejected": words(rng)} for _ in range(60)]
    merged = 0
    for row, theirs in zip(rows, trl_rows(tokenizer, rows), strict=True):
        ours = tokenize_group(plain(row["prompt"], row["chosen"], row["rejected"]), tokenizer, max_length=999)
        assert ours.prompt_ids == theirs["prompt_ids"]
        assert ours.responses_ids == [theirs["chosen_ids"], theirs["rejected_ids"]]
        merged += ours.merged_boundary
    assert merged > 0


@pytest.mark.parametrize("template", [CHATML, END_OF_TURN, BOTH_ENDS, THINKING])
def test_chat_equals_trl(template: str) -> None:
    rng = random.Random(1)
    tokenizer = build(template)
    groups = [chat(words(rng), words(rng), prompt=words(rng)) for _ in range(40)]
    rows = [{"prompt": g.prompt, "chosen": g.responses[0], "rejected": g.responses[1]} for g in groups]
    for group, theirs in zip(groups, trl_rows(tokenizer, rows), strict=True):
        ours = tokenize_group(group, tokenizer, max_length=999)
        assert ours.prompt_ids == theirs["prompt_ids"]
        assert ours.responses_ids == [theirs["chosen_ids"], theirs["rejected_ids"]]
