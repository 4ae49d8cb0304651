"""What is logged: means over pairs and tokens however these are batched, and counts of tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from modpo.experiment.sections import Objective
from modpo.scored.of_rows import score_dataset
from modpo.training.config import MODPOConfig
from modpo.training.trainer import MODPOTrainer
from tests.training.runs import LORA, log_column

WEIGHTS = {"better": 0.5, "short": 0.5}
PAIRS = 12
# Of a pair, r(chosen) and r(rejected) of the margin objective: at w = (1/2, 1/2) the policy that is the reference
# estimates r_k as -r, so that the chosen one lies above in 8 of 12 pairs, of which the last is far off.
CHOSEN = [-1.0, -0.5, 0.25, -1.0, 0.5, -2.0, 1.0, -0.25, -0.75, 2.0, -1.5, -9.0]
REJECTED = [0.0] * 9 + [1.0, 3.0, 0.0]
ACCURACY = 8 / 12


def rows() -> Dataset:
    """12 prompts with one pair each, of lengths from short to long."""
    return Dataset.from_list(
        [
            {
                "prompt": f"Question {i}: " + "why? " * i,
                "chosen": "because " * (i % 4 + 1),
                "rejected": "no" + "!" * i,
                "chosen_short": CHOSEN[i],
                "rejected_short": REJECTED[i],
            }
            for i in range(PAIRS)
        ]
    )


def test_the_numbers_are_what_they_are_said_to_be():
    assert (
        sum(-c > -r for c, r in zip(CHOSEN, REJECTED, strict=True)) / PAIRS
        == ACCURACY
        == pytest.approx(0.667, abs=5e-4)
    )


@pytest.fixture(scope="module")
def scored(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return score_dataset(
        rows(),
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        tokenizer=AutoTokenizer.from_pretrained(tiny_model),
        objectives={name: Objective(name) for name in WEIGHTS},
        label_sets={"better": "data"},
        max_length=1024,
        cache_dir=tmp_path_factory.mktemp("cache"),
    )


@pytest.fixture
def make(
    tiny_model: Path, tmp_path: Path, scored: Dataset, plain_descent: dict[str, Any]
) -> Callable[..., MODPOTrainer]:
    """A trainer whose policy stays what it is: its learning rate is 0."""

    def make(**settings: Any) -> MODPOTrainer:
        given = {**plain_descent, "learning_rate": 0.0, "max_steps": 1, "output_dir": str(tmp_path), "weights": WEIGHTS}
        return MODPOTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_model),
            args=MODPOConfig(**(given | settings)),
            train_dataset=scored,
            eval_dataset=scored,
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
            peft_config=LoraConfig(**LORA),
        )

    return make


# --- means -------------------------------------------------------------------------------------------------------


def by_hand() -> dict[str, float]:
    chosen, rejected = torch.tensor(CHOSEN), torch.tensor(REJECTED)
    return {
        "rewards/accuracies": ACCURACY,
        "rewards/chosen": -chosen.mean().item(),
        "rewards/rejected": -rejected.mean().item(),
        "rewards/margins": (rejected - chosen).mean().item(),
        "weighted_rewards/chosen": 0.0,
        "margins/short": (chosen - rejected).mean().item(),
    }


OF_THE_MODEL = ["logps/chosen", "logps/rejected", "entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy"]


def assert_means(found: dict[str, float], whole: dict[str, float], prefix: str = "") -> None:
    """As by hand, and what the model says as when all is read together."""
    for name, expected in by_hand().items():
        assert found[prefix + name] == pytest.approx(expected, abs=1e-5), name
    for name in OF_THE_MODEL:
        assert found[prefix + name] == pytest.approx(whole[f"eval_{name}"], rel=1e-5), name


@pytest.fixture(scope="module")
def whole(tiny_model: Path, scored: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """All 12 pairs evaluated in one batch of one part, padded."""
    args = MODPOConfig(
        output_dir=str(tmp_path_factory.mktemp("run")),
        weights=WEIGHTS,
        packing=False,
        per_device_eval_batch_size=PAIRS,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    return MODPOTrainer(
        model, args=args, train_dataset=scored, eval_dataset=scored, peft_config=LoraConfig(**LORA)
    ).evaluate()


@pytest.mark.parametrize("packed_tokens", [200, 450, 4096])
@pytest.mark.parametrize("batch", [12, 8, 5, 11])
def test_evaluation_in_uneven_batches(make, whole: dict[str, float], batch: int, packed_tokens: int):
    """12, 8 + 4, 5 + 5 + 2, 11 + 1, each in parts or not."""
    trainer = make(per_device_eval_batch_size=batch, max_packed_tokens=packed_tokens)
    batches = [len(inputs["parts"]) for inputs in trainer.get_eval_dataloader()]
    assert len(batches) == -(-PAIRS // batch)
    assert max(batches) > 1 or packed_tokens > 200
    found = trainer.evaluate()
    assert_means(found, whole, "eval_")
    assert found["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-5)
    again = trainer.evaluate()
    assert {
        name: again[name] for name in found if "_per_" not in name and "runtime" not in name
    }.items() <= found.items()


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 12},
        {"per_device_train_batch_size": 12, "max_packed_tokens": 450},
        {"per_device_train_batch_size": 8, "max_steps": 2, "logging_steps": 2},
        {"per_device_train_batch_size": 5, "max_steps": 3, "logging_steps": 3, "max_packed_tokens": 200},
        {"per_device_train_batch_size": 11, "max_steps": 2, "logging_steps": 2, "packing": False},
        {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 3},
        {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "max_steps": 2, "logging_steps": 2},
    ],
    ids=["12", "12 in parts", "8+4", "5+5+2 in parts", "11+1 padded", "5+5+2 accumulated", "(5+5)+2"],
)
def test_an_epoch_of_uneven_batches(make, whole: dict[str, float], settings: dict[str, Any]):
    """One entry of the log for the whole epoch."""
    trainer = make(**settings)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "rewards/accuracies" in entry]
    assert_means(entry, whole)


def test_an_entry_tells_of_what_came_since_the_last(make):
    """Two steps of 8 and 4 pairs, logged each: by their pairs these make up the whole."""
    trainer = make(per_device_train_batch_size=8, max_steps=2)
    trainer.train()
    eight, four = log_column(trainer, "rewards/accuracies")
    assert (8 * eight + 4 * four) / 12 == pytest.approx(ACCURACY)
    assert eight != pytest.approx(four)


def test_predictions_leave_nothing_for_the_next_evaluation(make):
    trainer = make(per_device_eval_batch_size=8)
    few = trainer.predict(trainer.eval_dataset.select(range(3)))
    assert few.metrics["test_loss"] != pytest.approx(trainer.evaluate()["eval_loss"], rel=0.01)
    assert trainer.state.log_history[-1]["eval_rewards/accuracies"] == pytest.approx(ACCURACY)


def test_a_held_out_loss_is_over_pairs_not_prompts(tiny_model: Path, tmp_path: Path, plain_descent: dict[str, Any]):
    """Prompts with 1, 1 and 3 pairs, in batches of two prompts: every pair counts for a fifth."""
    texts = {"prompt": "Why? ", "chosen": "yes", "rejected": "no"}
    given = [(0, 1.0), (1, 0.0), (2, -1.0), (2, -2.0), (2, -3.0)]
    data = Dataset.from_list(
        [
            {**texts, "prompt": f"Why {prompt}? ", "chosen": f"yes {i}", "chosen_short": margin, "rejected_short": 0.0}
            for i, (prompt, margin) in enumerate(given)
        ]
    )
    given_args = {**plain_descent, "output_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")}
    args = MODPOConfig(**given_args, weights=WEIGHTS, per_device_eval_batch_size=2)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    found = MODPOTrainer(
        model, args=args, train_dataset=data, eval_dataset=data, peft_config=LoraConfig(**LORA)
    ).evaluate()
    losses = [0.5 * torch.nn.functional.softplus(torch.tensor(margin)).item() for _, margin in given]  # h = -margin
    assert found["eval_loss"] == pytest.approx(sum(losses) / 5, rel=1e-4)
    assert found["eval_rewards/accuracies"] == pytest.approx(3 / 5)


EVALUATE_IN_A_PROCESS = """
import json, sys
from datasets import Dataset
from peft import LoraConfig
from modpo import MODPOConfig, MODPOTrainer

given = json.loads(sys.argv[1])
rows, args = Dataset.from_list(given["rows"]), MODPOConfig(**given["settings"])
data, lora = {"train_dataset": rows, "eval_dataset": rows}, LoraConfig(**given["lora"])
trainer = MODPOTrainer(given["model"], args=args, **data, peft_config=lora)
evaluated = trainer.evaluate()
trainer.train()
if trainer.is_world_process_zero():
    print("LOGGED", json.dumps([evaluated, trainer.state.log_history[0]]))
"""


@pytest.mark.slow
def test_two_processes_log_as_one(make, tiny_model: Path, tmp_path: Path, whole: dict[str, float], scored: Dataset):
    """Batches of 5 + 5 and then 2 prompts, which are filled up to evaluate: no pair counts twice."""
    args = make().args
    names = ("optim", "lr_scheduler_type", "max_grad_norm", "gradient_checkpointing", "bf16", "use_cpu", "report_to")
    settings = {name: getattr(args, name) for name in names} | {
        "learning_rate": 0.0,
        "weights": WEIGHTS,
        "optim": "sgd",
    }
    settings |= {"output_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache"), "save_strategy": "no"}
    settings |= {"per_device_train_batch_size": 5, "per_device_eval_batch_size": 5, "max_steps": 1, "logging_steps": 1}
    given = {"rows": rows().to_list(), "lora": LORA, "model": str(tiny_model), "settings": settings}
    (tmp_path / "program.py").write_text(EVALUATE_IN_A_PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [*launch, str(tmp_path / "program.py"), json.dumps(given, default=str)],
        timeout=180,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("LOGGED")]
    evaluated, trained = json.loads(line.removeprefix("LOGGED"))
    assert_means(evaluated, whole, "eval_")
    assert evaluated["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-5)
    groups = [(row["prompt_ids"], row["responses_ids"]) for row in scored]
    assert trained["tokens_read"] < trained["num_tokens"] < sum(2 * len(p) + sum(map(len, r)) for p, r in groups)


# --- tokens ------------------------------------------------------------------------------------------------------


def test_tokens_are_counted(make, scored: Dataset):
    """One epoch in two steps. `num_tokens` are TRL's: a prompt counts once for each of its pair's responses."""
    trainer = make(max_steps=2, per_device_train_batch_size=8)
    trainer.train()
    prompts = sum(len(row["prompt_ids"]) for row in scored)
    responses = [len(response) for row in scored for response in row["responses_ids"]]
    assert log_column(trainer, "num_tokens")[-1] == 2 * prompts + sum(responses)
    assert log_column(trainer, "tokens_read")[-1] == prompts + sum(responses) - len(responses)
    evaluated = trainer.evaluate()
    assert evaluated["eval_num_tokens"] == 2 * prompts + sum(responses)  # as in TRL, those of training so far
    assert "eval_tokens_read" not in evaluated


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("counted", ["all", "non_padding"])
def test_input_tokens_are_counted(make, scored: Dataset, packing: bool, counted: str):
    """What the model reads: packed rows have no padding, padded ones are as long as the longest."""
    trainer = make(per_device_train_batch_size=PAIRS, packing=packing, include_num_input_tokens_seen=counted)
    trainer.train()
    lengths = [len(row["prompt_ids"]) + len(ids) for row in scored for ids in row["responses_ids"]]
    read = sum(len(row["prompt_ids"]) for row in scored) + sum(
        n - 1 for n in [len(ids) for row in scored for ids in row["responses_ids"]]
    )
    padded = len(lengths) * max(lengths) if counted == "all" else sum(lengths)
    expected = read if packing else padded
    assert log_column(trainer, "num_input_tokens_seen")[-1] == expected
    flops = (
        6 * (read if packing else len(lengths) * max(lengths)) * trainer.model.num_parameters(exclude_embeddings=True)
    )
    assert trainer.state.log_history[-1]["total_flos"] == flops > 0
