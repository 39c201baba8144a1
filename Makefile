# The front door: `make demo` on a fresh clone needs python3 (3.11 or newer) and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# One torch thread in each test worker, and none that spins while it waits.
QUIET := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check clean

help:  ## show this
	@echo "make demo       train a small world with the whole method, measure it, write a report (runs/demo)"
	@echo "make test       everything that a change must pass"
	@echo "make check      format, lint, types, sizes, house rules and invariants: about a minute"
	@echo "make test-slow  the tests that take minutes"
	@echo "make clean      remove caches and $(VENV); runs/ stays"

demo: $(READY)  ## record, train, measure, report
	@$(BIN)/forcing demo

test: $(READY)  ## the tests, two at a time
	@$(QUIET) $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-slow: $(READY)  ## the slow ones, alone
	@$(QUIET) $(BIN)/python -m pytest -m "slow and not gpu"

check: $(READY)  ## what to run before each commit
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/python tools/census.py
	@$(QUIET) $(BIN)/python -m pytest -q -n 2 -m "not slow and not gpu" tests/test_house.py tests/invariants

clean:  ## caches and the environment
	@rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis dist
	@find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "forcing needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; \
	    exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): one to a few minutes, once"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	@touch $@
