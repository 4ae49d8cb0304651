"""Reward models: what they read, what of their logits is the reward, and what is refused before a weight is read."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from modpo.base.errors import EnvironmentFault, InputError, NumericError
from modpo.experiment.sections import ModelSection, RewardSection
from modpo.rewards import classifier as classifier_module
from modpo.rewards.batch import RewardContext
from modpo.rewards.classifier import ClassifierReward
from modpo.rewards.classifier_input import ClassifierInput
from modpo.rewards.loading import load_reward, probe
from tests.kit import edit_json, flip_a_bit
from tests.rewards.batches import texts

WHERE = "experiment.yaml:9"
LABELS = ["bad", "good", "neutral"]
CONTEXT = RewardContext(ModelSection("unused", dtype="float32"), Path("unused"), max_length=64)


BATCH = texts(
    ["Say hi", "Say hi", "Count to three, please", "Why?", "Say hi", "Name a colour"],
    ["hi", "hello there, and welcome to this place", "one two three", "Because. " * 9, "", "blue"],
)


def classifier(folder: Path | str, context: RewardContext = CONTEXT, **section: object) -> ClassifierReward:
    reward = load_reward(RewardSection(reward_model=str(folder), **section), context, where=WHERE, name="helpful")
    assert isinstance(reward, ClassifierReward)
    return reward


def build(tiny_model: Path, folder: Path, **settings: object) -> Path:
    """A Llama with a classification head, drawn at random, and the tiny model's tokenizer."""
    from transformers import AutoConfig, LlamaForSequenceClassification

    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(tiny_model, **settings)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scalar(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tiny_model, tmp_path_factory.mktemp("rewards") / "scalar", num_labels=1)


@pytest.fixture(scope="session")
def labelled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tiny_model, tmp_path_factory.mktemp("rewards") / "labelled", id2label=dict(enumerate(LABELS)))


@pytest.fixture
def copy(scalar: Path, tmp_path: Path) -> Path:
    """A copy of the scalar model that a test may damage."""
    return shutil.copytree(scalar, tmp_path / "copy")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer with two labels, one token a byte, [CLS] and [SEP] around the segments."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    special = ["[CLS]", "[SEP]", "[PAD]"]
    vocabulary = {piece: n for n, piece in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=2,
        initializer_range=0.3,
        id2label={0: "no", 1: "yes"},
    )
    folder = tmp_path_factory.mktemp("rewards") / "encoder"
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    """The head on the last token's hidden state, of one text alone: (labels,)."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1])


def ids_of(folder: Path, text: str) -> list[int]:
    return AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]


def conversation(prompt: str, response: str) -> str:
    return f"<turn>user\n{prompt}<eos>\n<turn>assistant\n{response}<eos>\n"


# --- scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_scores_are_those_of_each_text_alone_in_the_callers_order(scalar, batch_size):
    expected = [
        llama_logits(scalar, ids_of(scalar, conversation(p, r))).item()
        for p, r in zip(BATCH.prompts, BATCH.responses, strict=True)
    ]
    assert max(expected) - min(expected) > 0.1
    reward = classifier(scalar, batch_size=batch_size)
    assert reward(BATCH) == pytest.approx(expected, abs=1e-4)
    order = list(range(len(BATCH)))
    random.Random(0).shuffle(order)
    assert reward(BATCH.only(order)) == pytest.approx([expected[i] for i in order], abs=1e-4)
    assert reward(BATCH.rows(0, 0)) == []


def test_a_probe_scores_twice_the_same(scalar):
    assert len(probe(classifier(scalar), BATCH)) == len(BATCH)


def test_messages_and_plain_texts_are_one_conversation(scalar):
    reward = classifier(scalar)
    chat = texts(
        [[{"role": "user", "content": p}] for p in BATCH.prompts],
        [[{"role": "assistant", "content": r}] for r in BATCH.responses],
    )
    assert reward(chat) == pytest.approx(reward(BATCH), abs=1e-5)
    several = texts([[*chat.prompts[0], *chat.responses[0], *chat.prompts[2]]], [chat.responses[2]])
    text = conversation("Say hi", "hi") + conversation("Count to three, please", "one two three")
    assert reward(several) == pytest.approx([llama_logits(scalar, ids_of(scalar, text)).item()], abs=1e-4)


def test_of_several_labels_the_named_one_counts_by_its_log_odds(labelled):
    logits = llama_logits(labelled, ids_of(labelled, conversation("Why?", "Because."))).double()
    batch = texts(["Why?"], ["Because."])
    for index, label in enumerate(LABELS):
        probability = logits.softmax(0)[index]
        expected = torch.log(probability / (1 - probability)).item()
        assert classifier(labelled, label=label)(batch) == pytest.approx([expected], abs=1e-4)


def test_labels_that_do_not_exclude_one_another_keep_their_logits(labelled, tmp_path):
    folder = shutil.copytree(labelled, tmp_path / "independent")
    edit_json(folder / "config.json", problem_type="multi_label_classification")
    logits = llama_logits(labelled, ids_of(labelled, conversation("Why?", "Because.")))
    scores = classifier(folder, label="good")(texts(["Why?"], ["Because."]))
    assert scores == pytest.approx([logits[1].item()], abs=1e-4)


def test_the_number_format_is_the_sections_or_the_experiments(scalar):
    half = replace(CONTEXT, model=replace(CONTEXT.model, dtype="bfloat16"))
    for reward in (classifier(scalar, half), classifier(scalar, dtype="bfloat16")):
        assert reward._model.dtype == torch.bfloat16
        assert reward(BATCH) == pytest.approx(classifier(scalar)(BATCH), abs=0.2)
    assert classifier(scalar, half, dtype="float32")._model.dtype == torch.float32


def test_a_released_model_is_read_again(scalar):
    reward = classifier(scalar)
    before, model = reward(BATCH), reward._model
    reward.release()
    assert reward(BATCH) == before
    assert reward._model is not model


def test_a_score_that_is_not_finite_names_its_row(copy):
    weights = load_file(copy / "model.safetensors")
    weights["model.embed_tokens.weight"][ids_of(copy, "z")[0]] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    batch = texts(["a", "b", "c"], ["fine", "zzz", "fine"])
    with pytest.raises(NumericError, match=r"^rows.jsonl:2:helpful: nan is not finite .*; fix: .*dtype$"):
        classifier(copy)(batch)


# --- what is read -------------------------------------------------------------------------------------------


def with_beginning(folder: Path, *, template: bool) -> None:
    """A tokenizer that writes <turn> before every text, as Llama's writes its beginning-of-text."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<turn> $A", special_tokens=[("<turn>", tokenizer.convert_tokens_to_ids("<turn>"))]
    )
    chat_template = "<turn>{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}"
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token="<turn>",
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template=chat_template if template else None,
    )
    made.save_pretrained(folder)
    if not template:
        (folder / "chat_template.jinja").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("template", "expected"), [(True, "<turn>user: a<eos>assistant: b<eos>"), (False, "<turn>ab<eos>")]
)
def test_the_beginning_of_text_stands_once(copy, template, expected):
    with_beginning(copy, template=template)
    reward = classifier(copy)
    assert reward._input.encode("a", "b", "").input_ids == ids_of(copy, expected)
    score = llama_logits(copy, ids_of(copy, expected)).item()
    assert reward(texts(["a"], ["b"])) == pytest.approx([score], abs=1e-4)


def test_without_a_template_messages_are_joined_by_blank_lines(copy):
    with_beginning(copy, template=False)
    read = classifier(copy)._input
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    ids = read.encode(prompt, [{"role": "assistant", "content": "d"}], "").input_ids
    assert ids == ids_of(copy, "<turn>a\n\nb\n\nc\n\nd<eos>")
    assert read.encode("a", "b<eos>", "").input_ids == ids_of(copy, "<turn>ab<eos>")


def test_what_is_too_long_loses_the_prompts_beginning_and_says_so_once(copy, capsys):
    with_beginning(copy, template=True)
    reward = classifier(copy, max_length=32)
    whole = ids_of(copy, f"<turn>user: {'long ' * 9}<eos>assistant: short<eos>")
    encoded = reward._input.encode("long " * 9, "short", "")
    assert encoded.input_ids == [whole[0], *whole[-31:]]
    assert encoded.cut
    response = "x" * 60 + "!"
    assert reward._input.encode("long " * 9, response, "").input_ids == [
        whole[0],
        *ids_of(copy, response + "<eos>")[-31:],
    ]
    batch = texts(["long " * 9], ["short"])
    assert reward(batch) == pytest.approx([llama_logits(copy, encoded.input_ids).item()], abs=1e-4)
    reward(batch)
    said = capsys.readouterr()
    assert (said.out + said.err).count("reward helpful: a prompt loses its beginning") == 1


def test_the_default_length_is_the_models_own(copy):
    assert classifier(copy)._input.max_length == 2048
    edit_json(copy / "tokenizer_config.json", model_max_length=300)
    assert classifier(copy)._input.max_length == 300
    assert classifier(copy, max_length=301)._input.max_length == 301


@pytest.mark.parametrize("max_length", [0, 2049])
def test_a_length_that_the_model_does_not_read_is_refused(scalar, max_length):
    with pytest.raises(InputError, match=rf"reward.max_length: is {max_length}, .* from 1 to 2048 tokens; fix: "):
        classifier(scalar, max_length=max_length)


def test_positions_that_start_behind_the_padding_are_not_offered(encoder, tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    folder = shutil.copytree(encoder, tmp_path / "roberta")
    config = RobertaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
        pad_token_id=2,
        num_labels=1,
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)
    reward = classifier(folder)
    assert reward._input.max_length == 37
    assert len(reward._input.encode("p" * 50, "r" * 5, "").input_ids) == 37
    reward(texts(["p" * 50], ["r" * 5]))


def test_a_conversation_that_the_template_refuses_names_its_row(copy):
    (copy / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(
        InputError, match=r"^rows.jsonl:1:prompt: .* refuses roles user, assistant: no system role; fix"
    ):
        classifier(copy)(BATCH)


# --- encoders -----------------------------------------------------------------------------------------------


def test_an_encoder_reads_prompt_and_response_as_two_segments(encoder):
    reward = classifier(encoder, label="yes", batch_size=2)
    ids = ids_of(encoder, "[CLS]Why?[SEP]Because.[SEP]")
    encoded = reward._input.encode("Why?", "Because.", "")
    assert (encoded.input_ids, encoded.token_type_ids) == (ids, [0] * 6 + [1] * 9)
    model = AutoModelForSequenceClassification.from_pretrained(encoder).eval()
    batch = texts(["Why?", "Why?", "a", "a longer question"], ["Because.", "", "b", "c d e f g h"])
    expected = []
    for prompt, response in zip(batch.prompts, batch.responses, strict=True):
        ids = [ids_of(encoder, f"[CLS]{prompt}[SEP]"), ids_of(encoder, f"{response}[SEP]")]
        segments = torch.tensor([[0] * len(ids[0]) + [1] * len(ids[1])])
        with torch.no_grad():
            no, yes = model(torch.tensor([ids[0] + ids[1]]), token_type_ids=segments).logits[0]
        expected.append((yes - no).item())
    assert reward(batch) == pytest.approx(expected, abs=1e-4)
    other = classifier(encoder, label="no")
    assert other(batch) == pytest.approx([-score for score in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        ("0123456789", "abcdef", "[CLS]56789[SEP]abcdef[SEP]"),
        ("0123456789", "abcdefghijk", "[CLS][SEP]abcdefghijk[SEP]"),
        ("0123456789", "abcdefghijklmnop", "[CLS][SEP]fghijklmnop[SEP]"),
        ("01234", "abcdef", "[CLS]01234[SEP]abcdef[SEP]"),
    ],
)
def test_an_encoder_keeps_the_responses_end(encoder, prompt, response, expected):
    read = ClassifierInput(AutoTokenizer.from_pretrained(encoder), 14)
    encoded = read.encode(prompt, response, "")
    assert encoded.input_ids == ids_of(encoder, expected)
    assert encoded.cut == (prompt not in expected)


# --- refusals -----------------------------------------------------------------------------------------------


def test_a_language_model_is_refused(tiny_model):
    with pytest.raises(InputError) as caught:
        classifier(tiny_model)
    assert str(caught.value).startswith(
        f"{WHERE}:objectives.helpful.reward.reward_model: {tiny_model} (LlamaForCausalLM)"
    )
    assert "no classification head: score.weight is missing; fix: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_head_of_another_width_is_refused(copy):
    edit_json(copy / "config.json", id2label={"0": "a", "1": "b"})
    with pytest.raises(
        InputError, match=r"score.weight is \(1, 64\), but config.json makes it \(2, 64\); fix: .*num_labels"
    ):
        classifier(copy)


def test_a_model_without_some_of_its_weights_is_refused_when_it_is_read(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    reward = classifier(copy)
    with pytest.raises(
        InputError, match=r"lacks 1 of the model's tensors \(model.layers.1.mlp.up_proj.weight\); fix: "
    ):
        reward(BATCH)


def test_damaged_weights_are_refused(copy):
    (copy / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match=r"model.safetensors cannot be read \(.*\); fix: fetch or save it again"):
        classifier(copy)


def test_pickled_weights_are_refused(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no .safetensors weights; fix: .*pickled weights are not read"):
        classifier(copy)


def test_a_model_that_is_nowhere_is_refused():
    with pytest.raises(InputError, match=r"reward.reward_model: 'no/such-model' is neither a folder here nor"):
        classifier("no/such-model")


def test_a_model_with_code_of_its_own_is_refused_unread(copy, tmp_path):
    (copy / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit_json(copy / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(InputError, match=r"is no model for AutoModelForSequenceClassification .*`trust_remote_code`"):
        classifier(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("label", "message"), [(None, "the model has 3 labels, none is named"), ("great", "the model has no label 'great'")]
)
def test_a_label_has_to_be_named(labelled, label, message):
    with pytest.raises(InputError, match=rf"reward.label: {message}; fix: use one of: bad, good, neutral$"):
        classifier(labelled, label=label)


def test_a_single_label_may_be_named_but_not_misnamed(scalar):
    assert classifier(scalar, label="LABEL_0")(BATCH) == classifier(scalar)(BATCH)
    with pytest.raises(InputError, match=r"the model has no label 'good'; fix: use one of: LABEL_0$"):
        classifier(scalar, label="good")


def drop_tokens(folder: Path, *names: str) -> None:
    edit_json(folder / "config.json", pad_token_id=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for name in names:
        del settings[name]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_model_without_padding_pads_with_its_end(copy):
    drop_tokens(copy, "pad_token")
    reward = classifier(copy, batch_size=4)
    eos = AutoTokenizer.from_pretrained(copy).eos_token_id
    assert reward._model.config.pad_token_id == reward._pad_id == eos
    expected = [
        llama_logits(copy, ids_of(copy, conversation(p, r))).item()
        for p, r in zip(BATCH.prompts, BATCH.responses, strict=True)
    ]
    assert reward(BATCH) == pytest.approx(expected, abs=1e-4)


def test_a_model_with_nothing_to_pad_with_is_refused(copy):
    drop_tokens(copy, "pad_token", "eos_token")
    with pytest.raises(InputError, match=r"neither a padding nor an end-of-text token, .*; fix: set pad_token"):
        classifier(copy)


def test_8_bit_weights_need_a_gpu_and_bitsandbytes(scalar, monkeypatch):
    monkeypatch.setattr(classifier_module, "device", lambda: "cpu")
    with pytest.raises(EnvironmentFault, match=r"reward.load_in_8bit: 8-bit weights need a GPU, .*; fix: leave it out"):
        classifier(scalar, load_in_8bit=True)
    monkeypatch.setattr(classifier_module, "device", lambda: "cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"bitsandbytes is not installed; fix: pip install bitsandbytes"):
        classifier(scalar, load_in_8bit=True)


# --- adapters -----------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A classifier with two labels, trained nowhere, as LoRA over the tiny language model; merged beside it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(base, config)
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "merged")
    return tmp_path / "adapter"


def test_an_adapter_scores_as_its_merged_model(adapter, tmp_path):
    over, merged = classifier(adapter, label="LABEL_1"), classifier(tmp_path / "merged", label="LABEL_1")
    assert over(BATCH) == pytest.approx(merged(BATCH), abs=1e-3)
    assert over.identity != merged.identity


def test_an_adapters_base_has_to_be_there(adapter):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="gone/away")
    with pytest.raises(
        InputError, match=r"adapter_config.json:base_model_name_or_path: 'gone/away' is neither a folder"
    ):
        classifier(adapter, label="LABEL_1")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(
        InputError, match=r"adapter_config.json:base_model_name_or_path: the adapter names no base; fix"
    ):
        classifier(adapter, label="LABEL_1")


def test_an_adapter_that_does_not_classify_is_refused(adapter):
    edit_json(adapter / "adapter_config.json", task_type="CAUSAL_LM")
    with pytest.raises(InputError, match=r"of task type CAUSAL_LM, which does not classify; fix: .*`implicit`"):
        classifier(adapter)


def test_a_damaged_adapter_is_refused(adapter):
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({**weights, "base_model.model.score.weight": torch.full((2, 64), torch.nan)}, path)
    with pytest.raises(InputError, match=r"holds NaN or infinity in 1 tensors \(base_model.model.score.weight\); fix"):
        classifier(adapter, label="LABEL_1")
    save_file({name: tensor for name, tensor in weights.items() if "score" not in name}, path)
    with pytest.raises(InputError, match=r"has no adapter_model.safetensors with a classification head; fix: merge"):
        classifier(adapter, label="LABEL_1")


# --- identity -----------------------------------------------------------------------------------------------


def test_the_identity_is_of_content_not_of_place(scalar, copy):
    expected = classifier(scalar).identity
    assert json.loads(json.dumps(expected)) == expected
    assert classifier(copy).identity == expected
    assert classifier(copy, batch_size=3).identity == expected
    assert classifier(copy, label="LABEL_0").identity == expected
    assert str(copy.parent) not in json.dumps(classifier(copy).identity)


def flip_a_weight(folder: Path) -> None:
    flip_a_bit(folder / "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        flip_a_weight,
        lambda folder: edit_json(folder / "config.json", rms_norm_eps=0.1),
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}"),
        lambda folder: with_beginning(folder, template=False),
    ],
    ids=["weight", "configuration", "template", "tokenizer"],
)
def test_what_changes_a_score_changes_the_identity(scalar, copy, change):
    change(copy)
    assert classifier(copy).identity != classifier(scalar).identity


def test_settings_that_change_a_score_change_the_identity(scalar, labelled):
    settings = [{}, {"max_length": 100}, {"max_length": 101}, {"dtype": "bfloat16"}]
    identities = [json.dumps(classifier(scalar, **section).identity) for section in settings]
    identities += [json.dumps(classifier(labelled, label=label).identity) for label in LABELS]
    assert len(set(identities)) == len(identities)


# --- TRL ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [True, False])
def test_a_model_of_trls_reward_trainer_reads_what_it_was_trained_on(tiny_model, copy, tmp_path, chat):
    """The trainer's ids of chosen and rejected are ours, and what it learned scores as it does in the trainer."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    with_beginning(copy, template=chat)
    pairs = [("How are you?", "Very well.", "no"), ("And now?", "Well enough.", "no, no"), ("Hm?", "Well.", "no way")]
    batch = texts([p for p, _, _ in pairs for _ in range(2)], [text for _, *both in pairs for text in both])
    rows = [
        {"prompt": _user(p), "chosen": _assistant(c), "rejected": _assistant(r)} if chat
        else {"prompt": p, "chosen": c, "rejected": r}
        for p, c, r in pairs
    ]  # fmt: skip
    trainer = RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(copy),
        args=RewardConfig(
            output_dir=str(tmp_path / "run"), max_steps=12, learning_rate=1e-3, report_to=[], save_strategy="no",
            use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(copy),
    )  # fmt: skip
    read = ClassifierInput(AutoTokenizer.from_pretrained(copy), 512)
    ours = [read.encode(p, r, "").input_ids for p, r in zip(batch.prompts, batch.responses, strict=True)]
    data = trainer.train_dataset
    assert ours == [ids for row in data for ids in (row["chosen_ids"], row["rejected_ids"])]
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    scores = classifier(tmp_path / "trained")(batch)
    with torch.no_grad():
        expected = [trainer.model.eval()(torch.tensor([ids])).logits.item() for ids in ours]
    assert scores == pytest.approx(expected, abs=1e-4)
    assert all(chosen > rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True))


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
