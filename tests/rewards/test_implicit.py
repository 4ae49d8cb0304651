"""Implicit rewards: against log-probs of two plain models read text by text, and what is refused before that."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from modpo.base.errors import InputError, IntegrityError, NumericError
from modpo.base.files import new_folder
from modpo.experiment.sections import ModelSection, RewardSection
from modpo.forward import frozen
from modpo.forward.frozen import reference_logps
from modpo.forward.packing import packed_tokens
from modpo.rewards.batch import RewardBatch, RewardContext
from modpo.rewards.implicit import ImplicitReward
from modpo.rewards.loading import load_reward, probe
from tests.rewards.batches import texts

WHERE = "experiment.yaml:9"


PLAIN = texts(
    ["Say hi: "] * 3 + ["Count: "] * 2 + ["Say hi: "],
    ["hi", "hello there, and welcome", "hi", "one two three", "1 2", "good day"],
)
CHAT = texts(
    [[{"role": "user", "content": prompt}] for prompt in PLAIN.prompts],
    [[{"role": "assistant", "content": response}] for response in PLAIN.responses],
)


def noisy(folder: Path, target: Path, seed: int = 1) -> Path:
    """The model of a folder, moved away from it at random: a policy."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


def save_adapter(base: Path, target: Path, **settings: Any) -> Path:
    """LoRA over a base, not at its beginning."""
    torch.manual_seed(2)
    config = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**config))
    model.save_pretrained(target, save_embedding_layers=False)
    return target


@pytest.fixture(scope="session")
def policy(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy(tiny_model, tmp_path_factory.mktemp("implicit") / "policy")


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    return save_adapter(tiny_model, tmp_path / "adapter")


def context(base: Path, **settings: Any) -> RewardContext:
    return RewardContext(
        ModelSection(str(base), dtype="float32"), Path("unused"), **{"max_length": 256, "packing": True, **settings}
    )


def reward_of(folder: Path | str, context: RewardContext, **section: Any) -> ImplicitReward:
    reward = load_reward(RewardSection(implicit=str(folder), **section), context, where=WHERE, name="safe")
    assert isinstance(reward, ImplicitReward)
    return reward


def log_prob(model: Any, prompt: list[int], response: list[int]) -> float:
    """One text alone, padded by nothing, every step spelled out."""
    with torch.no_grad():
        logps = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
    return sum(logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(response))


def oracle(pi: Any, pi_ref: Any, batch: RewardBatch, tokenizer: Any, beta: float = 0.1) -> list[float]:
    scores = []
    for prompt, response in zip(batch.prompts, batch.responses, strict=True):
        if isinstance(prompt, str):
            before, after = prompt, f"{response}<eos>"
        else:
            before = f"<turn>user\n{prompt[0]['content']}<eos>\n<turn>assistant\n"
            after = f"{response[0]['content']}<eos>\n"
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after)]
        scores.append(beta * (log_prob(pi.eval(), *ids) - log_prob(pi_ref.eval(), *ids)))
    return scores


def expected_for(policy: Path, base: Path, batch: RewardBatch, beta: float = 0.1) -> list[float]:
    pi, pi_ref = (AutoModelForCausalLM.from_pretrained(folder) for folder in (policy, base))
    return oracle(pi, pi_ref, batch, AutoTokenizer.from_pretrained(base), beta)


# --- scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("batch", [PLAIN, CHAT], ids=["plain", "chat"])
def test_two_models_give_beta_times_their_log_ratio(tiny_model, policy, batch, packing):
    expected = expected_for(policy, tiny_model, batch)
    assert max(expected) - min(expected) > 0.1
    reward = reward_of(policy, context(tiny_model, packing=packing))
    assert reward(batch) == pytest.approx(expected, abs=1e-4)
    order = list(range(len(batch)))
    random.Random(0).shuffle(order)
    assert reward(batch.only(order)) == pytest.approx([expected[i] for i in order], abs=1e-4)
    assert reward(batch.rows(0, 0)) == []


@pytest.mark.parametrize("packing", [True, False])
def test_an_adapter_gives_what_its_merged_model_gives(tiny_model, adapter, tmp_path, packing):
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "merged")
    expected = expected_for(tmp_path / "merged", tiny_model, CHAT)
    assert max(expected) - min(expected) > 0.1
    for folder in (adapter, tmp_path / "merged"):
        reward = reward_of(folder, context(tiny_model, packing=packing))
        assert reward(CHAT) == pytest.approx(expected, abs=1e-3)
        assert reward(CHAT) == reward(CHAT)  # the adapter is on again after the reference was read


def test_a_policy_against_itself_is_worth_nothing(tiny_model):
    assert reward_of(tiny_model, context(tiny_model))(PLAIN) == [0.0] * len(PLAIN)


def test_the_base_is_the_experiments_or_the_reference_not_the_adapters_path(tiny_model, policy, tmp_path):
    adapter = save_adapter(policy, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone"}))
    from peft import PeftModel

    def merged(base: Path) -> Any:
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()

    for base, section in ((tiny_model, {}), (policy, {"reference": str(policy)})):
        pi_ref = AutoModelForCausalLM.from_pretrained(base)
        expected = oracle(merged(base), pi_ref, PLAIN, AutoTokenizer.from_pretrained(base))
        assert reward_of(adapter, context(tiny_model), **section)(PLAIN) == pytest.approx(expected, abs=1e-3)


def test_an_adapter_on_the_head_counts(tiny_model, tmp_path):
    """Packed reading takes the head's plain weights; reading text by text takes what the adapter adds."""
    from peft import PeftModel

    adapter = save_adapter(tiny_model, tmp_path / "adapter", target_modules=["lm_head", "q_proj"])
    pi = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    pi_ref = AutoModelForCausalLM.from_pretrained(tiny_model)
    expected = oracle(pi, pi_ref, PLAIN, AutoTokenizer.from_pretrained(tiny_model))
    assert reward_of(adapter, context(tiny_model))(PLAIN) == pytest.approx(expected, abs=1e-3)


def test_an_adapter_with_modules_of_its_own_leaves_the_reference_alone(tiny_model, tmp_path):
    from peft import PeftModel

    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.mul_(1.3)
    model.save_pretrained(tmp_path / "adapter")
    pi = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "adapter")
    pi_ref = AutoModelForCausalLM.from_pretrained(tiny_model)
    expected = oracle(pi, pi_ref, PLAIN, AutoTokenizer.from_pretrained(tiny_model))
    assert max(map(abs, expected)) > 0.1
    assert reward_of(tmp_path / "adapter", context(tiny_model))(PLAIN) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("packing", [True, False])
def test_many_answers_to_one_prompt_are_read_in_parts(tiny_model, policy, monkeypatch, packing):
    monkeypatch.setattr("modpo.forward.frozen.TOKENS_PER_FORWARD", 40)
    read: list[int] = []

    def recorded(model: Any, prompts_ids: Any, responses_ids: Any, *, packing: bool, **more: Any) -> list[float]:
        read.append(sum(map(packed_tokens, prompts_ids, responses_ids)))
        return reference_logps(model, prompts_ids, responses_ids, packing=packing, **more)

    monkeypatch.setattr(frozen, "reference_logps", recorded)
    batch = texts(["Say hi: "] * 30 + ["Count: "], [f"hello {i}" for i in range(30)] + ["1"])
    reward = reward_of(policy, context(tiny_model, packing=packing))
    assert reward(batch) == pytest.approx(expected_for(policy, tiny_model, batch), abs=1e-4)
    assert max(read) <= 40
    assert len(read) > 10


@pytest.mark.parametrize("chat", [True, False])
def test_an_empty_answer_is_its_end_alone(tiny_model, policy, chat):
    prompts, answers = ["Say hi: ", "Say hi: ", "Count: "], ["", "hi", ""]
    batch = texts(list(prompts), list(answers))
    if chat:
        batch = texts(
            [[{"role": "user", "content": text}] for text in prompts],
            [[{"role": "assistant", "content": text}] for text in answers],
        )
    reward = reward_of(policy, context(tiny_model))
    assert reward(batch) == pytest.approx(expected_for(policy, tiny_model, batch), abs=1e-4)


def test_long_texts_are_cut_as_in_training(tiny_model, policy):
    reward = reward_of(policy, context(tiny_model, max_length=24, max_prompt_length=8))
    [score] = reward(texts(["0123456789ab"], ["abcdefghijklmnopqrstuvwxyz"]))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("456789ab", "abcdefghijklmnop")]
    pi, pi_ref = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (policy, tiny_model))
    assert score == pytest.approx(0.1 * (log_prob(pi, *ids) - log_prob(pi_ref, *ids)), abs=1e-4)


def test_a_probe_scores_twice_the_same_and_a_released_model_is_read_again(tiny_model, policy, adapter):
    for folder in (policy, adapter):
        reward = reward_of(folder, context(tiny_model))
        before = probe(reward, PLAIN)
        reward.release()
        assert "_model" not in vars(reward)
        assert list(reward(PLAIN)) == list(before)


def test_the_number_format_is_the_sections_or_the_experiments(tiny_model, adapter):
    half = replace(context(tiny_model), model=ModelSection(str(tiny_model), dtype="bfloat16"))
    for reward in (reward_of(adapter, half), reward_of(adapter, context(tiny_model), dtype="bfloat16")):
        assert {p.dtype for p in reward._model.parameters()} == {torch.bfloat16}
        assert reward(PLAIN) == pytest.approx(reward_of(adapter, context(tiny_model))(PLAIN), abs=0.3)


# --- beta ---------------------------------------------------------------------------------------------------


def test_beta_is_the_sections_else_the_manifests_else_the_experiments(tiny_model, policy, tmp_path):
    one = expected_for(policy, tiny_model, PLAIN, beta=1.0)
    with new_folder(tmp_path / "trained", {"beta": 0.25}) as temporary:
        for file in policy.iterdir():
            shutil.copy(file, temporary)
    base = context(tiny_model, beta=0.5)
    for folder, section, beta in (
        (policy, {}, 0.5),
        (tmp_path / "trained", {}, 0.25),
        (tmp_path / "trained", {"beta": 2.0}, 2.0),
    ):
        reward = reward_of(folder, base, **section)
        assert reward(PLAIN) == pytest.approx([beta * ratio for ratio in one], abs=1e-3)
        assert reward.identity["beta"] == beta


def test_a_policy_that_differs_from_its_manifest_is_refused(tiny_model, adapter, tmp_path):
    with new_folder(tmp_path / "trained", {}) as temporary:
        for file in adapter.iterdir():
            shutil.copy(file, temporary)
    (tmp_path / "trained" / "adapter_config.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"adapter_config.json: is missing or was changed; fix: "):
        reward_of(tmp_path / "trained", context(tiny_model))


# --- refusals -----------------------------------------------------------------------------------------------


def edit(adapter: Path, **tensors: torch.Tensor | None) -> None:
    """Add, replace or (None) remove tensors of an adapter."""
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path) | tensors
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, path)


KEY = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({KEY: None}, rf"does not fit its base: it lacks 1 tensors \({KEY}\); fix: "),
        ({"foreign.lora_A.weight": torch.zeros(1)}, r"it should not have 1 tensors \(foreign.lora_A.weight\); fix: "),
        (
            {KEY: torch.zeros(4, 65)},
            rf"has in another shape 1 tensors \({KEY}: \(4, 65\) instead of \(4, 64\)\); fix: ",
        ),
        ({KEY: torch.full((4, 64), torch.nan)}, rf"holds NaN or infinity in 1 tensors \({KEY}\); fix: train"),
        ({KEY: torch.full((4, 64), torch.inf)}, rf"holds NaN or infinity in 1 tensors \({KEY}\); fix: train"),
    ],
    ids=["missing", "foreign", "shape", "nan", "infinity"],
)
def test_a_damaged_adapter_is_refused_before_a_model_is_read(tiny_model, adapter, monkeypatch, tensors, message):
    edit(adapter, **tensors)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(InputError, match=rf"^{WHERE}:objectives.safe.reward.implicit: .*{message}") as caught:
        reward_of(adapter, context(tiny_model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"hidden_size": 96}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}])
def test_an_adapter_of_another_base_is_refused(tiny_model, tmp_path, settings):
    other = tmp_path / "other"
    LlamaForCausalLM(AutoConfig.from_pretrained(tiny_model, **settings)).save_pretrained(other)
    adapter = save_adapter(other, tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"adapter does not fit its base: it (lacks|should not have|has in another)"):
        reward_of(adapter, context(tiny_model))


def test_an_adapter_for_modules_that_the_base_lacks_is_refused(tiny_model, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=300, n_positions=32)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    get_peft_model(GPT2LMHeadModel(small), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"does not fit its base \(.*c_attn.*\); fix: name an adapter of this base"):
        reward_of(tmp_path / "adapter", context(tiny_model))


def test_a_pickled_adapter_is_refused(tiny_model, adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"has no adapter_model.safetensors; fix: .*pickled weights are not read"):
        reward_of(adapter, context(tiny_model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_type": "SEQ_CLS"}, "is an adapter of task type SEQ_CLS; fix: name one of task type CAUSAL_LM"),
        ({"bias": "all"}, r"changes weights of the base itself \(bias: all\), .*; fix: merge it into its base"),
        ({"init_lora_weights": "pissa_niter_4"}, r"base itself \(init_lora_weights: pissa_niter_4\)"),
    ],
)
def test_an_adapter_that_cannot_be_taken_off_is_refused(tiny_model, adapter, change, message):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message):
        reward_of(adapter, context(tiny_model))


def test_an_adapter_that_carries_weights_of_its_base_is_refused(tiny_model, tmp_path):
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["lm_head"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        model.save_pretrained(tmp_path / "adapter")
    message = r"changes weights of the base itself \(base_model.model.lm_head.base_layer.weight\), .*; fix: merge it"
    with pytest.raises(InputError, match=message):
        reward_of(tmp_path / "adapter", context(tiny_model))


def test_an_unreadable_adapter_configuration_is_refused(tiny_model, adapter):
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match=r"adapter_config.json cannot be read \(.*\); fix: save the adapter again"):
        reward_of(adapter, context(tiny_model))


def test_a_learned_prompt_is_refused(tiny_model, tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"\(PROMPT_TUNING changes what the model reads, not its weights\); fix: "):
        reward_of(tmp_path / "adapter", context(tiny_model))


def test_models_with_different_tokenizers_are_refused(tiny_model, policy, tmp_path):
    folder = shutil.copytree(policy, tmp_path / "policy")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(InputError, match=r"implicit: .*do not share a tokenizer \(chat_template differ\); fix: "):
        reward_of(folder, context(tiny_model))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"has ids up to \d+, but the model's vocabulary ends at \d+; fix: take"):
        reward_of(folder, context(tiny_model))


def test_a_classifier_is_no_policy(tiny_model, tmp_path):
    config = AutoConfig.from_pretrained(tiny_model, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "classifier")
    with pytest.raises(
        InputError, match=r"reward.implicit: .*lacks 1 of the model's tensors \(lm_head.weight\); fix: "
    ):
        reward_of(tmp_path / "classifier", context(tiny_model))(PLAIN)


def test_models_that_are_nowhere_are_refused(tiny_model, policy, adapter):
    with pytest.raises(InputError, match=r"reward.implicit: 'no/policy' is neither a folder here nor"):
        reward_of("no/policy", context(tiny_model))
    with pytest.raises(InputError, match=r"reward.reference: 'no/reference' is neither a folder here nor"):
        reward_of(policy, context(tiny_model), reference="no/reference")
    with pytest.raises(InputError, match=r"reward.reference: .* holds a PEFT adapter, not a model; fix: merge it"):
        reward_of(policy, context(tiny_model), reference=str(adapter))


def test_conversations_need_a_chat_template(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"the data is conversational, the tokenizer has no chat template; fix: "):
        reward_of(folder, context(folder))(CHAT)


def test_a_score_that_is_not_finite_names_its_row(tiny_model, policy, tmp_path):
    folder = shutil.copytree(policy, tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    token = AutoTokenizer.from_pretrained(folder)("z", add_special_tokens=False)["input_ids"][0]
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    reward = reward_of(folder, context(tiny_model, packing=False))  # packed, NaN spreads along the row
    with pytest.raises(NumericError, match=r"^rows.jsonl:2:safe: nan is not finite \(response 'zz'\); fix: check"):
        reward(texts(["Say: ", "Say: "], ["a", "zz"]))


# --- identity -----------------------------------------------------------------------------------------------


def test_the_identity_is_of_content_not_of_place(tiny_model, policy, adapter, tmp_path):
    moved = shutil.copytree(tiny_model, tmp_path / "base")
    for name, folder in (("policy", policy), ("adapter", adapter)):
        copied = shutil.copytree(folder, tmp_path / "moved" / name)
        expected = reward_of(folder, context(tiny_model)).identity
        assert json.loads(json.dumps(expected)) == expected
        assert reward_of(copied, context(moved)).identity == expected
        assert reward_of(copied, context(tiny_model), reference=str(moved)).identity == expected
        assert str(tmp_path) not in json.dumps(expected)
    config = json.loads((adapter / "adapter_config.json").read_text())
    before = reward_of(adapter, context(tiny_model)).identity
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "elsewhere"}))
    assert reward_of(adapter, context(tiny_model)).identity == before
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 99}))
    assert reward_of(adapter, context(tiny_model)).identity != before


def test_what_changes_a_score_changes_the_identity(tiny_model, policy, adapter):
    plain = context(tiny_model)
    identities = [
        reward_of(policy, plain).identity,
        reward_of(tiny_model, plain).identity,
        reward_of(policy, plain, beta=0.2).identity,
        reward_of(policy, plain, reference=str(policy)).identity,
        reward_of(policy, plain, dtype="bfloat16").identity,
        reward_of(policy, context(tiny_model, max_length=255)).identity,
        reward_of(policy, context(tiny_model, max_prompt_length=100)).identity,
        reward_of(policy, context(tiny_model, packing=False)).identity,
        reward_of(adapter, plain).identity,
    ]
    edit(adapter, **{KEY: torch.ones(4, 64)})
    identities.append(reward_of(adapter, plain).identity)
    assert len({json.dumps(identity) for identity in identities}) == len(identities)
