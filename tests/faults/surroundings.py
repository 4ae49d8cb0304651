"""Faults around a run: clock, places, disks, memory, other processes, a reward or a loss that breaks."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from modpo.base.errors import LESS_MEMORY, InputError, NumericError
from modpo.rewards.loading import PROBE_ROWS

from . import invariants
from .experiment import FILE, POINTS, ROWS, finished, prompt, write_experiment
from .harness import Done, House, Outcome

YEAR = 366 * 24 * 3600

# --- the clock, and places ----------------------------------------------------------------------------------


def clock_off(house: House, folder: Path, seconds: int) -> Outcome:
    """Every file is a year older or newer than the clock says."""
    for path in [*folder.rglob("*"), *folder.rglob(".lock")]:
        if not path.is_symlink():
            moment = path.stat().st_mtime + seconds
            os.utime(path, (moment, moment))
    return house.judge(f"clock off by {seconds} s", folder, Done(0, ""), [])


def moved(house: House, folder: Path) -> Outcome:
    """The run and its cache under other names."""
    before = finished(folder)
    for old, new in (("run", "a-run"), ("cache", "a-cache")):
        (folder / old).rename(folder / new)
    arguments = ["sweep", FILE, "--set", "output_dir=a-run", "--set", "cache_dir=a-cache"]
    done = house.server.run(folder, arguments)
    for old, new in (("run", "a-run"), ("cache", "a-cache")):
        (folder / new).rename(folder / old)
    wrong = [] if done.code == 0 else [f"D: exit code {done.code}: {done.stderr[-300:]}"]
    wrong += [f"C: {w}" for w in invariants.untouched(before, finished(folder))]
    return house.judge("folder moved", folder, done, wrong)


def stream(house: House, setup: str, number: int, codes: set[int]) -> Outcome:
    """A run whose output cannot be written."""
    folder = house.new_case()
    done = house.server.run(folder, setup=[setup, number])
    wrong = [] if done.code in codes else [f"D: exit code {done.code}: {done.stderr[-300:]}"]
    return house.judge(f"{setup} {number}", folder, done, wrong)


# --- disks --------------------------------------------------------------------------------------------------


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a file system."""
    try:
        with mounted(folder / "probe", "64k"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def mounted(place: Path, size: str) -> Iterator[None]:
    """A file system in memory of that size."""
    place.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def full_disk(house: House, place: str, share: float) -> Outcome:
    """A file system that holds a share of what a run writes there; then a larger one."""
    folder = house.new_case()
    whole = sum(p.stat().st_size for p in (house.undisturbed / place).rglob("*") if p.is_file())
    kilobytes = max(4, round(share * whole / 1024))
    with mounted(folder / place, f"{kilobytes}k"):
        done = house.server.run(folder)
        wrong = [] if done.code in (0, 3) else [f"D: exit code {done.code}: {done.stderr[-300:]}"]
        wrong += invariants.one_line(done.stderr, 1 if done.code else 0)
        _mount("-o", "remount,size=1g", str(folder / place))
        outcome = house.judge(f"{kilobytes} KiB for {place}", folder, done, wrong)
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def read_only(house: House, folder: Path, place: str, expected: int) -> Outcome:
    """A folder on a file system that is read-only for one run."""
    target = folder / place
    _mount("--bind", str(target), str(target))
    try:
        _mount("-o", "remount,ro,bind", str(target))
        before = finished(folder)
        done = house.server.run(folder)
        wrong = [] if done.code == expected else [f"D: exit code {done.code}: {done.stderr[-300:]}"]
        wrong += invariants.one_line(done.stderr, 1 if expected else 0)
        wrong += [f"C: {w}" for w in invariants.untouched(before, finished(folder))]
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True, capture_output=True)
    return house.judge(f"{place} read-only", folder, done, wrong)


# --- other processes ----------------------------------------------------------------------------------------


class Hold:
    """A run that stands in the middle of scoring until it is let go."""

    def __init__(self, folder: Path) -> None:
        self.environment = {"REWARD_HOLD": str(folder / "hold")}
        self._held, self._go = folder / "hold.held", folder / "hold.go"
        for fifo in (self._held, self._go):
            os.mkfifo(fifo)

    def wait(self) -> int:
        """Until it stands there. Returns its process id."""
        descriptor = os.open(self._held, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not select.select([descriptor], [], [], 60)[0]:
                raise TimeoutError("the run never came to score")
            text = b""
            while not text or select.select([descriptor], [], [], 60)[0]:
                if not (more := os.read(descriptor, 100)) and text:
                    break
                text += more
            return int(text)
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Let it go on."""
        self._go.open("w").close()


def hanging_reward(house: House, action: str) -> Outcome:
    """A reward that never returns, and a signal."""
    folder = house.new_case()
    hold = Hold(folder)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(house.server.run, folder, environment=hold.environment)
        os.kill(hold.wait(), {"kill": 9, "int": 2, "term": 15}[action])
        done = running.result()
    wrong = invariants.left_right(action, done.code, done.stderr, folder)
    return house.judge(f"{action} while the reward hangs", folder, done, wrong)


def two_sweeps(house: House) -> Outcome:
    """A second sweep on the folder of one that is at work."""
    folder = house.new_case()
    hold = Hold(folder)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(house.server.run, folder, environment=hold.environment)
        hold.wait()
        second = house.server.run(folder)
        hold.release()
        first = running.result()
    wrong = [] if (first.code, second.code) == (0, 3) else [f"D: exit codes {first.code} and {second.code}"]
    wrong += invariants.one_line(second.stderr, 1)
    return house.judge("two sweeps on one folder", folder, first, wrong)


def two_scorers(house: House, ending: str) -> Outcome:
    """Two sweeps with one cache: the second waits for the first, which ends well or is killed."""
    one, two = house.new_case(), house.new_case()
    hold, log = Hold(one), one / "log"
    arguments = ["sweep", FILE, "--set", f"cache_dir={one / 'cache'}"]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(house.server.run, one, environment={**hold.environment, "REWARD_LOG": str(log)})
        pid = hold.wait()
        second = pool.submit(house.server.run, two, arguments, environment={"REWARD_LOG": str(log)})
        _wait_for(lambda: any("waiting for another process" in p.read_text() for p in two.glob("stderr-*")))
        os.kill(pid, 9) if ending == "killed" else hold.release()
        codes = first.result().code, second.result().code
    wrong = [] if codes == ((0, 0) if ending == "well" else (-9, 0)) else [f"D: exit codes {codes}: {two}"]
    wrong += [f"{text} was scored {n} times" for text, n in _scored_rows(log, two).items() if n != 1]
    shutil.copytree(one / "cache", two / "cache")
    wrong += [f"A: {problem}" for problem in house.retried(two)]
    shutil.rmtree(two, ignore_errors=bool(wrong))
    return house.judge(f"two scorers, the first ends {ending}", one, first.result(), wrong)


def _scored_rows(log: Path, folder: Path) -> Counter[str]:
    """How often each response of the training data was scored for a column, over all processes that ended."""
    data = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    texts = {(row["prompt"], row[side]) for row in data for side in ("chosen", "rejected")}
    calls: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for line in log.read_text().splitlines():
        process, call, prompt_, completion = json.loads(line)
        calls.setdefault((process, call), []).append((prompt_, completion))
    filled = [row for call in calls.values() if len(call) > PROBE_ROWS for row in call]  # the smaller ones probe
    return Counter(f"{p}{c}" for p, c in filled if (p, c) in texts)


def _wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    ticks = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        ticks.wait(0.05)
    raise TimeoutError("what was waited for never came")


# --- rewards and losses -------------------------------------------------------------------------------------


def broken_reward(house: House, variable: str, i: int) -> Outcome:
    """A reward that raises, or returns NaN, on one prompt: said with its row, and what was scored before is kept."""
    folder = house.new_case()
    done = house.server.run(folder, environment={variable: prompt(i)})
    expected = NumericError.exit_code if "NAN" in variable else InputError.exit_code
    wrong = [] if done.code == expected else [f"D: exit code {done.code}: {done.stderr[-300:]}"]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    places = {f"{ROWS}:{2 * i + 1}", f"{ROWS}:{2 * i + 2}"}  # rows are counted from 1
    wrong += [f"D: names another row: {x}" for x in lines if not any(place in x for place in places)]
    wrong += [] if lines and "Traceback" not in done.stderr else [f"D: {done.stderr[-300:]}"]
    return house.judge(f"{variable} {prompt(i)}", folder, done, wrong)


def nan_loss(house: House, point: int, step: int) -> Outcome:
    """One vector's loss is NaN at a step: recorded, the other vector is finished, exit 5."""
    folder, weight = house.new_case(), (0.75, 0.25)[point]
    done = house.server.run(folder, setup=["nan_loss", "kind", weight, step])
    record = folder / "run" / "failed" / f"{POINTS[point]}.json"
    reason = json.loads(record.read_text())["reason"] if record.is_file() else "not recorded"
    wrong = [] if done.code == 5 else [f"D: exit code {done.code}: {done.stderr[-300:]}"]
    wrong += [] if f"step {step}: the loss of" in reason else [f"D: {reason}"]
    other = folder / "run" / "points" / POINTS[1 - point] / "adapter_model.safetensors"
    wrong += [] if other.is_file() else ["C: the other vector was not trained"]
    return house.judge(
        f"NaN at step {step} of {POINTS[point]}", folder, done, wrong + invariants.one_line(done.stderr, 1)
    )


# --- memory -------------------------------------------------------------------------------------------------


def little_memory(house: House, command: str, megabytes: int) -> Outcome:
    """A model whose forward pass needs several hundred megabytes, and less than that: the line says what to lower."""
    folder = house.folder / f"memory-{command}-{megabytes}"
    write_experiment(folder, _wide_model(house))
    _lengthen(folder / ROWS)
    arguments = [command, FILE, "--set", "data.max_length=2048", "--set", "data.max_prompts=2"]
    if command == "sweep":
        arguments.append("--no-evaluate")
        assert house.server.run(folder, ["score", *arguments[1:-1]]).code == 0
    done = house.server.run(folder, arguments, setup=["limit_memory", megabytes])
    reasons = [json.loads(p.read_text())["reason"] for p in (folder / "run" / "failed").glob("*.json")]
    wrong = [] if done.code == (5 if reasons else 3) else [f"D: exit code {done.code}: {done.stderr[-300:]}"]
    said = reasons or [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    wrong += [f"D: says not what to lower: {line}" for line in said if LESS_MEMORY not in line]
    wrong += invariants.one_line(done.stderr, 1) + invariants.visible_verifies(folder)
    again = house.server.run(folder, arguments)
    wrong += [] if again.code == 0 else [f"A: the retry left with {again.code}: {again.stderr[-300:]}"]
    shutil.rmtree(folder, ignore_errors=bool(wrong))
    return Outcome(f"{command} with {megabytes} MB", wrong)


def _wide_model(house: House) -> Path:
    """The tiny model with a wide middle: some megabytes of weights, and hundreds of activations."""
    folder = house.folder / "wide"
    if not folder.is_dir():
        from transformers import AutoConfig, LlamaForCausalLM

        shutil.copytree(house.model, folder)
        config = AutoConfig.from_pretrained(house.model)
        config.intermediate_size = 16384
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _lengthen(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["prompt"] = "word " * 250 + row["prompt"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
