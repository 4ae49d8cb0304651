"""One part in a process of its own: `python -m benchmarks.gpu_check.part NAME SETTING` prints its rows."""

from __future__ import annotations

import importlib
import sys

from benchmarks.gpu_check.rows import FAILED, MISSING, Row, tell_row
from benchmarks.gpu_check.setting import Setting

# The module and function behind each part's name.
PARTS = {
    "machine": "machine:check",
    "attention": "attention:check",
    "packing": "packing:check",
    "lora modpo": "training:lora_modpo",
    "lora trl": "training:lora_trl",
    "full modpo": "training:full_modpo",
    "full trl": "training:full_trl",
    "sampling": "sampling:check",
    "demo": "demo:check",
}


def main(name: str, setting: str) -> None:
    module, function = PARTS[name].split(":")
    try:
        check = getattr(importlib.import_module(f"benchmarks.gpu_check.{module}"), function)
        for row in check(Setting.from_text(setting)):
            tell_row(row)
    except ModuleNotFoundError as error:
        ours = str(error.name).partition(".")[0] in ("modpo", "benchmarks")
        tell_row(Row(name, "runs", f"{error.name} is not installed"[:200], FAILED if ours else MISSING))
        raise
    except Exception as error:
        tell_row(Row(name, "runs to its end", f"{type(error).__name__}: {' '.join(str(error).split())}"[:200], FAILED))
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
