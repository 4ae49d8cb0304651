"""What MODPO claims, on problems whose answers can all be listed: MODPO with the pairs of any objective, its regression
form, and exact MORLHF reach one policy.

Exact MORLHF maximises E_pi[sum_i w_i r_i] - beta KL(pi || pi_ref) over all policies. Its closed form is
pi(y|x) proportional to pi_ref(y|x) exp(sum_i w_i r_i(x, y) / beta) (paper, section 3.1).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modpo.experiment.primary import REGRESSION
from modpo.training.config import MODPOConfig
from modpo.training.loss import modpo_loss, regression_loss
from modpo.training.trainer import MODPOTrainer

# An answer ends with the last word, or after two words: a vocabulary of four has 1 + 3 * 4 answers.
WORDS = ["red", "green", "blue", "<eos>"]
END = WORDS.index("<eos>")
ANSWERS = [[END], *([first, second] for first in range(END) for second in range(len(WORDS)))]
PROMPTS = [[END, word] for word in range(END)]
CHOSEN, REJECTED = torch.tensor(list(itertools.permutations(range(len(ANSWERS)), 2))).T
ODDS = (1, 2, 4)

VECTORS = [(0.3, 0.7), (0.2, 0.5, 0.3), (0.1, 0.2, 0.3, 0.4)]
END_POINTS = [(1.0,), (0.0, 1.0), (0.2, 0.0, 0.8)]


def each_form(vectors: Sequence[tuple[float, ...]]) -> list[Any]:
    """Each vector with every objective that can be k, and with none: regression."""
    return [
        pytest.param(weights, k, id=f"{len(weights)} objectives {weights}, k={k if k != REGRESSION else 'none'}")
        for weights in vectors
        for k in [*(i for i, weight in enumerate(weights) if weight > 0), REGRESSION]
    ]


@dataclass(frozen=True)
class Problem:
    """P prompts with the same R answers, and what K objectives think of each.

    An annotator of objective i prefers y to y' with probability m_i(y) / (m_i(y) + m_i(y')): Bradley-Terry with
    r_i = log m_i. With whole numbers m_i, labels in exactly that proportion are m_i(y) copies of (y, y') and m_i(y')
    of (y', y).
    """

    odds: Tensor  # m_i, (P, R, K)
    reference: Tensor  # log pi_ref, (P, R)
    weights: tuple[float, ...]
    beta: float

    @property
    def rewards(self) -> Tensor:
        """r_i, (P, R, K)."""
        return self.odds.double().log()

    @property
    def weighted(self) -> Tensor:
        """sum_i w_i r_i, (P, R)."""
        return self.rewards @ torch.tensor(self.weights, dtype=torch.float64)

    @property
    def optimum(self) -> Tensor:
        """log pi of exact MORLHF, (P, R)."""
        return (self.reference + self.weighted / self.beta).log_softmax(1)


def some_odds(objectives: int) -> Tensor:
    generator = torch.Generator().manual_seed(objectives)
    drawn = torch.randint(len(ODDS), (len(PROMPTS), len(ANSWERS), objectives), generator=generator)
    return torch.tensor(ODDS)[drawn]


def problem(weights: tuple[float, ...], beta: float) -> Problem:
    generator = torch.Generator().manual_seed(3)
    reference = torch.randn(len(PROMPTS), len(ANSWERS), generator=generator, dtype=torch.float64).log_softmax(1)
    return Problem(some_odds(len(weights)), reference, weights, beta)


def kl(policy: Tensor, other: Tensor) -> Tensor:
    """KL(policy || other) of log-probs (P, R), nats, (P,)."""
    return (policy.exp() * (policy - other)).sum(1)


def minimised(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """log pi (P, R) that minimises a loss over all policies, by LBFGS from `start`."""
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=1000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = loss(logits.log_softmax(1))
        total.backward()
        return total

    optimizer.step(closure)
    return logits.detach().log_softmax(1)


# --- the losses alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [*VECTORS, *END_POINTS])
def test_closed_form_is_what_exact_morlhf_reaches(weights: tuple[float, ...]):
    """Searched for directly, the largest E_pi[sum_i w_i r_i] - beta KL is at the closed form. It is beta log Z there:
    each answer contributes sum_i w_i r_i - beta (sum_i w_i r_i / beta - log Z).
    """
    beta = 0.5
    given = problem(weights, beta)

    def penalised(policy: Tensor) -> Tensor:
        return (policy.exp() * given.weighted).sum(1) - beta * kl(policy, given.reference)  # (P,)

    reached = minimised(lambda policy: -penalised(policy).sum(), given.reference)
    assert kl(reached, given.optimum).max() < 1e-6 < 0.05 < kl(given.reference, given.optimum).min()
    log_z = (given.reference + given.weighted / beta).logsumexp(1)
    torch.testing.assert_close(penalised(given.optimum), beta * log_z)


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize(("weights", "k"), each_form([*VECTORS, *END_POINTS]))
def test_minimum_of_the_losses_is_exact_morlhf(weights: tuple[float, ...], k: int, beta: float):
    """Over all policies, with every two answers compared as annotators of objective k would (paper, eq. 4 and
    appendix A), or by their weighted rewards. One objective is DPO and RLHF.
    """
    given = problem(weights, beta)
    reached = minimised(lambda policy: expected_loss(given, k, policy), given.reference)
    assert kl(reached, given.optimum).max() < 1e-6 < 0.05 < kl(given.reference, given.optimum).min()


def expected_loss(given: Problem, k: int, policy: Tensor) -> Tensor:
    """The loss of all ordered pairs, each as often as it is labelled like that."""
    total = policy.new_zeros(())
    others = [i for i in range(len(given.weights)) if i != k]
    for p in range(len(PROMPTS)):
        four = [logps[p, side] for logps in (policy, given.reference) for side in (CHOSEN, REJECTED)]
        rewards, odds = given.rewards[p], given.odds[p].double()
        if k == REGRESSION:
            both = rewards[CHOSEN], rewards[REJECTED]
            losses, _, _ = regression_loss(*four, *both, weights=given.weights, beta=given.beta)
            total = total + losses.sum()
            continue
        margins = rewards[CHOSEN][:, others], rewards[REJECTED][:, others]
        weights = [given.weights[i] for i in (k, *others)]
        losses, _, _ = modpo_loss(*four, *margins, weights=weights, beta=given.beta)
        total = total + (odds[CHOSEN, k] / (odds[CHOSEN, k] + odds[REJECTED, k]) * losses).sum()
    return total


def test_regression_loss_is_zero_at_exact_morlhf():
    for weights in (*VECTORS, *END_POINTS):
        given = problem(weights, 0.1)
        assert expected_loss(given, REGRESSION, given.optimum) < 1e-20


# --- a transformer, by MODPOTrainer -------------------------------------------------------------------------


def transformer() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        eos_token_id=END,
        pad_token_id=END,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def listed(model: LlamaForCausalLM) -> Tensor:
    """log pi of every answer to every prompt, read one at a time, (P, R): there are no others, they sum to 1."""

    def logp(prompt: list[int], answer: list[int]) -> float:
        logps = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        return sum(logps[len(prompt) - 1 + at, token].item() for at, token in enumerate(answer))

    logps = torch.tensor([[logp(prompt, answer) for answer in ANSWERS] for prompt in PROMPTS], dtype=torch.float64)
    torch.testing.assert_close(logps.exp().sum(1), torch.ones(len(PROMPTS), dtype=torch.float64))
    return logps


def labelled(odds: Tensor) -> list[list[int]]:
    """The pairs of one objective and prompt, (R,): each order as many times as its share of the labels says."""
    pairs = itertools.permutations(range(len(ANSWERS)), 2)
    return [[a, b] for a, b in pairs for _ in range(int(odds[a]))]


def trained(given: Problem, model: LlamaForCausalLM, primaries: Sequence[int], folder: Path) -> Tensor:
    """log pi after training all weights on pairs of one objective at each prompt, or none: REGRESSION."""
    names = [f"objective {i}" for i in range(len(given.weights))]
    rows = []
    for p, primary in enumerate(primaries):
        row = {"prompt_ids": PROMPTS[p], "responses_ids": ANSWERS, "ref_logps": given.reference[p].tolist()}
        for i, name in enumerate(names):
            row[f"reward/{name}"] = given.rewards[p, :, i].tolist()
            row[f"pairs/{name}"] = labelled(given.odds[p, :, i]) if i == primary else []
        rows.append(row)
    args = MODPOConfig(
        output_dir=str(folder),
        weights=dict(zip(names, given.weights, strict=True)),
        beta=given.beta,
        max_steps=120,
        per_device_train_batch_size=len(PROMPTS),
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        adam_beta2=0.99,
        max_grad_norm=0.0,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    vocabulary = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(vocabulary), eos_token=WORDS[END], pad_token=WORDS[END]
    )
    MODPOTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    return listed(model.eval())


@pytest.mark.parametrize(("weights", "k"), each_form(VECTORS))
def test_trainer_reaches_exact_morlhf(weights: tuple[float, ...], k: int, tmp_path: Path):
    model = transformer()
    given = Problem(some_odds(len(weights)), listed(model), weights, beta=0.25)
    reached = trained(given, model, [k] * len(PROMPTS), tmp_path)
    assert kl(reached, given.optimum).max() < 1e-3 < 0.1 < kl(given.reference, given.optimum).min()


def test_trainer_reaches_it_with_another_k_at_each_prompt(tmp_path: Path):
    """The first prompt has pairs of one objective, the second of another, the third none."""
    model = transformer()
    given = Problem(some_odds(3), listed(model), VECTORS[1], beta=0.25)
    reached = trained(given, model, [0, 2, REGRESSION], tmp_path)
    assert kl(reached, given.optimum).max() < 1e-3 < 0.1 < kl(given.reference, given.optimum).min()
