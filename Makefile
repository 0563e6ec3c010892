# Each target sets up what it needs, in a virtual environment of its own, and reinstalls only what changed.
#   make quickstart | test | test-slow | test-weekly | test-contract | budget | lint | docs | bench        PYTHON=python3.13 takes another interpreter

PYTHON ?= python3
VENV ?= .venv$(if $(filter python3 python,$(notdir $(PYTHON))),,-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
WORKERS ?= 2

.PHONY: quickstart test test-slow test-weekly test-contract budget lint docs bench setup setup-dev

quickstart: $(VENV)/.user
	$(BIN)/python launch.py train --config=configs/gpt.py:quickstart --workdir=runs/quickstart
	@echo && echo "== the checkpoint, restored and measured on text it never saw" && echo
	$(BIN)/python launch.py eval --workdir=runs/quickstart
	@echo && echo "== text from it" && echo
	$(BIN)/python launch.py sample --workdir=runs/quickstart --prompt="The statement " --max_new_tokens=200
	@echo && echo "All of it is in runs/quickstart: metrics.jsonl, plots/, checkpoints/. Next:" && echo
	@echo "  $(BIN)/python launch.py train --workdir=runs/quickstart --config.train.steps=1200 --config.resume=extend"
	@echo "  $(BIN)/python launch.py train --config=configs/gpt.py:quick+relu --workdir=runs/relu --cpu_devices=8 --config.mesh=fsdp:4,tp:2"
	@echo "  $(BIN)/python launch.py train --config=configs/cnn.py:digits --workdir=runs/digits"
	@echo "  $(BIN)/python launch.py train --config=configs/gpt.py:quick --config.data.name=YOUR.txt --workdir=runs/mine"
	@echo "  $(BIN)/python launch.py train --help"

# A family's tests, or a file's, run in one worker, which compiles what they share once.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder
DEFAULT := -m "not slow and not weekly and not gpu"
SLOW := -m "slow and not gpu"

# A whole suite fails where a test file takes more than its share of CPU seconds, tests/budget.json.
test: $(VENV)/.dev
	$(PYTEST) $(DEFAULT) $(or $(ARGS),--budget=default)

test-slow: $(VENV)/.dev
	$(PYTEST) $(SLOW) $(or $(ARGS),--budget=slow)

# The full grids of what a covering few stand for in the other suites; docs/log.md gets the figure of each run.
test-weekly: $(VENV)/.dev
	$(PYTEST) -m "weekly and not gpu" $(ARGS)

# The laws of some families: make test-contract CASES=gpt,mixtral PYTHON=python3.13
test-contract: $(VENV)/.dev
	$(PYTEST) -m "not weekly and not gpu" tests/models/test_contract.py --cases=$(CASES) $(ARGS)

budget: $(VENV)/.dev
	rm -rf .jax_cache
	$(PYTEST) $(DEFAULT) --write-budget=default
	$(PYTEST) $(SLOW) --write-budget=slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages that are made of the code: families, knobs, metrics.
docs: $(VENV)/.user
	$(BIN)/python -m docs.generate

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.step_time

setup: $(VENV)/.user
setup-dev: $(VENV)/.dev

$(VENV)/.user: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.user
	$(PIP) -r requirements-dev.txt
	@touch $@
