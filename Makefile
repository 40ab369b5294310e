# `make demo`, `make test` and `make check` set .venv up when it is absent or older than
# pyproject.toml, and otherwise leave it alone. Choose the interpreter with PYTHON=python3.12.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

.PHONY: demo test test-long check docs

demo: $(STAMP)
	$(BIN)/sightrail demo --out out/demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-long: $(STAMP)
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS)

# What docs/ states as measured is written by the code that measures it.
docs: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m conformance docs/conformance.md

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# pip 25.1 is the first that knows dependency groups.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@
