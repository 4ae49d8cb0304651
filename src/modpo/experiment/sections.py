"""One experiment: what a YAML file says, as dataclasses. `modpo.experiment.file` reads and checks the file.

Names are those of transformers, TRL and PEFT wherever they have one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modpo.base.simplex import Weights
from modpo.base.text import redacted
from modpo.experiment.methods import CONTINUOUS, METHODS, Method
from modpo.experiment.primary import smallest_primary_weight
from modpo.experiment.yaml_nodes import place

DRAWN = "bradley_terry"  # `pairs` of an objective whose labels are drawn from its reward
SAVING = ("save_steps", "save_total_limit")  # of `training`: they change no number


@dataclass(frozen=True)
class ModelSection:
    """The reference policy, from which every policy starts."""

    model_name_or_path: str  # local folder or Hub name; "smollm2-135m-instruct" is the embedded default
    dtype: str = "bfloat16"  # bfloat16 | float16 | float32
    revision: str | None = None
    trust_remote_code: bool = False  # set by the command line only


@dataclass(frozen=True)
class LoraSection:
    """`peft.LoraConfig`'s fields. `lora: null` in the file trains all weights."""

    r: int = 16
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    modules_to_save: list[str] | None = None


@dataclass(frozen=True)
class DataSection:
    """Preference rows, and how they are tokenized."""

    path: str  # a local .jsonl / .json / .parquet file (also .gz for the first two), or a Hub name
    format: str = "preference"  # a name in modpo.data.formats.FORMATS
    name: str | None = None  # the configuration of a Hub data set that has several
    data_dir: str | None = None  # the folder in a Hub data set's repository
    split: str = "train"  # of a Hub data set
    eval_path: str | None = None  # held-out rows in a file of their own
    eval_split: str | None = None  # of eval_path on the Hub; default: `split`
    eval_format: str | None = None  # of eval_path; default: `format`. "prompts": rows with a prompt alone
    eval_prompts: int = 64  # held-out prompts: taken from eval_path, else split off `path` by prompt
    split_seed: int = 0  # which prompts are split off; apart from `seed`, so that every seed trains on the same data
    max_prompts: int | None = None  # use only the first so many prompt groups
    max_length: int = 1024  # tokens, prompt and response together
    max_prompt_length: int | None = None  # tokens; a longer prompt loses its beginning

    def prompt_room(self, answer: int) -> int:
        """Tokens of a prompt that is to be answered: what an answer of so many tokens leaves, half at least."""
        return self.max_prompt_length or max(self.max_length // 2, self.max_length - answer)


@dataclass(frozen=True)
class RewardTraining:
    """A reward that is trained before it scores: `modpo reward`, a stage of the pipeline."""

    kind: str  # "reward_model": a scalar classifier, by trl.RewardTrainer; "implicit": a policy, by DPO
    # the labels to learn, a label set of these rows; default: "data", of a proxy its objective's
    pairs: str | None = None
    path: str | None = None  # rows to learn from; default: the experiment's `data`
    format: str | None = None  # of path; default: the experiment's `data.format`
    split: str | None = None
    eval_prompts: int | None = None  # held-out prompts, for its accuracy; default: the experiment's
    arguments: dict[str, Any] = field(default_factory=dict)  # fields of trl.RewardConfig or modpo.MODPOConfig


@dataclass(frozen=True)
class RewardSection:
    """Where an objective's numbers come from: exactly one of the first six; the rest belongs to one of them."""

    function: str | None = None  # "package.module:function", called like TRL's reward functions
    column: str | None = None  # a field of the data that holds one number per response
    reward_model: str | None = None  # a sequence-classification model: local folder or Hub name
    implicit: str | None = None  # a policy whose beta log(pi / pi_ref) is the reward: adapter or model folder, Hub name
    sum: list[RewardSection] | None = None  # rewards added up, each times its `weight`
    train: RewardTraining | None = None  # trained first, then used as `reward_model` or `implicit`
    clip: list[float] | None = None  # [low, high] of the raw reward
    weight: float = 1.0  # inside `sum`
    kwargs: dict[str, Any] = field(default_factory=dict)  # function: passed on to it
    missing: str = "error"  # column: a response without a number is an "error", "drop"ped, or takes the "mean"
    label: str | None = None  # reward_model: which of several labels is the reward
    max_length: int | None = None  # reward_model: tokens it reads; default: what it was made for
    batch_size: int = 16  # reward_model: responses read at a time
    load_in_8bit: bool = False  # reward_model: with bitsandbytes, on a GPU
    beta: float | None = None  # implicit: default: that of its training, else the experiment's
    reference: str | None = None  # implicit: pi_ref; default: an adapter's base, else the experiment's model
    dtype: str | None = None  # reward_model, implicit: default: the experiment's `model.dtype`

    @property
    def scores_new_text(self) -> bool:
        """Whether it can score answers that stand in no data."""
        return self.column is None and all(part.scores_new_text for part in self.sum or [])

    @property
    def description(self) -> str:
        """Where the numbers come from, in a few words."""
        if self.function is not None:
            kwargs = ", ".join(f"{name}={value!r}" for name, value in self.kwargs.items())
            said = redacted(self.function + (f" ({kwargs})" if kwargs else ""))
        elif self.sum is not None:
            said = " + ".join(f"{part.weight:g} * {part.description}" for part in self.sum)
        elif self.train is not None:
            said = f"{self.train.kind} trained on {self.train.pairs or 'pairs'}"
        else:
            kinds = {"column": self.column, "reward_model": self.reward_model, "implicit": self.implicit}
            said = next((f"{kind} {source}" for kind, source in kinds.items() if source is not None), "")
        return f"{said}, clipped to {self.clip}" if self.clip else said


@dataclass(frozen=True)
class Objective:
    """One thing to optimise: pairs that prefer it, a reward that measures it, or both."""

    name: str
    pairs: str | None = None  # "bradley_terry": drawn from the reward; else a label set of the data, "data" if unnamed
    reward: RewardSection | None = None
    maximize: bool = True
    calibration: str = "none"  # none | standardise | bradley_terry
    scale: float = 1.0  # margin reward = (+1 or -1 by `maximize`) * scale * calibrated reward
    proxy: RewardSection | None = (
        None  # the reward of methods that score answers of their own: see `modpo.experiment.proxy`
    )
    unit: str = ""

    @property
    def sign(self) -> float:
        """What a calibrated reward is multiplied by before it enters the loss."""
        return self.scale if self.maximize else -self.scale


@dataclass(frozen=True)
class SftSection:
    """A reference policy from demonstrations: `modpo sft`, the first stage of a pipeline. trl.SFTTrainer trains it."""

    path: str  # demonstrations, or preference rows, whose chosen responses are learned
    format: str = (
        "demonstrations"  # {prompt, completion} or {messages}, as TRL knows them; or one of modpo.data.formats
    )
    name: str | None = None
    data_dir: str | None = None
    split: str = "train"
    eval_prompts: int = 0  # held-out demonstrations, for the loss on them
    arguments: dict[str, Any] = field(default_factory=dict)  # fields of trl.SFTConfig


@dataclass(frozen=True)
class SampleSection:
    """Answers of the reference policy, as the data to train on: `modpo sample`, a stage of a pipeline."""

    prompts: str  # rows with a prompt; answers go to `data.path`
    format: str = "prompts"
    name: str | None = None
    data_dir: str | None = None
    split: str = "train"
    max_prompts: int | None = None
    held_out: int = 0  # of the prompts, how many go to `data.eval_path` unanswered
    responses_per_prompt: int = 4
    max_new_tokens: int = 128
    temperature: float = 1.0
    engine: str = "auto"  # transformers | vllm | auto: vLLM where it is installed and has a GPU
    seed: int | None = None  # of the answers; default: the experiment's


@dataclass(frozen=True)
class TrainingSection:
    """Fields of `modpo.MODPOConfig` (so of `trl.DPOConfig`). `arguments` reaches the ones not listed."""

    beta: float = 0.1
    # objective k; null: for each prompt, of the objectives with pairs that leave every other one a reward, the one with
    # the largest weight; see `modpo.experiment.primary`
    objective: str | None = None
    # weight of k below which prompts are trained on by regression, where k has a reward too; null: 0, of a continuous
    # policy 1/K
    regression_below: float | None = None
    anchor: float = 0.0  # pull of each pair's mean log-ratio towards the reference; 0: the paper's loss
    loss_type: str = "sigmoid"  # sigmoid | hinge
    scale_loss_by_weight: bool = True  # multiply by w_k: same optimum, bounded gradient
    packing: bool = True
    learning_rate: float = 5e-4
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1  # optimizer steps; below 1, the share of all steps
    num_train_epochs: float = 1.0
    max_steps: int = -1
    per_device_train_batch_size: int = 8  # prompt groups in a batch, which is read in parts
    max_packed_tokens: int | None = None  # tokens in one forward pass; null: 2048 on a CPU, 16384 elsewhere
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    logging_steps: int = 5
    save_steps: int = 50  # optimizer steps between two checkpoints; 0: none
    save_total_limit: int = 2  # checkpoints that stay while a policy is trained
    arguments: dict[str, Any] = field(default_factory=dict)

    def deciding(self) -> dict[str, Any]:
        """What decides the numbers of a training, by name: all but how it is saved."""
        return {name: value for name, value in asdict(self).items() if name not in SAVING}


@dataclass(frozen=True)
class SweepSection:
    """The preference vectors to train, already expanded from `weights`, `grid` or `lattice`."""

    weights: list[Weights] = field(default_factory=list)
    method: str = "modpo"  # how the policy of a vector comes about: a name in modpo.experiment.methods
    mode: str = "separate"  # a training per vector; "continuous": one policy for all, from which vectors are baked
    concentration: float = 1.0  # continuous: of the Dirichlet distribution that vectors are drawn from; 1 is uniform
    spread: float = 2.0  # continuous: how much faster than the weights the scales of the adapters move
    prompts_per_draw: int | None = None  # continuous: prompts that share a drawn vector; default: a batch


@dataclass(frozen=True)
class MorlhfSection:
    """`sweep.method: morlhf`: reinforcement learning on the weighted sum of the rewards, by one of TRL's trainers."""

    algorithm: str = "rloo"  # trl.RLOOTrainer; "grpo": trl.GRPOTrainer
    learning_rate: float = 1e-4
    max_steps: int = 100
    num_generations: int = 4  # answers to a prompt, which are each other's baseline
    per_device_train_batch_size: int = 16  # answers in a step
    max_completion_length: int | None = None  # tokens; default: evaluation.max_new_tokens
    arguments: dict[str, Any] = field(default_factory=dict)  # fields of trl.RLOOConfig or trl.GRPOConfig


@dataclass(frozen=True)
class BestOfNSection:
    """`sweep.method: best_of_n`: of n answers of the reference, the one with the best weighted reward."""

    n: int = 4


@dataclass(frozen=True)
class ComparisonSection:
    """Several methods on the same data, rewards and held-out prompts: `modpo sweep` runs them all."""

    methods: list[str]  # names of `sweep.method`, and "continuous"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


@dataclass(frozen=True)
class EvaluationSection:
    """How the reference and every point are measured on held-out prompts."""

    max_new_tokens: int = 128
    temperature: float = 1.0  # 1 samples from the policy itself, which the estimate of KL needs
    samples_per_prompt: int = 1
    batch_size: int = 48
    bootstrap: int = 2000  # resamples of prompts behind each interval
    confidence: float = 0.95
    report_prompts: int = 8  # prompts whose answers the report shows side by side
    rewards: dict[str, RewardSection] = field(default_factory=dict)  # what measures an objective instead of its own
    seed: int = 0  # of answers and bootstrap; apart from `seed`, so that all policies answer with the same draws


@dataclass(frozen=True)
class Experiment:
    """One YAML file, complete and checked: built by `modpo.experiment.file.read_experiment`."""

    model: ModelSection
    data: DataSection
    objectives: dict[str, Objective]  # in the file's order
    training: TrainingSection
    sweep: SweepSection
    evaluation: EvaluationSection
    output_dir: Path
    cache_dir: Path
    lora: LoraSection | None
    sft: SftSection | None = None
    sample: SampleSection | None = None
    morlhf: MorlhfSection = field(default_factory=MorlhfSection)
    best_of_n: BestOfNSection = field(default_factory=BestOfNSection)
    comparison: ComparisonSection | None = None
    seed: int = 0
    source: str = field(default="experiment", compare=False)  # the file, for error messages
    lines: dict[str, int] = field(default_factory=dict, compare=False)  # "training.beta" -> line; 0: set over the file
    asked: Experiment | None = field(default=None, compare=False)  # as the file says it, before stages filled it in

    @property
    def label_sets(self) -> dict[str, str]:
        """The data's label set of each objective that has one, by objective."""
        return {name: o.pairs for name, o in self.objectives.items() if o.pairs is not None and o.pairs != DRAWN}

    @property
    def drawn(self) -> list[str]:
        """Objectives whose pairs are drawn from their reward."""
        return [name for name, objective in self.objectives.items() if objective.pairs == DRAWN]

    @property
    def method(self) -> Method:
        """How the policies of the sweep come about; of a continuous policy `continuous`."""
        return METHODS[CONTINUOUS if self.sweep.mode == CONTINUOUS else self.sweep.method]

    @property
    def smallest_primary_weight(self) -> float:
        """The weight from which on the pairs of objective k are read, as the trainers' configurations have it."""
        continuous = self.method.mode == CONTINUOUS
        return smallest_primary_weight(self.training.regression_below, len(self.objectives), continuous=continuous)

    def where(self, field_path: str) -> str:
        """`file.yaml:LINE` of a field or the section around it, for an error message."""
        return place(self.source, self.lines, field_path)
