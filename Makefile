# make demo   the main job: ten minutes in the life of two fragmented guests, and the story of it
# make test   the tests, compiled with bounds checks
# make check  all that CI runs
# Each creates what it needs in .venv first, from pyproject.toml; the second time there is nothing to do.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-interpreted lint check bench clean

demo: .venv/demo.stamp
	@$(BIN)/vmmsim demo

test: .venv/test.stamp
	NUMBA_BOUNDSCHECK=1 $(BIN)/python -m pytest -n auto

test-interpreted: .venv/test.stamp
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -n auto

lint: .venv/tools.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test test-interpreted

bench: .venv/test.stamp
	$(BIN)/vmmsim bench

clean:
	rm -rf .venv runs

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vmmsim needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml | .venv/bin/python
	$(PIP) --editable .
	@touch $@

.venv/test.stamp: pyproject.toml | .venv/demo.stamp
	$(PIP) --editable '.[test]'
	@touch $@

.venv/tools.stamp: pyproject.toml | .venv/test.stamp
	$(PIP) --editable '.[test,tools]'
	@touch $@
