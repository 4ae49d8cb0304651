# Everything runs in .venv, made by `make install`; the other targets call it.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test nightly lint bench

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/modpo quickstart --output runs/quickstart

test: install
	$(BIN)/python -m pytest -n auto

nightly: install
	MODPO_FAULT_SERVERS=2 $(BIN)/python -m pytest -m "slow or not slow"

# Every fault of docs/reliability.md, whose table it writes; fails unless everything held.
.PHONY: faults stack
faults: install
	MODPO_FAULT_SERVERS=2 MODPO_FAULT_TABLE=1 $(BIN)/python -m pytest -q -s -m slow tests/faults/test_every_fault.py

# The quickstart with --fast, killed ten times at random moments and finished, against an undisturbed one.
.PHONY: kills
kills: install
	$(BIN)/python tests/faults/demo_kills.py

# The same faults on transformers, TRL, PEFT and datasets alone.
stack: install
	MODPO_FAULT_TABLE=1 $(BIN)/python -m pytest -q -s tests/faults/stack.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The tables of keys in docs/experiment.md, from the fields of the sections.
.PHONY: reference
reference: install
	$(BIN)/python -m tools.experiment_reference docs/experiment.md

# Hundreds of cases for each test of tests/fuzz, drawn at random: about 15,000 in all, counted at the end.
.PHONY: fuzz
fuzz: install
	MODPO_FUZZ_EXAMPLES=400 $(BIN)/python -m pytest -q tests/fuzz

# TRL's tests of DPOTrainer with both trainers, from a checkout of TRL: fetched, or make trl TRL=../trl/tests.
.PHONY: trl
TRL ?= .cache/trl/tests/test_dpo_trainer.py
trl: install
	test -e $(TRL) || git clone --quiet --depth 1 --branch v$$(sed -n 's/^trl==//p' constraints.txt) \
		https://github.com/huggingface/trl .cache/trl
	$(BIN)/python -m tools.trl_suite --tests $(TRL)

bench: install
	$(BIN)/python -m benchmarks.trl
	$(BIN)/python -m benchmarks.on_policy

# Known vulnerabilities of every pinned version, as PyPI knows them. A version that could not be looked up is a failure.
AUDIT := .cache/audit
.PHONY: audit lock
audit: $(AUDIT)/.installed
	$(AUDIT)/bin/pip-audit --strict --requirement requirements.lock --require-hashes --disable-pip

# The versions of constraints.txt and of what they need elsewhere, with the sha256 of each of their files.
lock: $(AUDIT)/.installed
	$(AUDIT)/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --all-extras --generate-hashes \
		--constraint constraints.txt --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

$(AUDIT)/.installed:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet pip-audit==2.10.1 uv==0.13.8
	touch $@
