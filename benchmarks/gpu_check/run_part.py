"""A part in a process of its own, stopped with all it started where its time is over."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from benchmarks.gpu_check.rows import FAILED, MISSING, Row, told_rows
from benchmarks.gpu_check.setting import Setting

SIGN_OF_LIFE = 10.0  # seconds
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}


def run_part(name: str, setting: Setting, seconds: float) -> Iterator[Row]:
    """The rows of a part as it finds them, and one more where it does not come to its end within `seconds`."""
    if seconds < 1:
        yield Row(name, "runs", "no time was left for it", MISSING)
        return
    log = Path(setting.work) / f"{name.replace(' ', '_')}.log"
    command = [sys.executable, "-m", "benchmarks.gpu_check.part", name, setting.as_text()]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
        try:
            told = False
            for row in told_rows(_lines(process, name, seconds)):
                told = told or row.status in (FAILED, MISSING)
                yield row
            if process.poll() is None:
                yield Row(name, "runs to its end", f"cut off after {seconds:.0f} s; {log} has more", FAILED)
            elif process.returncode and not told:
                said = [line.strip() for line in log.read_text().splitlines() if line.strip()] or ["no word"]
                yield Row(name, "runs to its end", f"exit {process.returncode}: {said[-1]}"[:200], FAILED)
        finally:
            _end(process)


def _lines(process: subprocess.Popen[str], name: str, seconds: float) -> Iterator[str]:
    """What it prints, until it is through or its time is over."""
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    started = time.monotonic()
    while (left := started + seconds - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=min(SIGN_OF_LIFE, left))
        except queue.Empty:
            print(f"  ... {name}: {time.monotonic() - started:.0f} of at most {seconds:.0f} s", flush=True)
            continue
        if line is None:
            process.wait()
            return
        yield line


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _end(process: subprocess.Popen[str]) -> None:
    """Stop it and all it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
