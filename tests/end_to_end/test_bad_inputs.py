"""The catalogue of bad inputs, each through the command line on a small real experiment.

What is refused leaves with the right exit code and one line a problem, within two seconds, before any weight is read
and before anything is written. What is only odd is said, and the command goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modpo.cli import main
from modpo.experiment.file import read_experiment, to_yaml
from modpo.scored.scorer import score_experiment

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
WORDS = ("sun", "sea", "rain", "road", "tea", "song")
PAIRS = [
    {"prompt": f"{i}: the {word}? ", "chosen": f"a good {word}" + " today" * (i % 2), "rejected": f"bad {word}"}
    for i, word in enumerate(WORDS, start=1)
]
HELD_OUT = [{"prompt": f"who {i}? ", "chosen": "a good one", "rejected": "no"} for i in range(2)]
LONGEST = 2.0  # seconds of work in which bad input is found; on a busy machine they may take longer

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

    def fill(self, text: str) -> str:
        """A text with the house's own paths."""
        folder = Path() if self.relative else self.folder
        names = {
            "HELD_OUT": folder / "held_out.jsonl",
            "ROWS": folder / "rows.jsonl",
            "FILE": folder / "experiment.yaml",
            "MODEL": self.model,
            "FOLDER": folder,
        }
        for name, path in names.items():
            text = text.replace(name, str(path))
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


@pytest.fixture
def house(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    return House(tmp_path, tiny_model)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading weights fails the test."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    for auto in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        monkeypatch.setattr(auto, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What a first call would spend importing libraries."""
    import peft
    import transformers
    import trl

    import modpo.training.trainer

    assert all((peft, transformers, trl, modpo.training.trainer))


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


def edit_json(name: str, **changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


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
    """A row of the catalogue. A line begins as `lines` says; what stands behind " ... " comes later in it."""

    change: Change
    lines: tuple[str, ...]
    code: int = 2
    command: tuple[str, ...] = ("sweep",)


def refused(change: Change, *lines: str, code: int = 2, command: tuple[str, ...] = ("sweep",)) -> Refusal:
    return Refusal(change, lines, code, command)


def trained(*weights: str) -> tuple[str, ...]:
    return ("train", "--weights", *weights)


DATA = {
    "missing file": refused(yaml("path: ROWS", "path: FOLDER/none.jsonl"), "FOLDER/none.jsonl: no such file in "),
    "neither a file nor on the Hub": refused(
        yaml("path: ROWS", "path: no-such/rows"), "no-such/rows: no such file or data set (split 'train'); looked in "
    ),
    "empty file": refused(raw(b""), "ROWS: holds no rows"),
    "a folder": refused(yaml("path: ROWS", "path: FOLDER"), "FOLDER: is a folder"),
    "of an unknown kind": refused(yaml("path: ROWS", "path: FILE"), "FILE: unknown kind of file '.yaml'"),
    "unknown format": refused(yaml("path: ROWS", "path: ROWS, format: sft"), "ROWS:format: unknown format 'sft'"),
    "malformed JSON": refused(raw(0, b"", 1, b'{"prompt": "a",'), "ROWS:4: malformed JSON ("),
    "no object": refused(raw(0, b"[1, 2]"), "ROWS:2: the row is a list, not a JSON object"),
    "nested too deeply": refused(raw(0, b"[" * 5000), "ROWS:2: malformed JSON (nested too deeply)"),
    "missing field": refused(drop(3, "chosen"), "ROWS:3:chosen: missing field"),
    "null": refused(edit(3, chosen=None), "ROWS:3:chosen: is null"),
    "a number for text": refused(edit(3, chosen=5), "ROWS:3:chosen: 5 is neither text nor a list of messages"),
    "a number as text": refused(
        both(
            reward("{column: length}"),
            lambda house: [row.update(chosen_length=3, rejected_length=1) for row in [*house.rows, *house.held_out]],
            edit(3, chosen_length="3.5"),
        ),
        "ROWS:3:length: '3.5' is not a finite number",
    ),
    "whitespace-only response": refused(
        both(edit(3, chosen=" \n"), edit(5, rejected="")),
        "ROWS:3:chosen: the response is empty or only white space",
        "ROWS:5:rejected: the response is empty or only white space",
    ),
    "blank prompt": refused(edit(2, prompt="  "), "ROWS:2:prompt: is empty"),
    "duplicate key": refused(
        raw(0, b'{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}'),
        "ROWS:2:chosen: the key occurs twice in one object",
    ),
    "invalid UTF-8": refused(raw(0, 1, b'{"prompt": "\xff"}'), "ROWS:3: invalid UTF-8 (byte 0xff)"),
    "half of a character": refused(
        raw(0, b'{"prompt": "a", "chosen": "\\ud800", "rejected": "d"}'),
        "ROWS:2:chosen: holds half of a surrogate pair",
    ),
    "chosen equals rejected everywhere": refused(
        lambda house: [row.update(chosen=row["rejected"]) for row in house.rows],
        "ROWS:chosen: no pair is left: in all 6 chosen equals rejected",
    ),
    "no pairs": refused(
        lambda house: setattr(house, "rows", [{"prompt": "a ", "responses": ["b", "c"]}]),
        "ROWS:objectives.kind.pairs: no pair of the label set 'data' in 1 prompts",
    ),
    "prompt as long as max_length": refused(
        yaml("max_length: 64", "max_length: 64, max_prompt_length: 64"),
        "FILE:3:data.max_prompt_length: is 64, which leaves no room for a response in max_length 64",
    ),
    "response without a token of its own": refused(
        both(edit(3, chosen="<eos>"), edit(4, rejected="<turn>")),
        "ROWS:3:responses[0]: the response has no token besides special ones",
        "ROWS:4:responses[1]: the response has no token besides special ones",
    ),
    "unknown chat role": refused(
        both(chats, lambda house: house.rows[2]["prompt"][0].update(role="human")),
        "ROWS:3:prompt[0].role: unknown role 'human'",
    ),
    "a response of the user": refused(
        both(chats, lambda house: house.rows[2]["chosen"][0].update(role="user")),
        "ROWS:3:chosen: holds a message of role 'user'",
    ),
    "a role that the template refuses": refused(
        both(chats, yaml("eval_prompts: 2", "eval_prompts: 0"), with_system(3), in_model(template_without_system)),
        "ROWS:3:prompt: the chat template refuses roles system, user",
    ),
    "chat and plain rows mixed": refused(
        edit(
            3,
            prompt=[{"role": "user", "content": "a"}],
            chosen=[{"role": "assistant", "content": "b"}],
            rejected=[{"role": "assistant", "content": "c"}],
        ),
        "ROWS:3:prompt: is a conversation, but the rows before are plain text",
    ),
    "chat and plain fields mixed": refused(
        edit(3, prompt=[{"role": "user", "content": "a"}]),
        "ROWS:3:chosen: is plain text in one field and a conversation in another",
        "ROWS:3:rejected: is plain text in one field and a conversation in another",
    ),
    "everything held out": refused(
        yaml("eval_path: HELD_OUT", "eval_prompts: 6"), "FILE:3:data.eval_prompts: 6 held-out prompts of 6"
    ),
    "bad held-out rows": refused(yaml("eval_path: HELD_OUT", "eval_path: FOLDER/none.jsonl"), "FOLDER/none.jsonl: no"),
    "as many rows as can be shown": refused(
        lambda house: setattr(house, "rows", [{**PAIRS[0], "chosen": None}] * 50),
        *(f"ROWS:{line}:chosen: is null" for line in range(1, 21)),
    ),
}

CONFIG = {
    "missing file": refused(lambda house: None, "FOLDER/none.yaml: no such file", command=("sweep FOLDER/none.yaml",)),
    "a folder": refused(lambda house: None, "FOLDER: is a directory", command=("sweep FOLDER",)),
    "not YAML": refused(yaml("{grid: 1}", "{grid: 1"), "FILE:9: not YAML: "),
    "unknown key": refused(
        yaml("learning_rate", "learning_rat"),
        "FILE:7:training.learning_rat: unknown key ... did you mean `learning_rate`?",
    ),
    "unknown section": refused(yaml("lora:", "lore:"), "FILE:2:lore: unknown key ... did you mean `lora`?"),
    "wrong type": refused(yaml("r: 2", "r: two"), "FILE:2:lora.r: expected a whole number, got 'two'"),
    "half a step": refused(yaml("r: 2", "r: 2.5"), "FILE:2:lora.r: expected a whole number, got 2.5"),
    "duplicate key": refused(yaml("r: 2", "r: 2, r: 4"), "FILE:2:lora.r: is given twice, first in line 2"),
    "NaN": refused(yaml("1e-2", ".nan"), "FILE:7:training.learning_rate: .nan is not finite"),
    "infinity": refused(yaml("1e-2", ".inf"), "FILE:7:training.learning_rate: .inf is not finite"),
    "negative beta": refused(
        yaml("learning_rate: 1e-2", "beta: -0.1"), "FILE:7:training.beta: is -0.1; fix: give a value that is above 0"
    ),
    "negative rate": refused(yaml("1e-2", "-1e-2"), "FILE:7:training.learning_rate: is -0.01"),
    "batch of nothing": refused(
        yaml("batch_size: 2", "batch_size: 0"), "FILE:7:training.per_device_train_batch_size: is 0"
    ),
    "a Python tag": refused(
        yaml("r: 2", "r: !!python/object/apply:os.getcwd []"), "FILE:2:lora.r: the tag !!python/object/apply:os.getcwd "
    ),
    "an alias": refused(yaml("sweep: {grid: 1}", "sweep: &a {grid: 1}\nsft: *a"), "FILE:9: *a is an alias"),
    "conflicting options": refused(
        yaml("{grid: 1}", "{grid: 1, lattice: 2}"), "FILE:8:sweep: grid and lattice exclude each other"
    ),
    "two rewards": refused(
        reward("{column: a, function: b:c}"),
        "FILE:6:objectives.concise.reward: has 2 sources: function, column",
    ),
    "said in two places": refused(
        yaml("learning_rate: 1e-2", "arguments: {beta: 1}"), "FILE:7:training.arguments.beta: has a place of its own"
    ),
    "a batch size that changes by itself": refused(
        yaml("learning_rate: 1e-2", "arguments: {auto_find_batch_size: true}"),
        "FILE:7:training.arguments.auto_find_batch_size: would change the batch size silently",
    ),
    "an argument that nobody knows": refused(
        yaml("learning_rate: 1e-2", "arguments: {no_such: 1}"),
        "FILE:7:training.arguments.no_such: is no field of MODPOConfig",
    ),
    "a value that only the trainer knows": refused(
        yaml("learning_rate: 1e-2", "lr_scheduler_type: cosin"), "FILE:7:training: ... cosin"
    ),
    "adapters that fit nowhere": refused(
        yaml("r: 2", "r: 2, target_modules: [nope]"), "FILE:2:lora: do not fit the model: ... nope"
    ),
    "unknown dtype": refused(yaml("float32", "float23"), "FILE:1:model.dtype: is 'float23'"),
    "a dtype that the device lacks": refused(
        yaml("float32", "float16"), "FILE:1:dtype: float16 does not train on a CPU", code=3
    ),
    "trust in the file": refused(
        yaml("dtype: float32", "trust_remote_code: true"), "FILE:1:model.trust_remote_code: is not allowed here"
    ),
    "everything at once": refused(
        yaml("{r: 2}", "{" + ", ".join(f"wrong{i}: 1" for i in range(25)) + "}"),
        *(f"FILE:2:lora.wrong{i}: unknown key" for i in range(20)),
        "and 5 more",
    ),
    "a value on the command line": refused(
        lambda house: None, "--set:training.beta: is -1", command=("sweep", "--set", "training.beta=-1")
    ),
    "a path on the command line": refused(
        lambda house: None, "--set:lora.r.x: `lora.r` is no section", command=("sweep", "--set", "lora.r.x=1")
    ),
    "no command of that name": refused(lambda house: None, "modpo: argument COMMAND: invalid", command=("fly",)),
}

PLACE = "FILE:8:sweep.weights[0]"
WEIGHTS = {
    "wrong length": refused(vectors("[[0.2, 0.3, 0.5]]"), f"{PLACE}: expected a mapping of objective to weight"),
    "primary objective at 0, and nothing known of the others": refused(
        both(
            yaml("concise: {reward", "safe: {pairs: safer}\n  concise: {reward"),
            yaml("{grid: 1}", "{weights: [{kind: 0.5, safe: 0.5}]}"),
        ),
        "FILE:9:sweep.weights[0]: kind and safe have pairs but no reward ... fix: give all but one of them a reward",
    ),
    "negative": refused(vectors("[{kind: 1.5, concise: -0.5}]"), f"{PLACE}.concise: -0.5 is negative"),
    "sum is not 1": refused(
        vectors("[{kind: 0.5, concise: 0.4}]"), f"{PLACE}: weights sum to 0.9, not 1 ... `normalize: true`"
    ),
    "all zero": refused(vectors("[{kind: 0, concise: 0}]"), f"{PLACE}: all weights are 0"),
    "NaN": refused(vectors("[{kind: .nan, concise: 0.5}]"), f"{PLACE}.kind: .nan is not finite"),
    "unknown objective": refused(
        vectors("[{kind: 0.5, consise: 0.5}]"), f"{PLACE}.consise: unknown objective; fix: use one of: kind, concise"
    ),
    "decimal comma": refused(
        vectors("[{kind: 0,7, concise: 0,3}]"),
        f"{PLACE}.kind: '0,7' has a decimal comma; fix: write 0.7",
        f"{PLACE}.concise: '0,3' has a decimal comma; fix: write 0.3",
    ),
    "text": refused(vectors("[{kind: much, concise: 0.3}]"), f"{PLACE}.kind: 'much' is not a number"),
    "no vectors": refused(yaml("sweep: {grid: 1}\n", ""), "FILE:sweep: there are no preference vectors"),
    "wrong length on the command line": refused(
        lambda house: None, "--weights:weights: '0.7' is not NAME=WEIGHT", command=trained("0.7,0.3")
    ),
    "negative on the command line": refused(
        lambda house: None, "--weights:weights.concise: -0.3 is negative", command=trained("kind=1.3,concise=-0.3")
    ),
    "NaN on the command line": refused(
        lambda house: None, "--weights:weights.kind: nan is not finite", command=trained("kind=nan,concise=0.3")
    ),
    "sum is not 1 on the command line": refused(
        lambda house: None, "--weights:weights: weights sum to 0.9, not 1", command=trained("kind=0.7,concise=0.2")
    ),
    "unknown objective on the command line": refused(
        lambda house: None, "--weights:weights.safe: unknown objective", command=trained("kind=0.7,safe=0.3")
    ),
    "decimal comma on the command line": refused(
        lambda house: None,
        "--weights:weights.kind: '0,7' has a decimal comma",
        "--weights:weights.concise: '0,3' has a decimal comma",
        command=trained("kind=0,7,concise=0,3"),
    ),
}

OF_REWARD = "FILE:6:objectives.concise.reward"
REWARDS = {
    "fewer scores than rows": refused(
        scorer("return [1.0]"), "ROWS:1:concise: my_rewards:score returned 1 scores, expected 8"
    ),
    "NaN": refused(
        scorer("return [math.nan if 'rain' in c else 1.0 for c in completions]"),
        "ROWS:3:concise: nan is not finite (response 'a good rain today')",
        "ROWS:3:concise: nan is not finite (response 'bad rain')",
        code=6,
    ),
    "infinity": refused(
        scorer("return [-math.inf if c == 'bad rain' else 1.0 for c in completions]"),
        "ROWS:3:concise: -inf is not finite (response 'bad rain')",
        code=6,
    ),
    "text": refused(
        scorer("return ['high' if c == 'bad rain' else 1.0 for c in completions]"),
        "ROWS:3:concise: 'high' is not a number",
    ),
    "None": refused(
        scorer("return [None if c == 'bad rain' else 1.0 for c in completions]"), "ROWS:3:concise: None is not a number"
    ),
    "wrong shape": refused(
        scorer("return [[1.0] if c == 'bad rain' else 1.0 for c in completions]"),
        "ROWS:3:concise: [1.0] is not a number",
    ),
    "no list": refused(scorer("return 1.0"), "ROWS:1:concise: my_rewards:score returned float, not a list"),
    "not deterministic": refused(
        scorer("return [next(calls) if c == 'bad rain' else 1.0 for c in completions]"),
        "ROWS:3:reward: not deterministic: it scored the same response 0.0, then 1.0",
    ),
    "raises": refused(
        scorer("return [1 / (c != 'bad rain') for c in completions]"),
        "ROWS:3:concise: my_rewards:score raised ZeroDivisionError: division by zero on 1 response(s)",
    ),
    "import fails": refused(
        function("no_such_module:score"), f"{OF_REWARD}: cannot import no_such_module: ModuleNotFoundError"
    ),
    "module raises": refused(
        both(scorer("return 1"), lambda house: (house.folder / "my_rewards.py").write_text("1 / 0")),
        f"{OF_REWARD}: cannot import my_rewards: ZeroDivisionError",
    ),
    "no such function": refused(
        function("modpo.rewards.text:no_such"), f"{OF_REWARD}: modpo.rewards.text has no 'no_such'"
    ),
    "not callable": refused(function("math:pi"), f"{OF_REWARD}: math:pi is of type float and cannot be called"),
    "takes no completions": refused(
        scorer("return []", "prompts"), f"{OF_REWARD}: my_rewards:score takes no `completions`"
    ),
    "needs a field that is not there": refused(
        scorer("return [1.0] * len(completions)", "completions, grade"),
        "ROWS:1:grade: my_rewards:score needs this field",
    ),
    "missing column": refused(
        both(reward("{column: length}"), lambda house: setattr(house, "rows", house.rows[:1])),
        "ROWS:1:length: missing column",
    ),
    "several labels and none named": refused(
        both(lambda house: classifier(house, num_labels=3), judge),
        f"{OF_REWARD}.label: the model has 3 labels, none is named; fix: use one of: LABEL_0, LABEL_1, LABEL_2",
    ),
    "no such label": refused(
        both(lambda house: classifier(house, num_labels=3), reward("{reward_model: FOLDER/classifier, label: good}")),
        f"{OF_REWARD}.label: the model has no label 'good'",
    ),
    "no classifier": refused(
        reward("{reward_model: MODEL}"),
        f"{OF_REWARD}.reward_model: MODEL (LlamaForCausalLM) has no classification head",
    ),
    "reward model not found": refused(
        reward("{reward_model: no/such-model}"),
        f"{OF_REWARD}.reward_model: 'no/such-model' is neither a folder here nor to be had from the Hub; looked in ",
    ),
}

OF_MODEL = "FILE:1:model_name_or_path"
OF_IMPLICIT = f"{OF_REWARD}.implicit: FOLDER/adapter"
MODELS = {
    "not found, offline": refused(
        yaml("MODEL", "no/such-model"),
        f"{OF_MODEL}: 'no/such-model' is neither a folder here nor to be had from the Hub; looked in "
        " ... no/such-model, https:// ... hub",
    ),
    "an empty folder": refused(
        both(yaml("MODEL", "FOLDER/empty"), lambda house: (house.folder / "empty").mkdir()),
        f"{OF_MODEL}: FOLDER/empty has no config.json",
    ),
    "pickle only": refused(in_model(pickled), f"{OF_MODEL}: MODEL has no .safetensors weights"),
    "weights cut short": refused(in_model(cut_short), f"{OF_MODEL}: MODEL/model.safetensors cannot be read"),
    "a broken configuration": refused(
        in_model(lambda folder: (folder / "config.json").write_text("{")), f"{OF_MODEL}: MODEL/config.json cannot"
    ),
    "a broken tokenizer": refused(
        in_model(lambda folder: (folder / "tokenizer.json").write_text("{}")),
        f"{OF_MODEL}: the tokenizer of MODEL cannot be read",
    ),
    "no chat template for conversations": refused(
        both(chats, in_model(without_template)),
        "FILE:1: the data is conversational, the tokenizer has no chat template",
    ),
    "vocabulary mismatch": refused(
        in_model(larger_tokenizer),
        f"{OF_MODEL}: the tokenizer of MODEL has ids up to 259, but the model's vocabulary ends at 258",
    ),
    "an adapter in place of a model": refused(
        both(adapter, yaml("MODEL", "FOLDER/adapter")), f"{OF_MODEL}: FOLDER/adapter holds a PEFT adapter, not a model"
    ),
    "adapter of another base": refused(
        both(lambda house: adapter(house, hidden_size=32), implicit),
        f"{OF_IMPLICIT} does not fit its base: it has in another shape 2 tensors",
    ),
    "adapter of a deeper base": refused(
        both(lambda house: adapter(house, num_hidden_layers=3), implicit),
        f"{OF_IMPLICIT} does not fit its base: it should not have 2 tensors",
    ),
    "adapter with missing keys": refused(
        adapter_with(lambda tensors: tensors.pop(next(iter(tensors)))),
        f"{OF_IMPLICIT} does not fit its base: it lacks 1 tensors",
    ),
    "adapter with extra keys": refused(
        adapter_with(foreign), f"{OF_IMPLICIT} does not fit its base: it should not have 1 tensors"
    ),
    "adapter with NaN": refused(
        adapter_with(unfinite), f"{OF_IMPLICIT}/adapter_model.safetensors holds NaN or infinity in 1 tensors"
    ),
    "pickled adapter": refused(both(pickled_adapter, implicit), f"{OF_IMPLICIT} has no adapter_model.safetensors"),
}


def another_experiment(house: House) -> None:
    """The output folder was claimed by an experiment with another beta."""
    house.write()
    experiment = read_experiment(house.folder / "experiment.yaml", ["training.beta=0.7"])
    (house.folder / "out").mkdir()
    (house.folder / "out" / "experiment.yaml").write_text(to_yaml(experiment))


def a_file_in_place_of(name: str) -> Change:
    return lambda house: (house.folder / name).write_text("mine")


NO_NAME = "cannot be the name of an objective, for files are named after it"
LONG = "x" * 300
ENVIRONMENT = {
    "another configuration": refused(
        another_experiment, "FOLDER/out/experiment.yaml: the folder holds another experiment (training", code=4
    ),
    "a name with ../": refused(yaml("kind:", "../kind:"), f"FILE:5:objectives.../kind: {NO_NAME}"),
    "an absolute name": refused(yaml("kind:", "/tmp/kind:"), f"FILE:5:objectives./tmp/kind: {NO_NAME}"),
    "a name of dots": refused(yaml("kind:", "..:"), f"FILE:5:objectives...: {NO_NAME}"),
    "a long name": refused(yaml("kind:", f"{'x' * 65}:"), f"FILE:5:objectives.{'x' * 65}: {NO_NAME}"),
    "a name with NUL": refused(yaml("kind:", r'"a\0b":'), rf"FILE:5:objectives.a\x00b: {NO_NAME}"),
    "a long folder": refused(yaml("FOLDER/out", f"FOLDER/{LONG}"), "FILE:10:output_dir: is '"),
    "a folder with NUL": refused(yaml("FOLDER/out", r'"a\0b"'), r"FILE:10:output_dir: is 'a\x00b'"),
    "a long file": refused(yaml("path: ROWS", f"path: {LONG}"), "FILE:3:data.path: is 'xxx"),
    "a long model": refused(yaml("MODEL", LONG), "FILE:1:model.model_name_or_path: is 'xxx"),
    "a long cache": refused(yaml("FOLDER/cache", f"FOLDER/{LONG}"), "FILE:11:cache_dir: is '"),
    "output is a file": refused(a_file_in_place_of("out"), "FOLDER/out: is no folder", code=3),
    "cache is a file": refused(a_file_in_place_of("cache"), "FOLDER/cache: is no folder", code=3),
    "output below a file": refused(yaml("FOLDER/out", "ROWS/out"), "ROWS: is no folder", code=3),
    "a long --output": refused(
        lambda house: None,
        "FOLDER/ ... the name is too long",
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


def begins(line: str, expected: str) -> bool:
    """Whether a line begins as expected, and goes on with what stands behind each " ... "."""
    start, *others = expected.split(" ... ")
    if not line.startswith(start):
        return False
    at = len(start)
    for piece in others:
        at = line.find(piece, at)
        if at < 0:
            return False
    return True


@pytest.mark.parametrize("row", CATALOGUE)
def test_bad_input_is_one_line_a_problem_and_changes_nothing(
    row: str, house: House, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CATALOGUE[row]
    case.change(house)
    house.write()
    before = house.contents()
    capsys.readouterr()
    started = time.process_time()
    code = run(house, case.command)
    took = time.process_time() - started
    said = capsys.readouterr()
    errors = [line.removeprefix("error: ") for line in said.err.splitlines() if line.startswith("error: ")]
    assert code == case.code, said.err
    assert len(errors) == len(case.lines), said.err
    for line, expected in zip(errors, map(house.fill, case.lines), strict=True):
        assert begins(line, expected), said.err
        assert "; fix: " in line or line.startswith("and ")
    assert "Traceback" not in said.err
    assert said.out == ""
    assert house.contents() == before
    assert took < LONGEST


def test_debug_shows_the_traceback_before_the_line(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    edit(3, chosen=None)(house)
    house.write()
    assert house.run("score", "--debug") == 2
    *_, last = lines = capsys.readouterr().err.splitlines()
    assert last.startswith(house.fill("error: ROWS:3:chosen: is null; fix: "))
    assert "Traceback (most recent call last):" in lines


@pytest.mark.parametrize("command", ["score", "inspect", "train"])
def test_other_commands_refuse_the_same(command: str, house: House, no_weights: None, capsys) -> None:
    edit(3, chosen="<eos>")(house)
    house.write()
    before = house.contents()
    options = ["--weights", "kind=0.5,concise=0.5"] if command == "train" else []
    assert house.run(command, *options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == [line for line in errors if line.startswith(house.fill("error: ROWS:3:responses[0]: "))] != []
    assert house.contents() == before


def test_a_folder_that_may_not_be_written(house: House, no_weights: None, monkeypatch, capsys) -> None:
    house.write()
    if os.geteuid() == 0:  # nothing is read-only to root
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    else:
        house.folder.chmod(0o500)
    try:
        assert house.run("sweep") == 3
    finally:
        house.folder.chmod(0o700)
    assert capsys.readouterr().err.startswith(house.fill("error: FOLDER: may not be written; fix: "))
    assert not (house.folder / "out").exists()


# --- what is accepted, and said -----------------------------------------------------------------------------

SWEEP = ("sweep", "--no-evaluate")
SCORE = ("score",)


def duplicates(house: House) -> None:
    house.rows += house.rows[:2]


ACCEPTED: dict[str, tuple[Change, tuple[str, ...], str]] = {
    "data: byte order mark": (bytes_of(lambda good: b"\xef\xbb\xbf" + good), SCORE, ""),
    "data: CRLF": (bytes_of(lambda good: good.replace(b"\n", b"\r\n")), SCORE, ""),
    "data: empty lines": (bytes_of(lambda good: b"\n\n" + good.replace(b"\n", b"\n \n")), SCORE, ""),
    "data: chosen equals rejected": (
        edit(3, chosen="bad rain"),
        SCORE,
        "warning: ROWS: 1 pairs dropped: chosen equals rejected",
    ),
    "data: duplicate rows": (duplicates, SCORE, "warning: ROWS: 2 rows repeat an earlier row: each pair counts once"),
    "data: prompt longer than max_length": (
        edit(3, prompt="long " * 40),
        SCORE,
        "warning: 1 prompts lost their beginning and 0 responses their end; fix: ",
    ),
    "data: response longer than max_length": (
        edit(3, chosen="long " * 40),
        SCORE,
        "warning: 0 prompts lost their beginning and 1 responses their end; fix: ",
    ),
    "data: tokens merged across the prompt boundary": (
        in_model(with_merges),
        SCORE,
        "warning: ROWS: 6 responses share a token with the end of their prompt",
    ),
    "data: special tokens in user text": (
        both(
            chats,
            lambda house: [
                row["prompt"][0].update(content="a<eos>b" + row["prompt"][0]["content"]) for row in house.rows
            ],
        ),
        SCORE,
        "warning: ROWS: 4 texts spell out a special token, which is read as one",
    ),
    "data: train and held-out rows overlap": (
        edit(3, **HELD_OUT[0]),
        SWEEP,
        "warning: ROWS: 1 prompts are held out as well: they are not trained on",
    ),
    "data: fewer rows than a batch": (
        yaml("batch_size: 2", "batch_size: 7"),
        SWEEP,
        "warning: ROWS: 6 prompts to train on are fewer than one batch of 7",
    ),
    "config: 1e-5, which YAML reads as text": (yaml("1e-2", "1e-5"), SCORE, ""),
    "weights: normalize": (
        yaml("{grid: 1}", "{weights: [{kind: 3, concise: 1}], normalize: true}"),
        SCORE,
        "",
    ),
    "weights: the same vector twice": (
        vectors("[{kind: 0.5, concise: 0.5}, {concise: 0.5, kind: 0.5}]"),
        SWEEP,
        "point 1 of 1: kind 0.5, concise 0.5",
    ),
    "weights: primary objective at 0": (
        both(vectors("[{kind: 0, concise: 1}]"), yaml("{per_device", "{objective: kind, per_device")),
        SWEEP,
        "kind0-concise1: trained",
    ),
    "rewards: constant margin": (
        scorer("return [1.0] * len(completions)"),
        SWEEP,
        "warning: ROWS:1: reward is 1 for each of the first 8 responses: a constant reward moves nothing",
    ),
    "models: no pad token": (in_model(without_pad_token), SCORE, ""),
    "models: pad equals eos": (in_model(edit_json("tokenizer_config.json", pad_token="<eos>")), SWEEP, "trained in"),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("row", ACCEPTED)
def test_what_is_only_odd_is_said_once_and_goes_on(row: str, house: House, capsys) -> None:
    change, command, words = ACCEPTED[row]
    change(house)
    house.write()
    code = house.run(*command)
    said = capsys.readouterr().err.splitlines()
    assert code == 0, said
    assert any(house.fill(words) in line for line in said), said
    assert not any(line.startswith("error: ") for line in said)
    if command == SWEEP:
        (point,) = (house.folder / "out" / "points").glob("*/adapter_model.safetensors")
        assert point.stat().st_size > 0


def test_rewards_in_another_order_are_those_of_the_same_texts(house: House) -> None:
    """Scores lie beside the texts that they are of, whatever the order of the rows was when they were computed."""

    def scores() -> dict[str, float]:
        house.write()
        experiment = read_experiment(house.folder / "experiment.yaml")
        column = score_experiment(experiment).rewards["concise"].open()
        texts = [text for row in house.rows for text in (row["chosen"], row["rejected"])]
        return dict(zip(texts, [score for row in column for score in row["scores"]], strict=True))

    before = scores()
    house.rows.reverse()
    assert scores() == before == {text: float(len(text.split())) for text in before}


# --- what only a finished run can meet ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a sweep that was run."""
    house = House(tmp_path_factory.mktemp("finished"), tiny_model, relative=True)
    house.write()
    with chdir(house.folder):
        assert house.run(*SWEEP) == 0
    return house.folder


@pytest.fixture
def rerun(finished: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """A copy of the finished sweep."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return House(tmp_path, tiny_model, relative=True)


def points(house: House) -> dict[str, bytes]:
    return {str(p.relative_to(house.folder)): p.read_bytes() for p in house.folder.glob("out/points/*/*")}


def test_the_same_command_again_keeps_what_is_there(rerun: House, capsys) -> None:
    before = points(rerun)
    assert rerun.run(*SWEEP) == 0
    assert "kind0.5-concise0.5: finished before, kept" in capsys.readouterr().err
    assert points(rerun) == before != {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (yaml("1e-2", "2e-2"), "the folder holds another experiment (training"),
        (yaml("r: 2", "r: 4"), "the folder holds another experiment (lora"),
        (yaml("maximize: false", "maximize: true"), "the folder holds another experiment (objectives"),
        (edit(3, chosen="a better rain"), "kind0.5-concise0.5: was made from other data"),
    ],
    ids=["rate", "adapters", "objectives", "rows"],
)
def test_a_changed_experiment_is_not_resumed(change: Change, words: str, rerun: House, capsys) -> None:
    before = points(rerun)
    change(rerun)
    rerun.write()
    assert rerun.run(*SWEEP) == 4
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert points(rerun) == before != {}


def test_other_vectors_join_those_that_are_there(rerun: House) -> None:
    before = points(rerun)
    vectors("[{kind: 0.25, concise: 0.75}]")(rerun)
    rerun.write()
    assert rerun.run(*SWEEP) == 0
    assert before.items() < points(rerun).items()


def test_a_cache_of_a_newer_schema(rerun: House, no_weights: None, capsys) -> None:
    for path in (rerun.folder / "cache").rglob("manifest.json"):
        newer(path)
    before = rerun.contents()
    assert rerun.run("score") == 4
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "was written by a newer modpo; fix: update modpo" in error
    assert rerun.contents() == before


def newer(path: Path) -> None:
    """A manifest as a later version would write it."""
    from modpo.base.files import SEAL, write_sealed

    manifest = json.loads(path.read_text())
    if "schema" in manifest:
        manifest.pop(SEAL, None)
        write_sealed(path, {**manifest, "schema": 99})


# --- memory -------------------------------------------------------------------------------------------------

LOWER = (
    "training.per_device_train_batch_size",
    "training.max_packed_tokens",
    "data.max_length",
    "training.gradient_checkpointing",
)


@pytest.fixture
def hungry(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first point that is trained asks for more memory than there is; the batch sizes of all steps."""
    import torch

    from modpo.training.trainer import MODPOTrainer

    compute_loss, sizes = MODPOTrainer.compute_loss, []

    def asking(self: MODPOTrainer, *args: Any, **kwargs: Any) -> Any:
        sizes.append(self.args.per_device_train_batch_size)
        if self.args.vector["kind"] > 0.5:
            torch.empty(1 << 50)
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(MODPOTrainer, "compute_loss", asking)
    return sizes


def test_training_without_memory_says_what_to_lower(house: House, hungry: list[int], capsys) -> None:
    house.write()
    assert house.run("train", "--weights", "kind=0.75,concise=0.25") == 3
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: out of memory: ")
    assert all(name in error for name in LOWER)
    assert not list(house.folder.glob("out/points/*/adapter*"))


def test_a_sweep_without_memory_records_the_point_and_goes_on(house: House, hungry: list[int], capsys) -> None:
    yaml("{grid: 1}", "{grid: 2}")(house)
    house.write()
    assert house.run(*SWEEP) == 5
    record = json.loads((house.folder / "out" / "failed" / "kind0.75-concise0.25.json").read_text())
    assert "memory" in record["reason"]
    assert [p.parent.name for p in house.folder.glob("out/points/*/adapter_config.json")] == ["kind0.25-concise0.75"]
    assert set(hungry) == {2}  # nobody lowered it


def test_a_reward_without_memory_is_not_taken_for_a_bad_row(house: House, capsys) -> None:
    scorer("return [float(len(c)) for c in completions] if len(completions) < 9 else bytearray(1 << 60)")(house)
    house.write()
    assert house.run("score") == 3
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: out of memory: ")
