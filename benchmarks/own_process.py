"""One side of a comparison in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

MARK = "RESULT "


def tell(result: dict[str, Any]) -> None:
    """What the process found, for `result_of`."""
    print(MARK + json.dumps(result))


def result_of(side: str, module: str, *arguments: str) -> dict[str, Any]:
    """What `python -m module arguments` told; ends this process too if it told nothing."""
    print(f"running {side} ...", flush=True)
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    told = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not told:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(told[-1].removeprefix(MARK))
