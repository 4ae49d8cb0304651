"""A conversation as the model reads it, and what is forgotten of a long one."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from modpo.data.chat_template import stop_ids
from modpo.data.tokens import tokenize_prompt
from modpo.forward.conversation import Conversation


def test_a_conversation_by_the_chat_template(tiny_model: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    conversation = Conversation(tokenizer, room=1000)
    assert conversation.ends == stop_ids(tokenizer, conversational=True)
    conversation.exchanges.append(("one", "two"))
    expected = "<turn>user\none<eos>\n<turn>assistant\ntwo<eos>\n<turn>user\nthree<eos>\n<turn>assistant\n"
    assert tokenizer.decode(conversation.ids("three")) == expected


def test_a_conversation_without_a_template_is_one_text(tiny_model: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    conversation = Conversation(tokenizer, room=1000)
    assert conversation.ends == [tokenizer.eos_token_id]
    assert tokenizer.decode(conversation.ids("The sea is")) == "The sea is"
    conversation.exchanges.append(("The sea is", " blue."))
    assert tokenizer.decode(conversation.ids("The sun")) == "The sea is blue.\nThe sun"


def test_what_does_not_fit_is_forgotten_from_the_beginning(tiny_model: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    conversation = Conversation(tokenizer, room=60)
    conversation.exchanges += [("first " * 5, "answer"), ("second", "yes")]
    alone = [{"role": "user", "content": "third"}]
    kept = [{"role": "user", "content": "second"}, {"role": "assistant", "content": "yes"}, *alone]
    assert conversation.ids("third") == tokenize_prompt(kept, tokenizer)
    long = conversation.ids("third" * 50)
    assert len(long) == 60
    whole = tokenize_prompt([{"role": "user", "content": "third" * 50}], tokenizer)
    opening = len(tokenizer("<turn>user\n")["input_ids"])
    assert long == whole[:opening] + whole[opening - 60 :]
