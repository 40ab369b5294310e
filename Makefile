# `make demo`, `make test` and `make check` set .venv up when it is absent or older than
# pyproject.toml, and otherwise leave it alone. Choose the interpreter with PYTHON=python3.12.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

.PHONY: demo test test-long coverage check floors lowest docs site wheel

demo: $(STAMP)
	$(BIN)/sightrail demo --out out/demo

# What each target runs stands in noxfile.py.
test: $(STAMP)
	$(BIN)/nox -s tests -- $(PYTEST_ARGS)

test-long: $(STAMP)
	$(BIN)/nox -s long -- $(PYTEST_ARGS)

coverage: $(STAMP)
	$(BIN)/nox -s coverage -- $(PYTEST_ARGS)

# A part of the suite on the oldest dependencies, in an environment of its own.
floors: $(STAMP)
	$(BIN)/nox -s floors

# The everyday suite on the oldest dependencies, in that environment.
lowest: $(STAMP)
	$(BIN)/nox -s lowest -- $(PYTEST_ARGS)

# What docs/ states as measured is written by the code that measures it.
docs: $(STAMP)
	$(BIN)/nox -s docs

# The web site, into out/site.
site: $(STAMP)
	$(BIN)/nox -s site

wheel: $(STAMP)
	$(BIN)/nox -s wheel

check: $(STAMP)
	$(BIN)/nox -s lint types contracts

# pip 25.1 is the first that knows dependency groups.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[all]" --group dev
	touch $@
