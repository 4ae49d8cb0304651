"""The catalogue of bad inputs, each a change of a small experiment that works, and what `modpo` says of each.

A row holds where each problem lies and the exit code. The wording stands in bad_inputs.golden, which is written by

    python -m tests.end_to_end.bad_inputs
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modpo.cli import main
from modpo.experiment.file import read_experiment, to_yaml
from tests.kit import WORDS, build_model, errors

GOLDEN = Path(__file__).with_name("bad_inputs.golden")
EXPERIMENT = """\
model: {model_name_or_path: MODEL, dtype: float32}
lora: {r: 2}
data: {path: ROWS, eval_path: HELD_OUT, max_length: 64}
objectives:
  kind: {pairs: data}
  concise: {reward: "modpo.rewards.text:word_count", maximize: false}
training: {per_device_train_batch_size: 2, learning_rate: 1e-2}
sweep: {grid: 1}
evaluation: {max_new_tokens: 4, bootstrap: 10}
output_dir: FOLDER/out
cache_dir: FOLDER/cache
"""
PAIRS = [
    {"prompt": f"{i}: the {word}? ", "chosen": f"a good {word}" + " today" * (i % 2), "rejected": f"bad {word}"}
    for i, word in enumerate(WORDS[:6], start=1)
]
HELD_OUT = [{"prompt": f"who {i}? ", "chosen": "a good one", "rejected": "no"} for i in range(2)]

Change = Callable[["House"], object]


def lines_of(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@dataclass
class House:
    """A folder with an experiment that works, until something in it is changed."""

    folder: Path
    model: Path
    text: str = EXPERIMENT
    rows: list[dict[str, Any]] = field(default_factory=lambda: [dict(row) for row in PAIRS])
    held_out: list[dict[str, Any]] = field(default_factory=lambda: [dict(row) for row in HELD_OUT])
    raw: bytes | None = None  # in place of `rows`
    relative: bool = False  # paths from the working directory, so that the folder can be moved

    @property
    def names(self) -> dict[str, Path]:
        folder = Path() if self.relative else self.folder
        return {
            "HELD_OUT": folder / "held_out.jsonl",
            "ROWS": folder / "rows.jsonl",
            "FILE": folder / "experiment.yaml",
            "MODEL": self.model,
            "FOLDER": folder,
        }

    def fill(self, text: str) -> str:
        """A text with the house's own paths in place of their names."""
        for name, path in self.names.items():
            text = text.replace(name, str(path))
        return text

    def named(self, text: str) -> str:
        """The other way round: a text with names in place of the house's paths."""
        for name, path in self.names.items():
            text = text.replace(str(path), name)
        return text

    def write(self) -> None:
        (self.folder / "rows.jsonl").write_bytes(lines_of(self.rows) if self.raw is None else self.raw)
        (self.folder / "held_out.jsonl").write_bytes(lines_of(self.held_out))
        (self.folder / "experiment.yaml").write_text(self.fill(self.text))

    def own_model(self) -> Path:
        """A copy of the model that may be damaged."""
        if self.model.parent != self.folder:
            self.model = Path(shutil.copytree(self.model, self.folder / "model"))
        return self.model

    def run(self, command: str = "sweep", *options: str) -> int:
        return main([command, str(self.folder / "experiment.yaml"), *map(self.fill, options)])

    def contents(self) -> dict[str, bytes | None]:
        return {str(p): p.read_bytes() if p.is_file() else None for p in self.folder.rglob("*")}


@contextmanager
def house_in(folder: Path, model: Path) -> Iterator[House]:
    """A house that nobody has changed, whose own modules can be imported; nothing is asked of the Hub."""
    import huggingface_hub.constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "my_rewards", raising=False)
        yield House(folder, model)


@contextmanager
def no_weights_read() -> Iterator[None]:
    """Reading weights is an error."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    with pytest.MonkeyPatch.context() as patch:
        for auto in (AutoModelForCausalLM, AutoModelForSequenceClassification):
            patch.setattr(auto, "from_pretrained", refuse)
        yield


# --- changes ------------------------------------------------------------------------------------------------


def edit(line: int, **fields: Any) -> Change:
    """Change fields of one row; its number is that of its line."""
    return lambda house: house.rows[line - 1].update(fields)


def drop(line: int, name: str) -> Change:
    return lambda house: house.rows[line - 1].pop(name)


def raw(*lines: bytes | int) -> Change:
    """The file byte by byte; an integer stands for a row that is right."""
    return lambda house: setattr(
        house, "raw", b"\n".join(json.dumps(PAIRS[li]).encode() if isinstance(li, int) else li for li in lines)
    )


def bytes_of(change: Callable[[bytes], bytes]) -> Change:
    return lambda house: setattr(house, "raw", change(lines_of(PAIRS)))


def yaml(old: str, new: str) -> Change:
    """Replace a piece of the experiment file."""

    def change(house: House) -> None:
        assert old in house.text
        house.text = house.text.replace(old, new)

    return change


def both(*changes: Change) -> Change:
    return lambda house: [change(house) for change in changes]


def scorer(body: str, signature: str = "prompts, completions") -> Change:
    """A reward function of the user's."""

    def change(house: House) -> None:
        code = f"import itertools, math\ncalls = itertools.count()\n\ndef score({signature}):\n    {body}\n"
        (house.folder / "my_rewards.py").write_text(code)
        yaml("modpo.rewards.text:word_count", "my_rewards:score")(house)

    return change


def function(name: str) -> Change:
    return yaml("modpo.rewards.text:word_count", name)


def reward(section: str) -> Change:
    """Another reward of the objective `concise`."""
    return yaml('reward: "modpo.rewards.text:word_count"', f"reward: {section}")


def vectors(weights: str) -> Change:
    return yaml("{grid: 1}", f"{{weights: {weights}}}")


def in_model(change: Callable[[Path], object]) -> Change:
    return lambda house: change(house.own_model())


def conversations(house: House) -> None:
    """The rows as conversations."""
    house.rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in house.rows
    ]


def held_out_split_off(house: House) -> None:
    """Held-out prompts out of the same file: the other one has another layout."""
    yaml("eval_path: HELD_OUT", "eval_prompts: 2")(house)


chats = both(conversations, held_out_split_off)


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def template_without_system(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    path.write_text(refusal + path.read_text())


def with_system(line: int) -> Change:
    return lambda house: house.rows[line - 1]["prompt"].insert(0, {"role": "system", "content": "Be kind."})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def larger_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)


def with_merges(folder: Path) -> None:
    """A token that spans the end of a prompt and the beginning of its response, in place of a byte nobody uses."""
    path = folder / "tokenizer.json"
    rules = json.loads(path.read_text())
    vocabulary = rules["model"]["vocab"]
    vocabulary["Ġa"] = vocabulary.pop("ÿ")
    rules["model"]["merges"] = [["Ġ", "a"]]
    path.write_text(json.dumps(rules))


def without_pad_token(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))


def classifier(house: House, **settings: Any) -> None:
    """A reward model of the model's kind in FOLDER/classifier."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    torch.manual_seed(1)
    folder = house.folder / "classifier"
    LlamaForSequenceClassification(AutoConfig.from_pretrained(house.model, **settings)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(house.model).save_pretrained(folder)


def adapter(house: House, **settings: Any) -> Path:
    """An adapter of a model of the same kind, `settings` apart, in FOLDER/adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(house.model, **settings))
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(house.folder / "adapter")
    return house.folder / "adapter"


def adapter_with(change: Callable[[dict[str, Any]], object]) -> Change:
    """An adapter with other tensors."""

    def made(house: House) -> None:
        from safetensors.torch import load_file, save_file

        path = adapter(house) / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return both(made, implicit)


def unfinite(tensors: dict[str, Any]) -> None:
    next(iter(tensors.values()))[0] = float("nan")


def foreign(tensors: dict[str, Any]) -> None:
    tensors["base_model.model.other.lora_A.weight"] = next(iter(tensors.values())).clone()


def pickled_adapter(house: House) -> None:
    folder = adapter(house)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


implicit = reward("{implicit: FOLDER/adapter}")
judge = reward("{reward_model: FOLDER/classifier}")


# --- what is refused ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A row of the catalogue: what is changed, and where each problem lies that is then named.

    Where a line quotes another library from the words `quotes` on, it has to hold `mentions`, whatever else it says.
    """

    change: Change
    places: tuple[str, ...]
    code: int = 2
    command: tuple[str, ...] = ("sweep",)
    quotes: str = ""
    mentions: str = ""

    def own_words(self, line: str) -> str:
        """A line without what it quotes, the working directory, the user's folder, and most of a long name."""
        line = re.sub("x{20,}", "xxx...", line.replace(str(Path.cwd()), "HERE").replace(str(Path.home()), "HOME"))
        start, quotes, quoted = line.partition(self.quotes) if self.quotes else (line, "", "")
        return f"{start}{quotes}...{quoted[quoted.rindex('; fix: ') :]}" if quotes else start


def refused(change: Change, *places: str, **expected: Any) -> Refusal:
    return Refusal(change, places, **expected)


def trained(*weights: str) -> tuple[str, ...]:
    return ("train", "--weights", *weights)


DATA = {
    "missing file": refused(yaml("path: ROWS", "path: FOLDER/none.jsonl"), "FOLDER/none.jsonl"),
    "neither a file nor on the Hub": refused(
        yaml("path: ROWS", "path: no-such/rows"), "no-such/rows", quotes="looked in ", mentions="no-such/rows"
    ),
    "empty file": refused(raw(b""), "ROWS"),
    "a folder": refused(yaml("path: ROWS", "path: FOLDER"), "FOLDER"),
    "of an unknown kind": refused(yaml("path: ROWS", "path: FILE"), "FILE"),
    "unknown format": refused(yaml("path: ROWS", "path: ROWS, format: sft"), "ROWS:format"),
    "malformed JSON": refused(raw(0, b"", 1, b'{"prompt": "a",'), "ROWS:4", quotes="malformed JSON ("),
    "no object": refused(raw(0, b"[1, 2]"), "ROWS:2"),
    "nested too deeply": refused(raw(0, b"[" * 5000), "ROWS:2"),
    "missing field": refused(drop(3, "chosen"), "ROWS:3:chosen"),
    "null": refused(edit(3, chosen=None), "ROWS:3:chosen"),
    "a number for text": refused(edit(3, chosen=5), "ROWS:3:chosen"),
    "a number as text": refused(
        both(
            reward("{column: length}"),
            lambda house: [row.update(chosen_length=3, rejected_length=1) for row in [*house.rows, *house.held_out]],
            edit(3, chosen_length="3.5"),
        ),
        "ROWS:3:length",
    ),
    "whitespace-only response": refused(
        both(edit(3, chosen=" \n"), edit(5, rejected="")), "ROWS:3:chosen", "ROWS:5:rejected"
    ),
    "blank prompt": refused(edit(2, prompt="  "), "ROWS:2:prompt"),
    "duplicate key": refused(
        raw(0, b'{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}'), "ROWS:2:chosen"
    ),
    "invalid UTF-8": refused(raw(0, 1, b'{"prompt": "\xff"}'), "ROWS:3"),
    "half of a character": refused(raw(0, b'{"prompt": "a", "chosen": "\\ud800", "rejected": "d"}'), "ROWS:2:chosen"),
    "chosen equals rejected everywhere": refused(
        lambda house: [row.update(chosen=row["rejected"]) for row in house.rows], "ROWS:chosen"
    ),
    "no pairs": refused(
        lambda house: setattr(house, "rows", [{"prompt": "a ", "responses": ["b", "c"]}]), "ROWS:objectives.kind.pairs"
    ),
    "prompt as long as max_length": refused(
        yaml("max_length: 64", "max_length: 64, max_prompt_length: 64"), "FILE:3:data.max_prompt_length"
    ),
    "response without a token of its own": refused(
        both(edit(3, chosen="<eos>"), edit(4, rejected="<turn>")), "ROWS:3:responses[0]", "ROWS:4:responses[1]"
    ),
    "unknown chat role": refused(
        both(chats, lambda house: house.rows[2]["prompt"][0].update(role="human")), "ROWS:3:prompt[0].role"
    ),
    "a response of the user": refused(
        both(chats, lambda house: house.rows[2]["chosen"][0].update(role="user")), "ROWS:3:chosen"
    ),
    "a role that the template refuses": refused(
        both(chats, yaml("eval_prompts: 2", "eval_prompts: 0"), with_system(3), in_model(template_without_system)),
        "ROWS:3:prompt",
    ),
    "chat and plain rows mixed": refused(
        edit(
            3,
            prompt=[{"role": "user", "content": "a"}],
            chosen=[{"role": "assistant", "content": "b"}],
            rejected=[{"role": "assistant", "content": "c"}],
        ),
        "ROWS:3:prompt",
    ),
    "chat and plain fields mixed": refused(
        edit(3, prompt=[{"role": "user", "content": "a"}]), "ROWS:3:chosen", "ROWS:3:rejected"
    ),
    "everything held out": refused(yaml("eval_path: HELD_OUT", "eval_prompts: 6"), "FILE:3:data.eval_prompts"),
    "bad held-out rows": refused(yaml("eval_path: HELD_OUT", "eval_path: FOLDER/none.jsonl"), "FOLDER/none.jsonl"),
    "as many rows as can be shown": refused(
        lambda house: setattr(house, "rows", [{**PAIRS[0], "chosen": None}] * 50),
        *(f"ROWS:{line}:chosen" for line in range(1, 21)),
    ),
}

CONFIG = {
    "missing file": refused(lambda house: None, "FOLDER/none.yaml", command=("sweep FOLDER/none.yaml",)),
    "a folder": refused(lambda house: None, "FOLDER", command=("sweep FOLDER",)),
    "not YAML": refused(yaml("{grid: 1}", "{grid: 1"), "FILE:9", quotes="not YAML: "),
    "unknown key": refused(yaml("learning_rate", "learning_rat"), "FILE:7:training.learning_rat"),
    "unknown section": refused(yaml("lora:", "lore:"), "FILE:2:lore"),
    "wrong type": refused(yaml("r: 2", "r: two"), "FILE:2:lora.r"),
    "half a step": refused(yaml("r: 2", "r: 2.5"), "FILE:2:lora.r"),
    "duplicate key": refused(yaml("r: 2", "r: 2, r: 4"), "FILE:2:lora.r"),
    "NaN": refused(yaml("1e-2", ".nan"), "FILE:7:training.learning_rate"),
    "infinity": refused(yaml("1e-2", ".inf"), "FILE:7:training.learning_rate"),
    "negative beta": refused(yaml("learning_rate: 1e-2", "beta: -0.1"), "FILE:7:training.beta"),
    "negative rate": refused(yaml("1e-2", "-1e-2"), "FILE:7:training.learning_rate"),
    "batch of nothing": refused(yaml("batch_size: 2", "batch_size: 0"), "FILE:7:training.per_device_train_batch_size"),
    "a Python tag": refused(yaml("r: 2", "r: !!python/object/apply:os.getcwd []"), "FILE:2:lora.r"),
    "an alias": refused(yaml("sweep: {grid: 1}", "sweep: &a {grid: 1}\nsft: *a"), "FILE:9"),
    "conflicting options": refused(yaml("{grid: 1}", "{grid: 1, lattice: 2}"), "FILE:8:sweep"),
    "two rewards": refused(reward("{column: a, function: b:c}"), "FILE:6:objectives.concise.reward"),
    "said in two places": refused(
        yaml("learning_rate: 1e-2", "arguments: {beta: 1}"), "FILE:7:training.arguments.beta"
    ),
    "a batch size that changes by itself": refused(
        yaml("learning_rate: 1e-2", "arguments: {auto_find_batch_size: true}"),
        "FILE:7:training.arguments.auto_find_batch_size",
    ),
    "an argument that nobody knows": refused(
        yaml("learning_rate: 1e-2", "arguments: {no_such: 1}"),
        "FILE:7:training.arguments.no_such",
    ),
    "a value that only the trainer knows": refused(
        yaml("learning_rate: 1e-2", "lr_scheduler_type: cosin"),
        "FILE:7:training",
        quotes="training: ",
        mentions="cosin",
    ),
    "adapters that fit nowhere": refused(
        yaml("r: 2", "r: 2, target_modules: [nope]"), "FILE:2:lora", quotes="do not fit the model: ", mentions="nope"
    ),
    "adapters on the output head": refused(
        yaml("r: 2", "r: 2, target_modules: [q_proj, lm_head]"), "FILE:2:lora.target_modules", mentions="lm_head"
    ),
    "a router's auxiliary loss": refused(
        yaml("learning_rate: 1e-2", "arguments: {router_aux_loss_coef: 0.01}"),
        "FILE:7:training.arguments.router_aux_loss_coef",
    ),
    "unknown dtype": refused(yaml("float32", "float23"), "FILE:1:model.dtype"),
    "a dtype that the device lacks": refused(yaml("float32", "float16"), "FILE:1:dtype", code=3),
    "trust in the file": refused(yaml("dtype: float32", "trust_remote_code: true"), "FILE:1:model.trust_remote_code"),
    "everything at once": refused(
        yaml("{r: 2}", "{" + ", ".join(f"wrong{i}: 1" for i in range(25)) + "}"),
        *(f"FILE:2:lora.wrong{i}" for i in range(20)),
        "and 5 more",
    ),
    "a value on the command line": refused(
        lambda house: None, "--set:training.beta", command=("sweep", "--set", "training.beta=-1")
    ),
    "a path on the command line": refused(
        lambda house: None, "--set:lora.r.x", command=("sweep", "--set", "lora.r.x=1")
    ),
    "no command of that name": refused(
        lambda house: None, "modpo", command=("fly",), quotes="COMMAND: ", mentions="fly"
    ),
}

PLACE = "FILE:8:sweep.weights[0]"
WEIGHTS = {
    "wrong length": refused(vectors("[[0.2, 0.3, 0.5]]"), PLACE),
    "primary objective at 0, and nothing known of the others": refused(
        both(
            yaml("concise: {reward", "safe: {pairs: safer}\n  concise: {reward"),
            yaml("{grid: 1}", "{weights: [{kind: 0.5, safe: 0.5}]}"),
        ),
        "FILE:9:sweep.weights[0]",
    ),
    "negative": refused(vectors("[{kind: 1.5, concise: -0.5}]"), f"{PLACE}.concise"),
    "sum is not 1": refused(vectors("[{kind: 0.5, concise: 0.4}]"), PLACE),
    "all zero": refused(vectors("[{kind: 0, concise: 0}]"), PLACE),
    "NaN": refused(vectors("[{kind: .nan, concise: 0.5}]"), f"{PLACE}.kind"),
    "unknown objective": refused(vectors("[{kind: 0.5, consise: 0.5}]"), f"{PLACE}.consise"),
    "decimal comma": refused(vectors("[{kind: 0,7, concise: 0,3}]"), f"{PLACE}.kind", f"{PLACE}.concise"),
    "text": refused(vectors("[{kind: much, concise: 0.3}]"), f"{PLACE}.kind"),
    "no vectors": refused(yaml("sweep: {grid: 1}\n", ""), "FILE:sweep"),
    "wrong length on the command line": refused(lambda house: None, "--weights:weights", command=trained("0.7,0.3")),
    "negative on the command line": refused(
        lambda house: None, "--weights:weights.concise", command=trained("kind=1.3,concise=-0.3")
    ),
    "NaN on the command line": refused(
        lambda house: None, "--weights:weights.kind", command=trained("kind=nan,concise=0.3")
    ),
    "sum is not 1 on the command line": refused(
        lambda house: None, "--weights:weights", command=trained("kind=0.7,concise=0.2")
    ),
    "unknown objective on the command line": refused(
        lambda house: None, "--weights:weights.safe", command=trained("kind=0.7,safe=0.3")
    ),
    "decimal comma on the command line": refused(
        lambda house: None,
        "--weights:weights.kind",
        "--weights:weights.concise",
        command=trained("kind=0,7,concise=0,3"),
    ),
}

OF_REWARD = "FILE:6:objectives.concise.reward"
REWARDS = {
    "fewer scores than rows": refused(scorer("return [1.0]"), "ROWS:1:concise"),
    "NaN": refused(
        scorer("return [math.nan if 'rain' in c else 1.0 for c in completions]"),
        "ROWS:3:concise",
        "ROWS:3:concise",
        code=6,
    ),
    "infinity": refused(
        scorer("return [-math.inf if c == 'bad rain' else 1.0 for c in completions]"), "ROWS:3:concise", code=6
    ),
    "text": refused(scorer("return ['high' if c == 'bad rain' else 1.0 for c in completions]"), "ROWS:3:concise"),
    "None": refused(scorer("return [None if c == 'bad rain' else 1.0 for c in completions]"), "ROWS:3:concise"),
    "wrong shape": refused(scorer("return [[1.0] if c == 'bad rain' else 1.0 for c in completions]"), "ROWS:3:concise"),
    "no list": refused(scorer("return 1.0"), "ROWS:1:concise"),
    "not deterministic": refused(
        scorer("return [next(calls) if c == 'bad rain' else 1.0 for c in completions]"), "ROWS:3:reward"
    ),
    "raises": refused(scorer("return [1 / (c != 'bad rain') for c in completions]"), "ROWS:3:concise"),
    "import fails": refused(function("no_such_module:score"), OF_REWARD),
    "module raises": refused(
        both(scorer("return 1"), lambda house: (house.folder / "my_rewards.py").write_text("1 / 0")), OF_REWARD
    ),
    "no such function": refused(function("modpo.rewards.text:no_such"), OF_REWARD),
    "not callable": refused(function("math:pi"), OF_REWARD),
    "takes no completions": refused(scorer("return []", "prompts"), OF_REWARD),
    "needs a field that is not there": refused(
        scorer("return [1.0] * len(completions)", "completions, grade"), "ROWS:1:grade"
    ),
    "missing column": refused(
        both(reward("{column: length}"), lambda house: setattr(house, "rows", house.rows[:1])), "ROWS:1:length"
    ),
    "several labels and none named": refused(
        both(lambda house: classifier(house, num_labels=3), judge), f"{OF_REWARD}.label"
    ),
    "no such label": refused(
        both(lambda house: classifier(house, num_labels=3), reward("{reward_model: FOLDER/classifier, label: good}")),
        f"{OF_REWARD}.label",
    ),
    "no classifier": refused(reward("{reward_model: MODEL}"), f"{OF_REWARD}.reward_model"),
    "reward model not found": refused(
        reward("{reward_model: no/such-model}"),
        f"{OF_REWARD}.reward_model",
        quotes="looked in ",
        mentions="no/such-model",
    ),
}

OF_MODEL = "FILE:1:model_name_or_path"
OF_IMPLICIT = f"{OF_REWARD}.implicit"
MODELS = {
    "not found, offline": refused(
        yaml("MODEL", "no/such-model"), OF_MODEL, quotes="looked in ", mentions="no/such-model, https://"
    ),
    "an empty folder": refused(
        both(yaml("MODEL", "FOLDER/empty"), lambda house: (house.folder / "empty").mkdir()), OF_MODEL
    ),
    "pickle only": refused(in_model(pickled), OF_MODEL),
    "weights cut short": refused(in_model(cut_short), OF_MODEL, quotes="cannot be read ("),
    "a broken configuration": refused(
        in_model(lambda folder: (folder / "config.json").write_text("{")),
        OF_MODEL,
        quotes="config.json cannot be read (",
    ),
    "a broken tokenizer": refused(
        in_model(lambda folder: (folder / "tokenizer.json").write_text("{}")), OF_MODEL, quotes="cannot be read ("
    ),
    "no chat template for conversations": refused(both(chats, in_model(without_template)), "FILE:1"),
    "vocabulary mismatch": refused(in_model(larger_tokenizer), OF_MODEL),
    "an adapter in place of a model": refused(both(adapter, yaml("MODEL", "FOLDER/adapter")), OF_MODEL),
    "adapter of another base": refused(both(lambda house: adapter(house, hidden_size=32), implicit), OF_IMPLICIT),
    "adapter of a deeper base": refused(both(lambda house: adapter(house, num_hidden_layers=3), implicit), OF_IMPLICIT),
    "adapter with missing keys": refused(adapter_with(lambda tensors: tensors.pop(next(iter(tensors)))), OF_IMPLICIT),
    "adapter with extra keys": refused(adapter_with(foreign), OF_IMPLICIT),
    "adapter with NaN": refused(adapter_with(unfinite), OF_IMPLICIT),
    "pickled adapter": refused(both(pickled_adapter, implicit), OF_IMPLICIT),
}


def another_experiment(house: House) -> None:
    """The output folder was claimed by an experiment with another beta."""
    house.write()
    experiment = read_experiment(house.folder / "experiment.yaml", ["training.beta=0.7"])
    (house.folder / "out").mkdir()
    (house.folder / "out" / "experiment.yaml").write_text(to_yaml(experiment))


def a_file_in_place_of(name: str) -> Change:
    return lambda house: (house.folder / name).write_text("mine")


LONG = "x" * 300
ENVIRONMENT = {
    "another configuration": refused(another_experiment, "FOLDER/out/experiment.yaml", code=4),
    "a name with ../": refused(yaml("kind:", "../kind:"), "FILE:5:objectives.../kind"),
    "an absolute name": refused(yaml("kind:", "/tmp/kind:"), "FILE:5:objectives./tmp/kind"),
    "a name of dots": refused(yaml("kind:", "..:"), "FILE:5:objectives..."),
    "a long name": refused(yaml("kind:", f"{'x' * 65}:"), f"FILE:5:objectives.{'x' * 65}"),
    "a name with NUL": refused(yaml("kind:", r'"a\0b":'), r"FILE:5:objectives.a\x00b"),
    "a long folder": refused(yaml("FOLDER/out", f"FOLDER/{LONG}"), "FILE:10:output_dir"),
    "a folder with NUL": refused(yaml("FOLDER/out", r'"a\0b"'), "FILE:10:output_dir"),
    "a long file": refused(yaml("path: ROWS", f"path: {LONG}"), "FILE:3:data.path"),
    "a long model": refused(yaml("MODEL", LONG), "FILE:1:model.model_name_or_path"),
    "a long cache": refused(yaml("FOLDER/cache", f"FOLDER/{LONG}"), "FILE:11:cache_dir"),
    "output is a file": refused(a_file_in_place_of("out"), "FOLDER/out", code=3),
    "cache is a file": refused(a_file_in_place_of("cache"), "FOLDER/cache", code=3),
    "output below a file": refused(yaml("FOLDER/out", "ROWS/out"), "ROWS", code=3),
    "a long --output": refused(
        lambda house: None,
        f"FOLDER/{LONG}",
        code=3,
        command=("train", "--weights", "kind=0.5,concise=0.5", "--output", f"FOLDER/{LONG}"),
    ),
}

CATALOGUE = {
    f"{room}: {row}": case
    for room, cases in {
        "data": DATA,
        "config": CONFIG,
        "weights": WEIGHTS,
        "rewards": REWARDS,
        "models": MODELS,
        "environment": ENVIRONMENT,
    }.items()
    for row, case in cases.items()
}


def run(house: House, command: tuple[str, ...]) -> int:
    """`("sweep",)` runs on the experiment, `("sweep FOLDER/x",)` on that file."""
    name, _, path = house.fill(command[0]).partition(" ")
    return main([name, path]) if path else house.run(*command)


# --- what is said -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a refused command left: its exit code, its lines without "error: ", and whether it changed a file."""

    code: int
    lines: list[str]
    standard_error: str
    standard_output: str
    changed: bool

    @property
    def places(self) -> list[str]:
        return [line.partition(": ")[0] for line in self.lines]


def outcome(row: str, folder: Path, model: Path) -> Outcome:
    """Run a row in an empty folder, with names in place of the paths in all that it says."""
    case = CATALOGUE[row]
    with house_in(folder, model) as house:
        case.change(house)
        house.write()
        before = house.contents()
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run(house, case.command)
        said = house.named(err.getvalue())
        lines = [line.removeprefix("error: ") for line in errors(said)]
        return Outcome(code, lines, said, out.getvalue(), house.contents() != before)


def golden(outcomes: Mapping[str, Outcome]) -> str:
    """The wording of all rows as it stands in the golden file."""
    rows = (
        f"{row}\n" + "".join(f"  {CATALOGUE[row].own_words(line)}\n" for line in found.lines)
        for row, found in outcomes.items()
    )
    return "\n".join(rows)


def write_golden() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build_model(folder / "tiny")
        found = {}
        for number, row in enumerate(CATALOGUE):
            (folder / str(number)).mkdir()
            found[row] = outcome(row, folder / str(number), model)
    GOLDEN.write_text(golden(found), "utf-8")


if __name__ == "__main__":
    write_golden()
