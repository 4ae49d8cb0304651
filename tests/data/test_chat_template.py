"""Chat templates of many kinds: what is trained, where answers stop, and TRL's own tokenization as the oracle."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modpo.base.errors import InputError
from modpo.data.chat_template import render_chat, stop_ids, template_variables, turn_end
from modpo.data.prompt_group import PromptGroup
from modpo.data.text_notes import COUNTED, text_notes
from modpo.data.tokens import answer_text, require_usable, tokenize_group, tokenize_prompt

ASKED = "{% if add_generation_prompt %}"
THOUGHTS = (
    "{% set c = m.content %}{% set why = '' %}{% if m.reasoning_content is string %}{% set why = m.reasoning_content %}"
    "{% elif '</think>' in c %}{% set why = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    f"{ASKED}<|im_start|>assistant\n{{% endif %}}",
    "phi3": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    f"{ASKED}<|assistant|>\n{{% else %}}{{{{ eos_token }}}}{{% endif %}}",
    "first_llama3": "{% for m in messages %}"
    "{% set c = '<|hdr|>' + m.role + '<|/hdr|>\n\n' + m.content | trim + '<|eot|>' %}"
    "{% if loop.first %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}<|hdr|>assistant<|/hdr|>\n\n",
    "always_appends": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n",
    "llama3": "{{ bos_token }}{% for m in messages %}<|hdr|>{{ m.role }}<|/hdr|>\n\n{{ m.content | trim }}<|eot|>"
    f"{{% endfor %}}{ASKED}<|hdr|>assistant<|/hdr|>\n\n{{% endif %}}",
    "ordinary_tokens": "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|turnend|>\n{% endfor %}"
    f"{ASKED}<|turn|>assistant\n{{% endif %}}",
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}" + ASKED + "<start_of_turn>model\n{% endif %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]"
    "{% else %} {{ m.content.strip() }}{{ eos_token }}{% endif %}{% endfor %}",
    "llama2": "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "command_r": "{{ bos_token }}{% for m in messages %}<|START|>{{ {'user': '<|USER|>', 'assistant': '<|CHATBOT|>', "
    "'system': '<|SYSTEM|>'}[m.role] }}{{ m.content }}<|END_OF_TURN|>{% endfor %}"
    + ASKED
    + "<|START|><|CHATBOT|>{% endif %}",
    "r1": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|person|>{{ m.content }}{% else %}"
    "{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "<|bot|>{{ c }}{{ eos_token }}{% endif %}{% endfor %}" + ASKED + "<|bot|><think>\n{% endif %}",
    "qwen3": "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}"
    + THOUGHTS
    + "<|im_start|>assistant\n{% if loop.index0 > ns.last %}<think>\n{{ why }}\n</think>\n\n{% endif %}"
    "{{ c }}<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    + ASKED
    + "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}",
    "no_end": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + ASKED + "assistant:{% endif %}",
    "never_asks": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "unless_answered": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'assistant' %}<|im_start|>assistant\n{% endif %}",
    "system_first": "{% if messages[0].role != 'system' %}{{ raise_exception('begin with system') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    f"{ASKED}<|im_start|>assistant\n{{% endif %}}",
}
SPECIAL = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|hdr|>",
    "<|/hdr|>",
    "<|eot|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|START|>",
    "<|USER|>",
    "<|CHATBOT|>",
    "<|SYSTEM|>",
    "<|END_OF_TURN|>",
    "<|person|>",
    "<|bot|>",
]
ORDINARY = ["<|turn|>", "<|turnend|>", "  "]  # never split, and kept when special tokens are left out
EOS = {"chatml": "<|im_end|>"}

# What follows the answer "yes" in training, and what ends an answer.
ENDS = {
    "chatml": ("<|im_end|>\n", ["<|im_end|>"]),
    "phi3": ("<|end|>\n</s>", ["</s>", "<|end|>"]),
    "first_llama3": ("<|eot|>", ["</s>", "<|eot|>"]),
    "always_appends": ("<|im_end|>\n", ["</s>", "<|im_end|>"]),
    "llama3": ("<|eot|>", ["</s>", "<|eot|>"]),
    "ordinary_tokens": ("<|turnend|>\n", ["</s>", "<|turnend|>"]),
    "gemma": ("<end_of_turn>\n", ["</s>", "<end_of_turn>"]),
    "mistral": ("</s>", ["</s>"]),
    "llama2": (" </s>", ["</s>"]),
    "command_r": ("<|END_OF_TURN|>", ["</s>", "<|END_OF_TURN|>"]),
    "r1": ("</s>", ["</s>"]),
    "qwen3": ("<|im_end|>\n", ["</s>", "<|im_end|>"]),
    "no_end": ("\n</s>", ["</s>"]),
    "never_asks": ("<|im_end|>\n", ["</s>", "<|im_end|>"]),
    "unless_answered": ("<|im_end|>\n", ["</s>", "<|im_end|>"]),
    "system_first": ("<|im_end|>\n", ["</s>", "<|im_end|>"]),
}
# Where TRL's text is not kept: the header of a next turn is cut, an end is put where there is none.
NOT_TRLS = ("first_llama3", "always_appends", "no_end")


def tokenizer_for(name: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a byte, and the tokens of all templates."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *ORDINARY]
    backend = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in ORDINARY])
    eos = EOS.get(name, "</s>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos)
    tokenizer.chat_template = template or TEMPLATES[name]
    return tokenizer


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chat(*responses: str, before: tuple[dict[str, Any], ...] = (), **settings: Any) -> PromptGroup:
    answers = tuple([said("assistant", response)] for response in responses)
    return PromptGroup([*before, said("user", "How far?")], answers, where="rows:1", **settings)


def group_for(name: str, *responses: str) -> PromptGroup:
    return chat(*responses, before=(said("system", "Be brief."),) if name == "system_first" else ())


def notes(group: PromptGroup, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    made = tokenize_group(group, tokenizer, max_length=999)
    return text_notes({name: [int(getattr(made, name))] for name in COUNTED}, [group], tokenizer)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_a_turn(name: str) -> None:
    tokenizer, (behind, stops) = tokenizer_for(name), ENDS[name]
    made = tokenize_group(group_for(name, "yes", "no, not so far"), tokenizer, max_length=999)
    for ids, word in zip(made.responses_ids, ("yes", "no, not so far"), strict=True):
        assert tokenizer.decode(ids).endswith(word + behind)
    found = stop_ids(tokenizer, conversational=True)
    assert sorted(tokenizer.convert_ids_to_tokens(found)) == sorted(stops)
    assert stop_ids(tokenizer, conversational=True, own=[3, 0]) == sorted({*found, 0, 3})
    assert stop_ids(tokenizer, conversational=False) == [tokenizer.eos_token_id]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_trl(name: str) -> None:
    """TRL's own code, given a tokenizer and no model."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tokenizer = tokenizer_for(name)
    answers = ("It is\nfar.", " yes  ", "<think>\nLight takes 1.3 s.\n</think>\n\n384,400 km.", "no", "a", "é!")
    pairs = list(zip(answers[::2], answers[1::2], strict=True))
    groups = [group_for(name, *pair) for pair in pairs]
    rows = [{"prompt": g.prompt, "chosen": g.responses[0], "rejected": g.responses[1]} for g in groups]
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode=DPOConfig.truncation_mode)
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    for group, theirs in zip(
        groups, DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, arguments, ""), strict=True
    ):
        ours = tokenize_group(group, tokenizer, max_length=999)
        assert ours.prompt_ids == theirs["prompt_ids"]
        for ids, wanted in zip(ours.responses_ids, (theirs["chosen_ids"], theirs["rejected_ids"]), strict=True):
            if name == "no_end":
                wanted = [*wanted, tokenizer.eos_token_id]
            assert ids == wanted[: len(ids)]
            assert (ids == wanted) is (name not in NOT_TRLS[:2])


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_trained_follows_what_is_answered(name: str) -> None:
    tokenizer = tokenizer_for(name)
    group = group_for(name, "yes", "no")
    made, asked = tokenize_group(group, tokenizer, max_length=999), tokenize_prompt(group.prompt, tokenizer)
    assert made.prompt_differs is (name == "r1")
    assert (made.prompt_ids == asked) is (name != "r1")
    found = notes(group, tokenizer)
    if name == "r1":
        assert len(found) == 1
        assert r"trained: '<s><|person|>How far?<|bot|>'; answered: '<s><|person|>How far?<|bot|><think>\n'" in found[0]
    else:
        assert found == []


# --- responses that a template changes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "written", "trained"),
    [
        ("r1", "<think>\nLight takes 1.3 s.\n</think>\n\n384,400 km.", "\n\n384,400 km."),
        ("llama3", "384,400 km.\n\n", "384,400 km."),
        ("llama2", " far", None),  # the template writes a space before the content
        ("qwen3", "<think>Why?</think>far", "<think>\nWhy?\n</think>\n\nfar"),
        ("qwen3", "far", None),
        ("qwen3", "<think>\nWhy?\n</think>\n\nfar", None),
        ("chatml", " far\n", None),
        ("chatml", "far<|im_end|>", None),
    ],
)
def test_a_response_that_is_not_whole_is_said(name: str, written: str, trained: str | None) -> None:
    tokenizer = tokenizer_for(name)
    group = chat(written, "no")
    changed = [note for note in notes(group, tokenizer) if "not trained as they are written" in note]
    if trained is None or (written.strip() == written and name == "llama2") or name == "llama2":
        assert changed == []
    else:
        (note,) = changed
        assert note.startswith("1 responses are not")
        assert f"(written: {written!r}; trained: {trained!r}; rows:1)" in note
    assert not any("share a token" in note for note in notes(group, tokenizer))


def test_a_response_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(InputError, match=r"rows:1:responses\[0\]: the chat template leaves nothing of the response"):
        tokenize_group(chat("<think>\nHm.\n</think>", "no"), tokenizer_for("r1"), max_length=99)


def test_an_end_of_turn_that_is_spelled_out_stands_once() -> None:
    for name, (behind, stops) in ENDS.items():
        tokenizer = tokenizer_for(name)
        for stop in stops:
            made = tokenize_group(group_for(name, f"far{stop}", "far"), tokenizer, max_length=99)
            assert made.responses_ids[0] == made.responses_ids[1]
            assert tokenizer.decode(made.responses_ids[0]).endswith(f"far{behind}")


def test_an_answer_is_read_without_its_end() -> None:
    tokenizer = tokenizer_for("ordinary_tokens")
    ends = stop_ids(tokenizer, conversational=True)
    assert answer_text(tokenizer("far<|turnend|>")["input_ids"], ends, tokenizer) == "far"
    assert answer_text(tokenizer(" far")["input_ids"], ends, tokenizer) == "far"
    assert answer_text([], ends, tokenizer) == ""


@pytest.mark.parametrize("change", ["upper", "lower", "reverse", "truncate(9, True, '')"])
def test_the_end_of_a_turn_is_found_where_contents_are_changed(change: str) -> None:
    template = TEMPLATES["chatml"].replace("m.content", f"m.content | {change}")
    tokenizer = tokenizer_for("", template)
    assert turn_end(tokenizer).text == "<|im_end|>\n"
    assert tokenizer.convert_ids_to_tokens(stop_ids(tokenizer, conversational=True)) == ["</s>", "<|im_end|>"]
    made = tokenize_group(chat("yes", "no"), tokenizer, max_length=99)
    assert [tokenizer.decode(ids)[-11:] for ids in made.responses_ids] == ["<|im_end|>\n"] * 2
    prompt = [said("system", "Be kind."), said("user", "word " * 40)]
    kept = tokenizer.decode(tokenize_prompt(prompt, tokenizer, longest=60))
    assert kept.startswith(tokenizer.apply_chat_template(prompt[:1], tokenize=False))


def test_an_answer_is_read_without_an_end_that_is_no_token() -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n### End\n{% endfor %}" + ASKED
    tokenizer = tokenizer_for("", f"{template}assistant: {{% endif %}}")
    (trained,) = tokenize_group(chat("far"), tokenizer, max_length=99).responses_ids
    assert tokenizer.decode(trained) == "far\n### End\n</s>"
    ends, turn = stop_ids(tokenizer, conversational=True), turn_end(tokenizer)
    assert answer_text(trained, ends, tokenizer, turn) == "far"
    assert answer_text(trained, ends, tokenizer) == "far\n### End"  # plain text has no turns
    assert answer_text(tokenizer("far, in the ### End of it")["input_ids"], ends, tokenizer, turn)[-2:] == "it"


# --- what rows say beyond role and content ------------------------------------------------------------------


def test_keys_of_messages_reach_the_template() -> None:
    tokenizer = tokenizer_for("qwen3")
    answer = [said("assistant", "far", reasoning_content="Why?")]
    group = PromptGroup([said("user", "How far?")], (answer, [said("assistant", "far")]), where="rows:1")
    made = tokenize_group(group, tokenizer, max_length=99)
    assert tokenizer.decode(made.responses_ids[0]) == "<think>\nWhy?\n</think>\n\nfar<|im_end|>\n"
    assert made.responses_ids[0] != made.responses_ids[1]
    assert made.unread == 0


def test_what_the_template_does_not_write_is_said() -> None:
    tokenizer = tokenizer_for("r1")
    answer = [said("assistant", "far", reasoning_content="Why?", name="Ann")]
    group = PromptGroup(
        [said("user", "How far?", name="Bob")], (answer,), where="rows:1", template_kwargs={"enable_thinking": False}
    )
    (note,) = [note for note in notes(group, tokenizer) if "not written by the chat template" in note]
    for name in ("`chat_template_kwargs.enable_thinking`", "key `reasoning_content`", "key `name` of a message"):
        assert name in note
    silent = tokenizer_for("", "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    group = chat("far", before=(said("developer", "Be brief."),))
    with pytest.raises(InputError, match="leaves nothing of the response 'far'"):
        tokenize_group(group, silent, max_length=99)
    some = TEMPLATES["mistral"].replace("{% else %}", "{% elif m.role == 'assistant' %}")
    assert "(message of role developer; rows:1)" in notes(group, tokenizer_for("", some))[0]


def test_variables_of_the_template() -> None:
    tokenizer = tokenizer_for("qwen3")
    group = chat("far", template_kwargs={"enable_thinking": False})
    made = tokenize_group(group, tokenizer, max_length=99)
    opened = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert tokenizer.decode(made.prompt_ids).endswith(opened)
    assert tokenizer.decode(made.responses_ids[0]) == "far<|im_end|>\n"
    assert tokenizer.decode(tokenize_prompt(group.prompt, tokenizer, group.template_kwargs)).endswith(opened)
    assert "enable_thinking" in template_variables(TEMPLATES["qwen3"])
    with_tag = "{% generation %}{{ messages }}{% endgeneration %}{% break %}{{ mine }}"
    assert template_variables("{% for m in messages %}" + with_tag + "{% endfor %}") == {"messages", "mine"}


def test_a_variable_that_no_template_reads_is_refused() -> None:
    usable = {"conversational": True, "where": "model", "template_kwargs": {"enable_thinking": True}}
    require_usable(tokenizer_for("qwen3"), **usable)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"model:chat_template_kwargs.enable_thinking: the chat template of the model"):
        require_usable(tokenizer_for("r1"), **usable)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"chat_template_kwargs.enable_thinking: has no effect on plain text"):
        require_usable(tokenizer_for("qwen3"), **usable | {"conversational": False})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% if tools|length > 0 %}x{% endif %}", r"fails on roles user \(TypeError: object of type 'NoneType'"),
        ("{{ {'system': 1}[messages[0].role] + 'x' }}", r"refuses roles user: .*user"),
        ("{% for m in messages %}{{ m.content + m.name }}{% endfor %}", r"refuses roles user: .*name"),
        ("{{ 1 / 0 }}", r"fails on roles user \(ZeroDivisionError"),
        ("{% for %}", "refuses roles user: "),
    ],
)
def test_a_template_that_fails_is_one_line(template: str, problem: str) -> None:
    with pytest.raises(InputError, match=f"rows:7:prompt: the chat template {problem}") as error:
        render_chat([said("user", "hi")], tokenizer_for("", template), "rows:7")
    assert len(str(error.value).splitlines()) == 1
    assert "; fix: " in str(error.value)


def test_several_templates_without_a_default_are_one_line() -> None:
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = {"one": TEMPLATES["chatml"], "two": TEMPLATES["llama3"]}
    with pytest.raises(InputError, match="rows:1:prompt: the chat template fails on roles user"):
        tokenize_group(chat("yes"), tokenizer, max_length=99)
    tokenizer.chat_template["default"] = TEMPLATES["chatml"]
    assert tokenizer.decode(tokenize_group(chat("yes"), tokenizer, max_length=99).responses_ids[0]) == "yes<|im_end|>\n"


def test_several_templates_without_a_default_are_said_once_for_all_rows() -> None:
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = {"chat": TEMPLATES["chatml"], "tool_use": TEMPLATES["phi3"]}
    with pytest.raises(InputError) as raised:
        require_usable(tokenizer, conversational=True, where="model", template_kwargs={"tone": "dry"})
    assert str(raised.value) == (
        "model: the tokenizer has several chat templates (chat, tool_use), and none is the default; "
        "fix: call one of them `default` in the model's folder"
    )
    tokenizer.chat_template |= {"default": TEMPLATES["chatml"]}
    require_usable(tokenizer, conversational=True, where="model")


def test_a_template_that_refuses_every_probe_says_nothing_of_ends() -> None:
    tokenizer = tokenizer_for("", "{{ raise_exception('no') }}")
    assert turn_end(tokenizer).tokens == {}
    assert stop_ids(tokenizer, conversational=True) == [tokenizer.eos_token_id]


# --- prompts that are too long ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in ("gemma", "system_first", "r1")])
def test_a_long_prompt_keeps_its_beginning_and_its_newest_turns(name: str) -> None:
    tokenizer = tokenizer_for(name)
    system = () if name in ("mistral", "llama2") else (said("system", "Be brief."),)
    old = (said("user", "old " * 40), said("assistant", "one"), said("user", "older"), said("assistant", "two"))
    new = [said("user", "How far is the moon? " * 5)]
    whole = [*system, *old, *new]
    kept = tokenize_prompt([*system, *new], tokenizer)
    assert tokenize_prompt(whole, tokenizer, longest=len(kept)) == kept
    assert tokenize_prompt(whole, tokenizer, longest=10_000) == tokenize_prompt(whole, tokenizer)
    cut = tokenize_prompt(whole, tokenizer, longest=len(kept) - 30)
    opening = render_chat([*system, said("user", "How")], tokenizer, "").partition("How")[0]
    assert len(cut) == len(kept) - 30
    assert tokenizer.decode(cut).startswith(opening)
    assert tokenizer.decode(kept).endswith(tokenizer.decode(cut).removeprefix(opening))
    group = PromptGroup(whole, ([said("assistant", "far")],))
    made = tokenize_group(group, tokenizer, max_length=999, max_prompt_length=len(kept) - 30)
    assert made.prompt_ids == cut
    assert made.prompt_truncated


def test_a_prompt_that_is_almost_all_system_turn_keeps_its_end() -> None:
    tokenizer = tokenizer_for("llama3")
    prompt = [said("system", "rule " * 30), said("user", "How far?")]
    cut = tokenize_prompt(prompt, tokenizer, longest=40)
    whole = tokenize_prompt(prompt, tokenizer)
    assert cut == whole[:1] + whole[-39:]
