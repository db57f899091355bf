# One virtual environment in the root serves every target; it is made on first use.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip
SEED ?= 0
WORKDIR ?= workdir/demo
SOURCES := mgm_jax configs tools tests benchmarks setup.py

.PHONY: demo test lint format bench

demo: $(VENV)/.demo
	$(VENV)/bin/mgm-jax demo --seed $(SEED) --workdir $(WORKDIR)

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.test
	$(VENV)/bin/ruff check $(SOURCES)
	$(VENV)/bin/ruff format --check $(SOURCES)

format: $(VENV)/.test
	$(VENV)/bin/ruff check --fix $(SOURCES)
	$(VENV)/bin/ruff format $(SOURCES)

bench: $(VENV)/.test
	$(VENV)/bin/python -m benchmarks.depthwise

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/.test: setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[demo,test]'
	touch $@ $(VENV)/.demo
