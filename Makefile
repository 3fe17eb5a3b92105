# Every target sets the project up first; a machine needs Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
UV := $(or $(shell command -v uv 2>/dev/null),.cache/uv/bin/uv)

.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-slow test-gpu mutate bench docs up lock clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(READY) ## .venv with exactly the packages of requirements.lock

# Compiled at set-up, or every first import pays for it: `import torch` 1.3 s instead of 2.7 s.
$(READY): requirements.lock pyproject.toml | $(UV)
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; v < "3" or sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {v}. Give another: make PYTHON=...")'
	@test -x $(BIN)/python || echo "The first time, about 4 GB of packages (torch with CUDA) are downloaded into .venv, where they take 8 GB."
	test -x $(BIN)/python || $(UV) venv --quiet --python "$$(command -v $(PYTHON))" .venv
	$(UV) pip sync --compile-bytecode --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@touch $@

.cache/uv/bin/uv:
	@echo "uv, which installs the packages, is downloaded into .cache/uv (60 MB)."
	$(PYTHON) -m venv .cache/uv
	.cache/uv/bin/python -m pip install --quiet uv

demo: $(READY) ## images to answers, on drawn characters
	$(BIN)/dml demo

check: $(READY) ## format, lint, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY) ## the tests, as many files at once as there are cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# One after another: two Ray clusters that start at once on a machine take each other's for their own.
# Each named as it begins: whatever ends the process, the last line says which test it was.
test-slow: $(READY) ## real servers, clusters and longer trainings
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -vv

test-gpu: $(READY) ## what a GPU computes, beside the CPU
	$(BIN)/python -m pytest -m gpu

ONLY ?= dml/**/*.py
PER_FILE ?= 1
SEED ?= 0
mutate: $(READY) ## would the tests notice? One expression changed at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutate --only "$(ONLY)" --per-file $(PER_FILE) --seed $(SEED)

bench: $(READY) ## figures, with the hardware they were taken on
	$(BIN)/python -m benchmarks

docs: $(READY) ## the documentation's site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

up: $(READY) ## Prefect, a worker, the deployments and MLflow, here
	$(BIN)/dml up

lock: pyproject.toml | $(UV) ## pin what all extras and groups of pyproject.toml ask for, naming no registry
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --all-extras --group dev --group docs \
		--custom-compile-command "make lock" pyproject.toml -o requirements.lock

clean: ## remove what `make` made; stores stay
	rm -rf .venv .cache site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
