"""Any vector of a finished folder: a tiny real sweep, its points, what lies between them, and a continuous policy."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from modpo.base.errors import InputError, IntegrityError
from modpo.base.files import new_folder
from modpo.cli import main
from modpo.evaluation.evaluate import evaluate_sweep
from modpo.experiment.file import read_experiment
from modpo.methods.sweep import run_sweep
from modpo.models.adapters import ADAPTER_WEIGHTS
from modpo.models.combine import steer
from modpo.policies.steered_front import load_front
from modpo.policies.steering import CONTINUOUS, SteeredPolicy, Steering
from tests.kit import at, flip_a_bit, manifest_of, preference_rows, write_experiment, write_rows
from tests.models.adapters import PROMPTS, dense, load_policy, logps

POINTS = {"kind0.75-concise0.25": 0.75, "kind0.25-concise0.75": 0.25}


@pytest.fixture(scope="module")
def swept(finished_sweep: Path) -> Path:
    return finished_sweep / "run"


@pytest.fixture
def folder(swept: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(swept, tmp_path / "run"))


@pytest.fixture
def continuous(folder: Path) -> Path:
    """The same with a continuous policy: the adapters of its two points, as those of the two objectives."""
    with new_folder(folder / CONTINUOUS, {"key": "of a test"}) as policy:
        for name, point in zip(("kind", "concise"), POINTS, strict=True):
            (policy / name).mkdir()
            for file in ("adapter_config.json", ADAPTER_WEIGHTS):
                shutil.copy(folder / "points" / point / file, policy / name / file)
    return folder


def greedy(model: Any) -> list[list[int]]:
    """Answers to two prompts, one by one."""
    settings = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 2}
    return [
        model.generate(
            input_ids=torch.tensor([p]), attention_mask=torch.ones(1, len(p), dtype=torch.long), **settings
        ).tolist()
        for p in PROMPTS
    ]


def plain_peft(tiny_model: Path, adapter: Path) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter).eval()


def dense_sum(tiny_model: Path, shares: dict[Path, float]) -> Any:
    """The base with sum_p c_p s_p B_p A_p added to its weights: the slow way to the model between points."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    for folder, share in shares.items():
        for module, update in dense(folder).items():
            model.get_submodule(module.removeprefix("base_model.model.")).weight.data += (share * update).float()
    return model


# --- at -----------------------------------------------------------------------------------------------------------


def test_a_trained_point_is_itself(tiny_model: Path, swept: Path, capsys: pytest.CaptureFixture[str]):
    front = load_front(swept)
    answers = []
    for name, kind in POINTS.items():
        model = front.at(at(kind))
        assert f"kind {kind}, concise {1 - kind}: point {name}" in capsys.readouterr().err
        plain = plain_peft(tiny_model, swept / "points" / name)
        assert torch.equal(logps(model), logps(plain))
        answers.append(greedy(model))
        assert answers[-1] == greedy(plain)
        assert not model.training
    assert answers[0] != answers[1]


@pytest.mark.parametrize("kind", [0.5, 0.3])
def test_between_points(tiny_model: Path, swept: Path, capsys: pytest.CaptureFixture[str], kind: float):
    """Exact in weight space: the dense sum of both updates."""
    share = (kind - 0.25) / 0.5
    folders = [swept / "points" / name for name in POINTS]
    model = load_front(swept).at(at(kind))
    said = f"interpolated in weight space: {share:.3g} of kind0.75-concise0.25, {1 - share:.3g} of kind0.25-concise0.75"
    assert said in capsys.readouterr().err
    exact = dense_sum(tiny_model, dict(zip(folders, (share, 1 - share), strict=True)))
    torch.testing.assert_close(logps(model), logps(exact), rtol=0, atol=1e-4)
    for folder in folders:
        assert (logps(model) - logps(plain_peft(tiny_model, folder))).abs().max() > 0.01


def test_outside_the_points(swept: Path):
    with pytest.raises(InputError) as caught:
        load_front(swept).at(at(0.9))
    assert "weights: kind 0.9, concise 0.1 is outside kind 0.25 to 0.75, concise 0.25 to 0.75; fix: " in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"kind": 0.7, "short": 0.3}, "weights.short: unknown objective; fix: use one of: kind, concise"),
        ({"kind": 0.7}, "weights sum to 0.7, not 1"),
        ({"kind": 1.2, "concise": -0.2}, "-0.2 is negative"),
    ],
)
def test_what_is_no_vector(swept: Path, weights: dict[str, float], message: str):
    with pytest.raises(InputError) as caught:
        load_front(swept).at(weights)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [1.0, 0.9, 0.5, 0.0])
def test_any_vector_of_a_continuous_policy(
    tiny_model: Path, continuous: Path, capsys: pytest.CaptureFixture[str], kind: float
):
    """Corners, and vectors that no point spans."""
    model = load_front(continuous).at(at(kind))
    assert "the continuous policy" in capsys.readouterr().err
    policy = load_policy(AutoModelForCausalLM.from_pretrained(tiny_model), continuous / CONTINUOUS, ["kind", "concise"])
    steer(policy, {"default": kind, "objective_1": 1 - kind})
    torch.testing.assert_close(logps(model), logps(policy), rtol=0, atol=1e-4)


def test_a_trained_point_comes_before_the_continuous_policy(continuous: Path):
    assert Steering(load_front(continuous)).source(at(0.75)).kind == "point"


def test_where_to_begin(swept: Path, continuous: Path):
    assert Steering(load_front(swept)).middle() == at(0.75)  # both are as near
    assert Steering(load_front(continuous)).middle() == at(0.5)


def test_a_changed_adapter_is_found(folder: Path):
    path = folder / "points" / "kind0.75-concise0.25" / ADAPTER_WEIGHTS
    flip_a_bit(path)
    for kind in (0.75, 0.5):
        with pytest.raises(IntegrityError, match="was changed"):
            load_front(folder).at(at(kind))


def test_a_point_that_is_gone(folder: Path):
    shutil.rmtree(folder / "points" / "kind0.75-concise0.25")
    with pytest.raises(InputError, match=r"kind0.75-concise0.25: holds no finished policy, though the front knows it"):
        load_front(folder).at(at(0.75))
    assert load_front(folder).at(at(0.25)) is not None


def test_the_base_is_that_of_sft(tiny_model: Path, folder: Path):
    """Found in the folder, wherever it has been moved."""
    path = folder / "experiment.yaml"
    moved = path.read_text().replace(str(tiny_model), "/gone/run/sft")
    path.write_text(moved.replace("\nsft: null\n", "\nsft: {path: demonstrations.jsonl}\n"))
    shutil.copytree(tiny_model, folder / "sft")
    assert Steering(load_front(folder)).reference.folder == folder / "sft"


# --- bake ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0.75, 0.5], ids=["point", "between"])
def test_baked_adapter_is_plain_peft(tiny_model: Path, swept: Path, tmp_path: Path, kind: float):
    front = load_front(swept)
    assert front.bake(at(kind), tmp_path / "baked") == 0
    baked, model = plain_peft(tiny_model, tmp_path / "baked"), front.at(at(kind))
    assert greedy(baked) == greedy(model)
    torch.testing.assert_close(logps(baked), logps(model), rtol=0, atol=1e-4)
    about = manifest_of(tmp_path / "baked")
    assert (about["weights"], about["beta"], about["error"]) == (at(kind), 0.1, 0)
    assert ("point" if kind == 0.75 else "interpolated") in about["made_of"]


@pytest.mark.parametrize("kind", [1.0, 0.4])
def test_baked_continuous_policy_gives_the_same_answers(tiny_model: Path, continuous: Path, tmp_path: Path, kind):
    """Steered by scale, baked, and read by plain PEFT."""
    load_front(continuous).bake(at(kind), tmp_path / "baked")
    policy = load_policy(AutoModelForCausalLM.from_pretrained(tiny_model), continuous / CONTINUOUS, ["kind", "concise"])
    steer(policy, {"default": kind, "objective_1": 1 - kind})
    baked = plain_peft(tiny_model, tmp_path / "baked")
    assert greedy(baked) == greedy(policy)
    torch.testing.assert_close(logps(baked), logps(policy), rtol=0, atol=1e-4)


def test_a_smaller_rank(swept: Path, tmp_path: Path):
    front = load_front(swept)
    errors = [front.bake(at(0.5), tmp_path / str(rank), rank=rank) for rank in (1, 4, 8)]
    assert errors[0] > errors[1] > errors[2] == 0
    for rank in (1, 4, 8):
        assert json.loads((tmp_path / str(rank) / "adapter_config.json").read_text())["r"] == rank
    assert front.bake(at(0.75), tmp_path / "point", rank=1) > 0


@pytest.mark.parametrize("kind", [0.75, 0.5], ids=["point", "between"])
def test_merged_model_is_plain_transformers(tiny_model: Path, swept: Path, tmp_path: Path, kind: float):
    front = load_front(swept)
    front.bake(at(kind), tmp_path / "merged", merge=True)
    merged, model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval(), front.at(at(kind))
    assert greedy(merged) == greedy(model)
    torch.testing.assert_close(logps(merged), logps(model), rtol=0, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert not list((tmp_path / "merged").rglob("adapter*"))


def test_what_is_baked_over(swept: Path, tmp_path: Path):
    """A policy is replaced; anything else is left alone."""
    front = load_front(swept)
    front.bake(at(0.75), tmp_path / "baked")
    front.bake(at(0.5), tmp_path / "baked")
    about = manifest_of(tmp_path / "baked")
    assert about["weights"] == at(0.5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="mine: holds something that is no policy of modpo"):
        front.bake(at(0.5), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_bake_refuses_before_it_writes(swept: Path, tmp_path: Path):
    front = load_front(swept)
    with pytest.raises(InputError, match="is outside"):
        front.bake(at(0.9), tmp_path / "baked")
    with pytest.raises(InputError, match="bake:rank: does not go with `merge`"):
        front.bake(at(0.5), tmp_path / "baked", rank=2, merge=True)
    with pytest.raises(InputError, match="rank: is 0"):
        front.bake(at(0.5), tmp_path / "baked", rank=0)
    assert list(tmp_path.iterdir()) == []


def test_bake_on_the_command_line(tiny_model: Path, swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same files as `Front.bake` writes."""
    front = load_front(swept)
    options = {"exact": [], "small": ["--rank", "2"], "merged": ["--merge"]}
    for name, more in options.items():
        said = ["bake", str(swept), "--weights", "kind=0.5,concise=0.5", "--output", str(tmp_path / name), *more]
        assert main(said) == 0
    lost = front.bake(at(0.5), tmp_path / "again", rank=2)
    assert f"small: written, relative error of the weight update {lost:.3g}\n" in capsys.readouterr().err
    small, again = (tmp_path / name / "adapter_model.safetensors" for name in ("small", "again"))
    assert small.read_bytes() == again.read_bytes()
    exact = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "exact")
    torch.testing.assert_close(logps(exact.eval()), logps(front.at(at(0.5))), rtol=0, atol=1e-4)
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--weights", "kind=0.99,concise=0.01"], "is outside"),
        (["--weights", "kind=0.5"], "error: --weights:weights: weights sum to 0.5"),
        (["--weights", "kind=0.5,concise=0.5", "--rank", "0"], "rank: is 0; fix: give at least 1"),
        (["--weights", "kind=0.5,concise=0.5", "--rank", "2", "--merge"], "not allowed with argument --rank"),
    ],
)
def test_what_bake_refuses(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], line: str):
    assert main(["bake", str(swept), "--output", str(tmp_path / "baked"), *more]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "baked").exists()


def test_the_table(swept: Path):
    front = load_front(swept)
    table = front.to_pandas()
    assert table.index.tolist() == ["reference", *POINTS]
    for point in front.points:
        assert table.loc[point.name, "weight:kind"] == POINTS[point.name]
        assert table.loc[point.name, "concise_mean"] == point.scores["concise"].mean
        assert table.loc[point.name, "kl_se"] == point.kl.se


# --- points that are whole models ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    write_rows(root / "rows.jsonl", preference_rows())
    training = "{per_device_train_batch_size: 4, learning_rate: 1e-3, num_train_epochs: 2}"
    experiment = read_experiment(write_experiment(root, tiny_model, lora="null", training=training))
    assert run_sweep(experiment) == []
    evaluate_sweep(experiment)
    return experiment.output_dir


def test_whole_models(whole: Path, tmp_path: Path):
    """Each is itself; between them there is nothing, and there is no adapter to write."""
    front = load_front(whole)
    point = AutoModelForCausalLM.from_pretrained(whole / "points" / "kind0.75-concise0.25").eval()
    assert torch.equal(logps(front.at(at(0.75))), logps(point))
    front.bake(at(0.75), tmp_path / "merged", merge=True)
    assert torch.equal(logps(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logps(point))
    with pytest.raises(InputError, match="whole models are not interpolated; fix: ask for the vector of a point"):
        front.at(at(0.5))
    with pytest.raises(InputError, match=r"was trained without adapters.* fix: bake it with `merge=True`"):
        front.bake(at(0.75), tmp_path / "adapter")
    policy = SteeredPolicy(Steering(front))
    for kind in (0.25, 0.75):
        policy.steer(at(kind))
    assert torch.equal(logps(policy.model), logps(point))


# --- a policy that is steered while it is in memory ---------------------------------------------------------------


def test_steered_policy(tiny_model: Path, swept: Path):
    """To points, between them and back, each time what `at` gives."""
    front = load_front(swept)
    policy = SteeredPolicy(Steering(front))
    bare = policy.model
    for kind, kind_of_source in [(0.75, "point"), (0.5, "interpolated"), (0.25, "point"), (0.3, "inter"), (0.75, "")]:
        assert policy.steer(at(kind)).startswith(kind_of_source)
        torch.testing.assert_close(logps(policy.model), logps(front.at(at(kind))), rtol=0, atol=1e-4)
    assert policy.model.get_base_model() is bare
    assert len(policy.model.peft_config) == 2  # each adapter was read once
    assert not any(p.requires_grad for n, p in policy.model.named_parameters() if "lora_" in n)


def test_rotary_frequencies_stay_float32(swept: Path):
    """Of a bfloat16 base too, whose adapters run in bfloat16: a cast of the whole model would round them."""
    steering = Steering(load_front(swept))
    steering.experiment = replace(steering.experiment, model=replace(steering.experiment.model, dtype="bfloat16"))
    policy = SteeredPolicy(steering)
    policy.steer(at(0.5))
    for model in (policy.model, steering.at(at(0.5))):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        frequencies = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
        assert frequencies
        assert {buffer.dtype for buffer in frequencies} == {torch.float32}


def test_steered_continuous_policy(continuous: Path):
    front = load_front(continuous)
    policy = SteeredPolicy(Steering(front))
    for kind in (1.0, 0.4, 0.0, 0.4):
        assert policy.steer(at(kind)) == "the continuous policy"
        torch.testing.assert_close(logps(policy.model), logps(front.at(at(kind))), rtol=0, atol=1e-4)


def test_the_base_is_read_once(swept: Path, monkeypatch: pytest.MonkeyPatch):
    from modpo.models import reference

    reads = []
    read_model = reference.read_model
    monkeypatch.setattr(reference, "read_model", lambda *a, **k: reads.append(a) or read_model(*a, **k))
    policy = SteeredPolicy(Steering(load_front(swept)))
    for kind in (0.75, 0.5, 0.25, 0.6):
        policy.steer(at(kind))
    assert len(reads) == 1


def test_what_cannot_be_had_changes_nothing(swept: Path):
    policy = SteeredPolicy(Steering(load_front(swept)))
    policy.steer(at(0.5))
    before = logps(policy.model)
    with pytest.raises(InputError, match="is outside"):
        policy.steer(at(0.9))
    assert torch.equal(logps(policy.model), before)


# --- the page about it --------------------------------------------------------------------------------------------


def test_examples_of_the_page(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """docs/front.md from top to bottom, on this front."""
    page = (Path(__file__).parents[2] / "docs" / "front.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.M | re.S)
    assert len(blocks) == 4
    script = tmp_path / "page.py"
    script.write_text(re.sub(r"runs/quickstart(-separate)?", str(swept), "\n".join(blocks)).replace("positive", "kind"))
    monkeypatch.chdir(tmp_path)
    left = runpy.run_path(str(script))
    assert [round(share, 6) for _, share in left["neighbours"]] == [0.7, 0.3]
    assert left["lost"] == 0  # 4 + 4 is no more than 16
    assert left["table"].loc["reference", "kl_mean"] == 0
    found = {path.name for path in (tmp_path / "baked").glob("*/*config.json")}
    assert found == {"adapter_config.json", "config.json", "generation_config.json", "tokenizer_config.json"}
