"""Names, experiments, data and run folders of strangers."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil

from modpo.cli import main
from tests.security.attack import DEEP, TERMINAL, attack
from tests.security.runs import edit_front, planted_point, run_folder
from tests.security.yard import PLAIN, WORDS, Pickled, Yard

# --- names --------------------------------------------------------------------------------------------------


@attack(2, "is neither a folder here nor")
def hub_name_that_climbs(yard: Yard) -> list[str]:
    return yard.experiment(model={"model_name_or_path": "../../../no/such"})


@attack(2, "is neither a folder here nor")
def hub_name_with_control_characters(yard: Yard) -> list[str]:
    return yard.experiment(model={"model_name_or_path": f"evil/{TERMINAL}"})


@attack(2, "cannot be the name of an objective")
def objective_that_climbs(yard: Yard) -> list[str]:
    return yard.rewarded(WORDS, "../../outside/x")


@attack(2, "cannot be the name of an objective")
def objective_with_an_absolute_path(yard: Yard) -> list[str]:
    return yard.rewarded(WORDS, str(yard.outside / "x"))


@attack(2, "takes no `completions`")
def reward_that_is_a_shell(yard: Yard) -> list[str]:
    return yard.rewarded("os:system")


@attack(2, "exec")
def reward_that_runs_source(yard: Yard) -> list[str]:
    return yard.rewarded("builtins:exec")


@attack(2, "names no function")
def reward_that_is_an_expression(yard: Yard) -> list[str]:
    return yard.rewarded(f"os:system('{yard.shell}')")


# --- the experiment's file ----------------------------------------------------------------------------------


def tagged(yard: Yard, value: str) -> list[str]:
    """An experiment whose seed is written as `value`."""
    text = json.dumps(yard.sections(seed="HERE"))
    return ["score", str(yard.yaml(text.replace('"HERE"', value)))]


@attack(2, "!!python/object/apply:os.system is not allowed")
def yaml_that_calls(yard: Yard) -> list[str]:
    return tagged(yard, f"!!python/object/apply:os.system [{json.dumps(yard.shell)}]")


@attack(2, "!!python/object/new:subprocess.Popen is not allowed")
def yaml_that_makes_an_object(yard: Yard) -> list[str]:
    return tagged(yard, f"!!python/object/new:subprocess.Popen [[touch, {yard.canary}]]")


@attack(2, "!!python/name:os.system is not allowed")
def yaml_that_names_a_function(yard: Yard) -> list[str]:
    return tagged(yard, "!!python/name:os.system ''")


@attack(2, "!!python/object/apply:os.system is not allowed")
def yaml_on_the_command_line(yard: Yard) -> list[str]:
    return [*yard.experiment(), "--set", f"seed=!!python/object/apply:os.system [{json.dumps(yard.shell)}]"]


@attack(2, "is an alias")
def yaml_that_laughs_a_billion_times(yard: Yard) -> list[str]:
    lines = ['a0: &a0 ["lol"]', *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
    return ["score", str(yard.yaml("\n".join(lines)))]


@attack(2, "nested deeper than")
def yaml_nested_without_end(yard: Yard) -> list[str]:
    return ["score", str(yard.yaml("model: " + DEEP[:10_000]))]


@attack(2, "is not allowed here; fix: give --trust-remote-code on the command line")
def yaml_that_trusts_by_itself(yard: Yard) -> list[str]:
    return yard.experiment(model={"model_name_or_path": str(yard.model), "trust_remote_code": True})


# --- data ---------------------------------------------------------------------------------------------------


@attack(0)
def rows_that_steer_the_terminal(yard: Yard) -> list[str]:
    yard.rows([{**row, "prompt": TERMINAL + row["prompt"], "rejected": TERMINAL} for row in PLAIN])
    return ["inspect", *yard.experiment()[1:]]


@attack(2, "the key occurs twice")
def rows_whose_fields_steer_the_terminal(yard: Yard) -> list[str]:
    key = json.dumps(TERMINAL)
    (yard.folder / "rows.jsonl").write_text(f'{{"prompt": "p", {key}: 1, {key}: 2}}\n')
    return yard.experiment()


@attack(2, "is not a finite number")
def rows_whose_numbers_steer_the_terminal(yard: Yard) -> list[str]:
    yard.rows([{**row, "chosen_x": TERMINAL, "rejected_x": 1} for row in PLAIN])
    return yard.rewarded({"column": "x"})


@attack(2, "nested too deeply")
def rows_nested_without_end(yard: Yard) -> list[str]:
    (yard.folder / "rows.jsonl").write_text('{"prompt": ' + DEEP + "\n")
    return yard.experiment()


@attack(2, "malformed JSON")
def rows_with_a_number_of_ten_thousand_digits(yard: Yard) -> list[str]:
    (yard.folder / "rows.jsonl").write_text('{"prompt": "p", "x": ' + "9" * 10_000 + "}\n")
    return yard.experiment()


@attack(2, "holds no rows")
def rows_that_unpack_to_a_thousand_times_their_size(yard: Yard) -> list[str]:
    (yard.folder / "rows.jsonl.gz").write_bytes(gzip.compress(b" " * 2**26))
    return yard.experiment(data={"path": "rows.jsonl.gz", "eval_prompts": 1})


@attack(0)
def rows_of_a_pickled_type(yard: Yard) -> list[str]:
    """Old versions of pyarrow unpickled the type of a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    kind[b"ARROW:extension:metadata"] = pickle.dumps(Pickled(yard.shell))
    table = pa.Table.from_pylist(PLAIN)
    fields = [field.with_metadata(kind) for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), yard.folder / "rows.parquet")
    return yard.experiment(data={"path": "rows.parquet", "eval_prompts": 1, "max_length": 64})


# --- what lies in the output folder -------------------------------------------------------------------------


@attack(4, "is no experiment of this version")
def run_whose_experiment_calls(yard: Yard) -> list[str]:
    yard.out.mkdir()
    planted = f"model: !!python/object/apply:os.system [{json.dumps(yard.shell)}]\n"
    (yard.out / "experiment.yaml").write_text(planted)
    return ["evaluate", *yard.experiment()[1:]]


@attack(4, "precious.txt: is missing or was changed")
def run_whose_manifest_climbs(yard: Yard) -> list[str]:
    planted_point(yard, "../../../../outside/precious.txt")
    return ["evaluate", *yard.experiment()[1:]]


@attack(4, "precious.txt: is missing or was changed")
def run_whose_manifest_is_absolute(yard: Yard) -> list[str]:
    planted_point(yard, str(yard.precious))
    return ["evaluate", *yard.experiment()[1:]]


@attack(4, "adapter_model.safetensors: is missing or was changed")
def run_with_a_link_for_an_adapter(yard: Yard) -> list[str]:
    folder = planted_point(yard, "adapter_model.safetensors")
    shutil.move(folder / "adapter_model.safetensors", yard.outside)
    (folder / "adapter_model.safetensors").symlink_to(yard.outside / "adapter_model.safetensors")
    return ["evaluate", *yard.experiment()[1:]]


@attack(4, "is missing or was changed")
def cache_with_a_link_for_a_shard(yard: Yard) -> list[str]:
    command = yard.experiment()
    assert main(command) == 0
    shard = next(yard.cache.rglob("00000.arrow"))
    shard.rename(yard.outside / shard.name)
    shard.symlink_to(yard.outside / shard.name)
    return command


@attack(3, "is a symlink")
def run_with_a_link_for_a_lock(yard: Yard) -> list[str]:
    yard.out.mkdir()
    (yard.out / ".lock").symlink_to(yard.precious)
    return ["sweep", *yard.experiment()[1:]]


# --- fronts -------------------------------------------------------------------------------------------------


@attack(0)
def front_with_markup_everywhere(yard: Yard) -> list[str]:
    return ["report", str(run_folder(yard.out, f"<script src={yard.canary}></script>{TERMINAL}"))]


@attack(0)
def front_with_endless_names(yard: Yard) -> list[str]:
    return ["report", str(run_folder(yard.out, "x\n" * 20_000))]


@attack(2, "leaves the folder")
def front_whose_adapter_climbs(yard: Yard) -> list[str]:
    folder = run_folder(yard.out, "x")
    edit_front(folder, lambda front: front["points"][0].update(adapter="points/../../../outside"))
    return ["report", str(folder)]


@attack(2, "leaves the folder")
def front_whose_adapter_is_absolute(yard: Yard) -> list[str]:
    folder = run_folder(yard.out, "x")
    edit_front(folder, lambda front: front["points"][0].update(adapter=str(yard.outside)))
    return ["report", str(folder)]


@attack(2, "not readable as JSON")
def front_nested_without_end(yard: Yard) -> list[str]:
    folder = run_folder(yard.out, "x")
    (folder / "front.json").write_text('{"schema": 1, "objectives": ' + DEEP)
    return ["report", str(folder)]


@attack(0)
def front_with_numbers_at_the_edge(yard: Yard) -> list[str]:
    folder = run_folder(yard.out, "x")
    edit_front(folder, lambda front: front["hypervolume"].update(mean=0.0, ci_low=-1.7e308, ci_high=1.7e308))
    edit_front(folder, lambda front: front["evaluation"].update(confidence=10**400, report_prompts=10**400))
    return ["report", str(folder)]


@attack(2, "responses.jsonl:1: not JSON")
def answers_nested_without_end(yard: Yard) -> list[str]:
    folder = run_folder(yard.out, "x")
    (folder / "responses.jsonl").write_text('{"policy": ' + DEEP + "\n")
    return ["report", str(folder)]


@attack(0)
def report_behind_a_link(yard: Yard) -> list[str]:
    """The link is replaced, what it leads to is not written."""
    folder = run_folder(yard.out, "x")
    (folder / "report.html").symlink_to(yard.precious)
    (folder / "front.png").symlink_to(yard.precious)
    return ["report", str(folder)]
