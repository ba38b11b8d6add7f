# Two commands matter: `make demo` and `make test`. Each makes .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo test lint bench clean

demo: $(STAMP)
	$(BIN)/python -m examples.demo

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks.budgets
	$(BIN)/python -m benchmarks.prediction
	$(BIN)/python -m benchmarks.allocation
	$(BIN)/python -m benchmarks.baselines --time 240
	$(BIN)/python -m benchmarks.frontier
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks.durability
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.repeatability
	$(BIN)/python -m benchmarks.estimators
	$(BIN)/python -m benchmarks.table_time

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "widthwise needs Python 3.11 or newer; give one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
