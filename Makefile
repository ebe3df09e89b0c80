# Everything runs in .venv, made by `make env`; activating it is not needed here.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help env test test-all lint format demo clean

PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check install -c constraints.txt
MODEL ?=
CORPUS ?=
TESTS ?=
JOBS ?= 2

# DeepSpeed compiles parts of itself when they are first used and finds ninja by the PATH.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# What it compiled belongs to this .venv: shared between two, each would compile it anew.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.venv/torch_extensions

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 15

env: .venv/installed  ## make .venv with the tested versions (PYTHON=python3.12 for another Python)

# torch comes first: DeepSpeed is a source package whose setup imports it.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed; give one with PYTHON=python3.11")'
	[[ "$$PWD" != *' '* ]] || { echo "error: DeepSpeed does not start from a path with spaces; move this folder"; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) setuptools wheel ninja
	$(PIP) --no-build-isolation deepspeed
	$(PIP) --no-build-isolation -e '.[dev]'
	touch $@

# A worker gets whole files, whose tests share runs, in the order of their names.
PYTEST := OMP_NUM_THREADS=1 python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test: env  ## what every change needs (TESTS="tests/attention/test_masks.py -x" for a part, JOBS=0 for one process)
	$(PYTEST) -m 'not slow' $(TESTS)

test-all: env  ## every test, with clusters and benchmarks, as a release needs
	$(PYTEST) $(TESTS)

lint: env  ## formatting, lint and types
	ruff format --check .
	ruff check .
	python -m mypy

format: env  ## format and mend what can be mended automatically
	ruff format .
	ruff check --fix .

demo: env  ## the whole road on this machine (MODEL=folder-or-hub-name CORPUS="files" for your own)
	python examples/demo.py --work demo $(if $(MODEL),--model '$(MODEL)') $(if $(CORPUS),--corpus $(CORPUS))

clean:  ## remove .venv, caches and the demo's folder
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
