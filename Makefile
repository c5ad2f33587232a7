# Every target sets up .venv by itself; it is set up again when pyproject.toml or the constraints change.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=

.PHONY: help demo test lint docs benchmark setup clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

# The constraints hold for Python 3.11 alone; another Python takes the newest versions that pyproject.toml allows.
$(STAMP): pyproject.toml .ci/constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Install one, or type: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet -e . --group dev \
		$$($(BIN)/python -c 'import sys; print("-c .ci/constraints.txt" if sys.version_info[:2] == (3, 11) else "")')
	touch $@

setup: $(STAMP)  ## set up a contributor's environment in .venv
	@# Hooks that cannot be fetched would refuse every commit: without a network there are none, and `make lint` checks the same.
	@if git rev-parse --git-dir >/dev/null 2>&1; then $(BIN)/pre-commit install --install-hooks || \
		{ $(BIN)/pre-commit uninstall; echo "No network for the hooks of pre-commit: type make lint before you commit."; }; fi
	@echo "Ready. Activate it with: source $(BIN)/activate"

# as below: two threads took longer than one wherever another program ran
demo: export OMP_NUM_THREADS ?= 1
demo: export NUMBA_NUM_THREADS ?= 1
demo: $(STAMP)  ## run the demonstration on the embedded data
	$(BIN)/cellsmith demo

# tensors of the tests are too small for threads, which only wait for each other
test: export OMP_NUM_THREADS ?= 1
test: export NUMBA_NUM_THREADS ?= 1
test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)  ## build the documentation; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

benchmark: $(STAMP)  ## run the benchmark against the peers
	$(BIN)/python -m cellsmith.benchmark

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) build dist docs/_build docs/api/generated docs/tutorials .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
