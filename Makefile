# Every target works from a fresh clone: what it needs is installed first, once, into .venv.
PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?=

# Installing without compiling is a third faster; what is used is compiled by its first import, so that must be stored.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch
WARM_UP = $(BIN)/python -c "import liteframe.pipeline"

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint docs clean

help:  ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.installed-dev  ## install the package and the development tools into .venv

quickstart: .venv/.installed  ## the whole story on this machine in a few minutes
	$(BIN)/liteframe quickstart

# One worker a core, one thread a worker: torch's own threads would only get in each other's way.
test: .venv/.installed-dev  ## the tests (PYTEST_ARGS="-m slow" for the slow ones)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 -m "not slow" $(PYTEST_ARGS)

lint: .venv/.installed-dev  ## style, formatting, types and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Not --quiet: that hides warnings from --strict, too. The variable keeps the theme from advertising its own future.
docs: .venv/.installed-docs  ## the documentation site, into build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove .venv and what the tools cache
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache

.venv/.installed: pyproject.toml constraints.txt
	@echo "Installing LiteFrame into .venv: about a minute and 1.4 GB with a CPU build of torch, more with a CUDA build."
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	$(WARM_UP)
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt
	@echo "Installing LiteFrame and its tools into .venv: about a minute and 1.4 GB with a CPU build of torch."
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable ".[dev]"
	$(WARM_UP)
	@touch .venv/.installed $@

.venv/.installed-docs: .venv/.installed-dev
	$(INSTALL) --editable ".[docs]"
	@touch $@
