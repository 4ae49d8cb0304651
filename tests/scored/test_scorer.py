"""The scored cache against slow oracles; what is computed again and what is not; what a killed run leaves behind."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modpo.base import files as publish
from modpo.base.errors import InputError, IntegrityError, NumericError
from modpo.data.groups import group_rows
from modpo.data.loading import load_groups
from modpo.data.rows import rows_from_list
from modpo.data.text_notes import COUNTED
from modpo.data.tokens import tokenize_group
from modpo.experiment.file import to_yaml
from modpo.experiment.sections import Experiment, LoraSection, Objective, RewardSection, TrainingSection
from modpo.models.reference import ReferenceModel
from modpo.rewards.batch import reward_batch
from modpo.scored import columns
from modpo.scored import scorer as scoring
from modpo.scored.columns import SHARD_GROUPS, column
from modpo.scored.labels import draw_bradley_terry
from modpo.scored.of_experiment import experiment_scorer, score_experiment
from modpo.scored.of_rows import score_dataset
from tests.kit import write_rows
from tests.scored.house import (
    Counted,
    House,
    begin_with_a_turn,
    edit_data_with_equal_size_and_time,
    edit_the_scorer,
    exchange_two_tokens,
    flip_a_weight,
    in_the_model,
    move,
    rows,
    with_,
    with_reward,
)


@pytest.fixture
def house(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    yield House(tmp_path, tiny_model, monkeypatch)
    sys.modules.pop("scorer", None)


@pytest.fixture(scope="module")
def scored_before(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, dict[str, Any]]:
    """The cache that a run in another folder left behind, and what it scored."""
    with pytest.MonkeyPatch.context() as patch:
        house = House(tmp_path_factory.mktemp("before"), tiny_model, patch)
        scored, counted = house.run()
        assert counted.computed == {"tokens", "rewards", "reference"}
        assert counted.weights_read
        return house.experiment.cache_dir, scored.dataset().to_dict()


@pytest.fixture
def scored_house(house: House, scored_before: tuple[Path, dict[str, Any]]) -> House:
    """A house whose data are scored already."""
    shutil.copytree(scored_before[0], house.experiment.cache_dir)
    return house


# --- numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [True, False])
def test_reference_log_probs_equal_those_of_each_response_alone(house, packing):
    """The oracle reads every response with its prompt as a sequence of its own, unpadded."""
    import torch
    from transformers import AutoModelForCausalLM

    from modpo.forward.logprobs import padded_logps

    experiment = replace(house.experiment, training=TrainingSection(packing=packing))
    dataset = house.run(experiment)[0].dataset()
    model = AutoModelForCausalLM.from_pretrained(house.model, dtype=torch.float32).eval()
    assert len(dataset) == 12
    with torch.no_grad():
        for row in dataset:
            expected = [
                padded_logps(model, [row["prompt_ids"]], [[response]]).item() for response in row["responses_ids"]
            ]
            assert row["ref_logps"] == pytest.approx(expected, abs=1e-4)
            assert max(row["ref_logps"]) < -1  # not something that is equal by being empty


def test_tokens_pairs_and_rewards_equal_direct_calls(house):
    experiment = house.experiment
    graded = Objective("graded", reward=RewardSection(column="grade"))
    experiment = replace(experiment, objectives={**experiment.objectives, "graded": graded})
    dataset = house.run(experiment)[0].dataset()
    tokenizer = ReferenceModel(experiment.model, experiment.cache_dir).tokenizer
    groups, _ = load_groups(experiment)
    assert dataset["reward/graded"][:] == [row["grade"] for row in rows(12)]
    for group, row in zip(groups, dataset, strict=True):
        tokens = tokenize_group(group, tokenizer, max_length=64)
        assert (row["prompt_ids"], row["responses_ids"]) == (tokens.prompt_ids, tokens.responses_ids)
        assert row["pairs/liked"] == [list(pair) for pair in group.pairs["data"]]
        assert row["reward/long"] == [len(response) for response in group.responses]


def test_groups_without_pairs_are_scored(house):
    given = rows(6)
    given[0]["pairs"], given[4]["pairs"] = [], []
    write_rows(house.data, given)
    dataset = house.run()[0].dataset()
    assert dataset["reward/long"][:] == [[len(response) for response in row["responses"]] for row in given]
    assert dataset["pairs/liked"][:] == [row["pairs"] for row in given]


def test_rows_in_memory_are_scored_by_the_model_in_memory(house):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(house.model, dtype=torch.float32).eval()
    tokenizer = ReferenceModel(house.experiment.model, house.experiment.cache_dir).tokenizer
    given = Dataset.from_list(
        [
            {"prompt": f"q{i}\n", "chosen": "yes" * i, "rejected": "no", "chosen_kind": i / 4, "rejected_kind": 1.0}
            for i in (1, 2, 3)
        ]
    )
    long = Objective("long", reward=RewardSection("scorer:score"))
    arguments = {"model": model, "tokenizer": tokenizer, "label_sets": {"liked": "data"}, "max_length": 64}
    objectives = {"liked": Objective("liked"), "long": long, "kind": Objective("kind")}
    dataset = score_dataset(given, objectives=objectives, cache_dir=house.folder / "cache", **arguments)
    assert dataset["reward/long"][:] == [[3, 2], [6, 2], [9, 2]]
    assert dataset["reward/kind"][:] == [[0.25, 1], [0.5, 1], [0.75, 1]]
    assert dataset["pairs/liked"][:] == [[[0, 1]]] * 3


def test_a_batch_has_an_entry_for_each_response_and_none_where_a_field_is_missing():
    given = [
        {"prompt": "a\n", "responses": ["x", "y"], "grade": [1.0, 2.0], "topic": "sea"},
        {"prompt": "b\n", "responses": ["z"]},
    ]
    batch = reward_batch(group_rows(rows_from_list(given)), [1, 0])
    assert (batch.prompts, batch.responses) == (["b\n", "a\n", "a\n"], ["z", "x", "y"])
    assert batch.columns == {"grade": [None, 1.0, 2.0]}
    assert batch.fields == {"topic": [None, "sea", "sea"]}


# --- the cache key ------------------------------------------------------------------------------------------


MISSES: dict[str, tuple[Callable[[House], Experiment], set[str]]] = {
    "max_length": (with_("data", max_length=6), {"tokens", "reference"}),
    "max_prompt_length": (with_("data", max_prompt_length=2), {"tokens", "reference"}),
    "max_length that cuts nothing": (with_("data", max_length=63), {"tokens"}),
    "vocabulary": (in_the_model(exchange_two_tokens), {"tokens", "reference"}),
    "beginning of text": (in_the_model(begin_with_a_turn), {"tokens", "reference"}),
    "one byte of the weights": (in_the_model(flip_a_weight), {"reference"}),
    "dtype": (with_("model", dtype="bfloat16"), {"reference"}),
    "packing": (with_("training", packing=False), {"reference"}),
    "kwargs of the reward": (with_reward(kwargs={"factor": 2.0}), {"rewards"}),
    "source of the reward": (edit_the_scorer, {"rewards"}),
    "data of equal size and time": (edit_data_with_equal_size_and_time, {"tokens", "rewards", "reference"}),
    "fewer prompts": (with_("data", max_prompts=11), {"tokens", "rewards", "reference"}),
}


# What else stands in the rows.
LABELS = {"first_equal", "pairs/liked", *COUNTED}


@pytest.mark.parametrize("change", MISSES)
def test_whatever_changes_a_number_is_computed_again_and_nothing_else(scored_house, scored_before, change):
    edit, expected = MISSES[change]
    old = scored_before[1]
    after, counted = scored_house.run(edit(scored_house))
    assert counted.computed == expected
    assert counted.weights_read == ("reference" in expected)
    new = after.dataset().to_dict()
    changed = {name for name in old if old[name] != new[name]}
    numbers = {"tokens": {"prompt_ids", "responses_ids"}, "rewards": {"reward/long"}, "reference": {"ref_logps"}}
    if change not in ("max_length that cuts nothing", "packing"):  # the same numbers, for packing up to rounding
        assert all(changed & numbers[kind] for kind in expected - {"rewards"} or expected)
    assert changed <= LABELS.union(*(numbers[kind] for kind in expected))


def test_another_chat_template_makes_other_tokens(house):
    turn = [{"role": "user", "content": "hello"}]
    write_rows(
        house.data,
        [
            {
                "prompt": [{"role": "user", "content": f"question {i}"}],
                "chosen": [{"role": "assistant", "content": "yes"}],
                "rejected": [{"role": "assistant", "content": "no"}],
            }
            for i in range(3)
        ],
    )
    eval_path = write_rows(
        house.folder / "held_out.jsonl",
        [
            {
                "prompt": turn,
                "chosen": [{"role": "assistant", "content": "a"}],
                "rejected": [{"role": "assistant", "content": "b"}],
            }
        ],
    )
    experiment = replace(house.experiment, data=replace(house.experiment.data, eval_path=str(eval_path)))
    before, _ = house.run(experiment)
    path = house.model / "chat_template.jinja"
    path.write_text(path.read_text().replace("{{ m['role'] }}\n", "{{ m['role'] }}: "))
    after, counted = house.run(experiment)
    assert counted.computed == {"tokens", "reference"}
    assert before.dataset()["prompt_ids"][0] != after.dataset()["prompt_ids"][0]


HITS: dict[str, Callable[[House], Experiment]] = {
    "nothing": lambda house: house.experiment,
    "beta": with_("training", beta=0.5),
    "learning rate": with_("training", learning_rate=1e-6),
    "w": with_("sweep", weights=[{"liked": 0.9, "long": 0.1}]),
    "seed": lambda house: replace(house.experiment, seed=7),
    "output_dir": lambda house: replace(house.experiment, output_dir=house.folder / "other-runs"),
    "lora": lambda house: replace(house.experiment, lora=LoraSection(r=8)),
    "place of the data": lambda house: move(house, "data"),
    "place of the cache": lambda house: move(house, "cache"),
    "place of the model": lambda house: move(house, "model"),
    "time of the data": lambda house: (os.utime(house.data, (1, 1)), house.experiment)[1],
    "direction and scale": lambda house: replace(
        house.experiment,
        objectives={
            "liked": house.experiment.objectives["liked"],
            "long": replace(house.experiment.objectives["long"], maximize=False, scale=3.0),
        },
    ),
    "name of the objective": lambda house: replace(
        house.experiment,
        objectives={
            "liked": house.experiment.objectives["liked"],
            "wordy": replace(house.experiment.objectives["long"], name="wordy"),
        },
    ),
}


@pytest.mark.parametrize("change", HITS)
def test_whatever_changes_no_number_is_not_computed_again(scored_house, scored_before, change):
    scored, counted = scored_house.run(HITS[change](scored_house))
    assert counted == Counted()
    assert list(scored.dataset().to_dict().values()) == list(scored_before[1].values())


def test_a_new_objective_computes_its_own_column_only(scored_house):
    house = scored_house
    twice = Objective("twice", reward=RewardSection("scorer:score", kwargs={"factor": 2.0}))
    experiment = replace(house.experiment, objectives={**house.experiment.objectives, "twice": twice})
    scored, counted = house.run(experiment)
    # Both rewards are probed: the calls that `run` does not count are those of the first.
    responses = sum(len(row["responses"]) for row in rows(12))
    probed = min(8, sum(len(row["responses"]) for row in rows(4)))
    assert counted == Counted(rewards=2 * probed + responses)
    dataset = scored.dataset()
    assert dataset["reward/twice"][:] == [[2 * score for score in row] for row in dataset["reward/long"]]


# --- pairs drawn from a reward -------------------------------------------------------------------------------


@pytest.mark.parametrize("difference", [-3.0, -0.7, 0.0, 0.2, 1.0, 4.0])
def test_labels_are_drawn_as_bradley_and_terry_say(difference):
    """Of n draws with probability p = sigmoid(d), n p are for the first, give or take 4 standard deviations."""
    n, p = 4000, 1 / (1 + math.exp(-difference))
    firsts = sum(draw_bradley_terry([difference + 1.5, 1.5], seed=seed) == [[0, 1]] for seed in range(n))
    assert abs(firsts - n * p) < 4 * math.sqrt(n * p * (1 - p))


def test_labels_of_one_prompt_are_drawn_independently():
    """Three responses of equal reward: each of the 2^3 outcomes has probability 1/8 (chi-square, 7 degrees: 24.3 is
    reached once in a thousand)."""
    n = 4000
    outcomes = [tuple(map(tuple, draw_bradley_terry([0.0] * 3, seed=seed))) for seed in range(n)]
    counts = [outcomes.count(outcome) for outcome in set(outcomes)]
    assert len(counts) == 8
    assert sum((count - n / 8) ** 2 / (n / 8) for count in counts) < 24.3


def test_every_two_responses_are_labelled_once():
    pairs = draw_bradley_terry([0.3, -1.0, 2.0, 0.0], seed=5)
    assert sorted(sorted(pair) for pair in pairs) == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert pairs == draw_bradley_terry([0.3, -1.0, 2.0, 0.0], seed=5)
    assert draw_bradley_terry([1e300, -1e300, 0.0], seed=0) == [[0, 1], [0, 2], [2, 1]]
    assert draw_bradley_terry([1.0], seed=0) == []


@pytest.mark.parametrize(("maximize", "agrees"), [(True, True), (False, False)])
def test_drawn_pairs_follow_direction_and_scale_and_only_they_are_drawn_again(house, maximize, agrees):
    """With a scale of 1000 the draw is certain, but for ties."""
    drawn = Objective("long", pairs="bradley_terry", reward=RewardSection("scorer:score"))
    house.run(replace(house.experiment, objectives={"long": drawn}))
    steep = replace(drawn, maximize=maximize, scale=1000.0)
    scored, counted = house.run(replace(house.experiment, objectives={"long": steep}))
    assert counted == Counted()
    dataset = scored.dataset()
    assert sum(len(row["pairs/long"]) for row in dataset) == sum(math.comb(2 + i % 3, 2) for i in range(12))
    for row in dataset:
        for chosen, rejected in row["pairs/long"]:
            scores = row["reward/long"]
            assert scores[chosen] == scores[rejected] or (scores[chosen] > scores[rejected]) == agrees


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_a_flipped_byte_anywhere_in_the_cache_is_found(scored_house):
    house = scored_house
    shards = sorted((house.folder / "cache").rglob("*.arrow"))
    assert {path.parent.name.partition("-")[0] for path in shards} == {"tokens", "pairs", "reference", "reward"}
    for path in shards:
        whole = path.read_bytes()
        path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
        with pytest.raises(IntegrityError, match=f"{path.name}: is missing or was changed"):
            house.run()[0].dataset()
        path.write_bytes(whole)


def test_bad_rows_are_found_before_weights_are_read(house):
    given = rows(4)
    given[2]["responses"][1] = "<eos>"
    write_rows(house.data, given)
    reference = ReferenceModel(house.experiment.model, house.experiment.cache_dir)
    with pytest.raises(InputError, match=r"rows.jsonl:3:responses\[1\]: the response has no token"):
        experiment_scorer(house.experiment, reference).score(load_groups(house.experiment)[0])
    assert "model" not in vars(reference)


def test_log_probs_that_are_not_finite_are_not_kept(house):
    from safetensors.torch import load_file, save_file

    path = house.model / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    experiment = replace(house.experiment, training=TrainingSection(packing=False))
    with pytest.raises(NumericError, match=r"a reference log-prob is not finite: .*; fix: check the model's weights"):
        house.run(experiment)
    assert not list((house.folder / "cache").rglob("reference-*/*.arrow"))


@pytest.mark.parametrize(
    ("pairs", "responses"), [("data", ["x", "yy"]), ("bradley_terry", ["x"])], ids=["data", "drawn"]
)
def test_data_without_a_pair_is_refused(house, pairs, responses):
    write_rows(house.data, [{"prompt": f"q{i}\n", "responses": responses} for i in range(3)])
    objective = Objective("long", pairs=pairs, reward=RewardSection("scorer:score"))
    messages = {
        "data": r"rows.jsonl:objectives.long.pairs: no pair of the label set 'data' in 3 prompts; fix: give rows with",
        "bradley_terry": r"rows.jsonl:responses: nothing to compare in 3 prompts; fix: give prompts with two",
    }
    with pytest.raises(InputError, match=messages[pairs]):
        load_groups(replace(house.experiment, objectives={"long": objective}))


def test_holding_out_everything_is_refused(house):
    data = replace(house.experiment.data, eval_path=None, eval_prompts=12)
    with pytest.raises(InputError, match=r"data.eval_prompts: 12 held-out prompts of 12 leave none to train on"):
        load_groups(replace(house.experiment, data=data))


def test_held_out_prompts_are_not_trained_on(house):
    data = replace(house.experiment.data, eval_path=None, eval_prompts=4, max_prompts=5)
    train, held_out = load_groups(replace(house.experiment, data=data))
    prompts = [{group.prompt for group in part} for part in (train, held_out)]
    assert [len(part) for part in prompts] == [5, 4]
    assert not prompts[0] & prompts[1]


# --- a killed run -------------------------------------------------------------------------------------------

KILLED_IN_REFERENCE = """
import os, signal, sys
import modpo.forward.frozen
from modpo.experiment.file import read_experiment
from modpo.scored.of_experiment import score_experiment

real, groups = modpo.forward.frozen.reference_logps, 0

def dies_in_the_second_shard(model, prompts, responses, **kwargs):
    global groups
    if groups >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    groups += len(prompts)
    return real(model, prompts, responses, **kwargs)

modpo.forward.frozen.reference_logps = dies_in_the_second_shard
score_experiment(read_experiment(sys.argv[1]))
"""


def killed(house: House, *arguments: str, kill_at: str = "") -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(house.scorer_folder), *sys.path]), "KILL_AT": kill_at}
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


def shards(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*.arrow"))}


def test_a_killed_run_continues_and_ends_as_if_it_had_not_been(house):
    """Killed in the second shard of the reward, then in the second shard of the reference: the first ones stay."""
    count = SHARD_GROUPS + 10
    given = rows(count)
    write_rows(house.data, given)
    file = house.folder / "experiment.yaml"
    file.write_text(to_yaml(house.experiment))

    killed(house, "-m", "modpo", "score", str(file), kill_at=f"q{count - 3}\n")
    kept = shards(house.experiment.cache_dir)
    assert sorted(name.partition("-")[0].removeprefix("scored/") for name in kept) == [
        *("pairs", "pairs", "reward", "tokens", "tokens"),
    ]

    killed(house, "-c", KILLED_IN_REFERENCE, str(file), str(SHARD_GROUPS))
    kept_later = shards(house.experiment.cache_dir)
    assert kept.items() < kept_later.items()
    assert len([name for name in kept_later if "reference-" in name]) == 1

    _, counted = house.run()
    assert counted.tokens == 0
    assert counted.rewards == 0  # the second run finished them
    assert counted.reference == sum(len(row["responses"]) for row in given[SHARD_GROUPS:])
    undisturbed = replace(house.experiment, cache_dir=house.folder / "another-cache")
    house.run(undisturbed)
    assert shards(house.experiment.cache_dir) == shards(undisturbed.cache_dir)


@pytest.mark.parametrize("theirs", [4, 10])
def test_what_another_process_scored_while_this_one_waited_counts_as_done(tmp_path, monkeypatch, capsys, theirs):
    """Of ten prompts in shards of four, the other one scored the first shard, or all."""
    target = column(tmp_path, "reward", {"reward": "a"}, 10, shard_groups=4)

    @contextmanager
    def locked_late(*args: Any, **kwargs: Any) -> Iterator[None]:
        with publish.locked(*args, **kwargs):
            for shard in target.missing_shards():
                if target.groups_of(shard).stop <= theirs:
                    target.publish(shard, ({"scores": [0.5]} for _ in target.groups_of(shard)))
            yield

    computed: list[int] = []

    def compute(groups: range) -> Iterator[dict[str, Any]]:
        for i in groups:
            computed.append(i)
            yield {"scores": [0.5]}

    monkeypatch.setattr(columns, "locked", locked_late)
    scoring._fill(target, "reward a", compute)
    assert computed == list(range(theirs, 10))
    assert capsys.readouterr().err.startswith("reward a: 10 of 10 prompts, ")
    assert target.open()["scores"][:] == [[0.5]] * 10


def test_score_experiment_fills_the_experiments_cache(house):
    scored = score_experiment(house.experiment)
    assert scored.reference.folder.is_relative_to(house.experiment.cache_dir)
    assert len(scored.dataset()) == 12


# --- size ---------------------------------------------------------------------------------------------------

READ = """
import json, sys
from pathlib import Path
from modpo.scored.columns import column
from modpo.scored.data import ScoredData
import datasets, pyarrow.compute

def own_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

cache, rows = Path(sys.argv[1]), int(sys.argv[2])
kinds = ("tokens", "pairs", "reference", "reward")
tokens, pairs, reference, reward = (column(cache, kind, {}, rows) for kind in kinds)
before = own_bytes()
dataset = ScoredData(tokens, reference, {"b": pairs}, {"a": reward}).dataset()
opened = own_bytes()
total = sum(len(dataset[i]["prompt_ids"]) for i in range(0, len(dataset), 10))
print(json.dumps({"rows": len(dataset), "opened": opened - before, "read": own_bytes() - before, "total": total}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads its memory from /proc")
def test_large_data_is_mapped_and_not_loaded(tmp_path):
    """20,000 groups of 900 tokens take 75 MB on disk; opening and reading them costs a small part of it."""
    count = 20_000
    tokens = {
        "prompt_ids": [7] * 100,
        "responses_ids": [[8] * 200] * 4,
        "prompt_truncated": False,
        "responses_truncated": 0,
        "merged_boundary": 0,
        "special_in_text": 0,
        "prompt_differs": False,
        "responses_changed": 0,
        "unread": 0,
    }
    row = {
        "tokens": tokens,
        "pairs": {"pairs": [[0, 1]]},
        "reference": {"ref_logps": [-1.0] * 4},
        "reward": {"scores": [0.5] * 4},
    }
    for kind, content in row.items():
        made = column(tmp_path, kind, {}, count)
        made.fill(lambda groups, content=content: (content for _ in groups))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.arrow"))
    assert size > 70e6
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), str(count)], env=env, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert (found["rows"], found["total"]) == (count, 100 * count / 10)
    assert found["opened"] < 0.2 * size
    assert found["read"] < 0.2 * size
