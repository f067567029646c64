# Everything a developer does. Needs python3 (3.11 or later), make and the package registries; `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
PYTEST := $(BIN)/python -m pytest
PINS := .tools/pins

.PHONY: help setup demo demo-workers test check unit bench conformance test-versions docs pins clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## Make .venv with everything pinned, and this package in it

$(STAMP): requirements/dev.txt pyproject.toml scripts/setup.sh
	@VENV=$(VENV) PYTHON=$(PYTHON) bash scripts/setup.sh
	@touch $@

demo: $(STAMP) ## A real MCP client runs real programs in a real server
	@$(BIN)/python -m examples.demo

demo-workers: $(STAMP) ## Servers behind nginx, workers, and Redis, while some of them are killed
	@$(BIN)/python -m examples.demo_workers

check: $(STAMP) ## Format, lint, types, import contracts, unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src tests examples benchmarks scripts
	$(BIN)/lint-imports
	$(PYTEST) -q tests/unit

test: $(STAMP) ## Everything: the checks, all tests, and the unit tests on the other Pythons that are here
	@bash scripts/system_packages.sh
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src tests examples benchmarks scripts
	$(BIN)/lint-imports
	$(PYTEST) -n 2 --dist loadscope $(PYTEST_ARGS)
	@VENV=$(VENV) bash scripts/test_versions.sh --others tests/unit

unit: $(STAMP) ## Only the unit tests
	$(PYTEST) -q tests/unit

bench: $(STAMP) ## Every benchmark against its baseline; prints a table
	@$(BIN)/python -m benchmarks

conformance: $(STAMP) ## The official MCP conformance suite on both protocol eras (fetches it from npm)
	@$(BIN)/python scripts/conformance.py

test-versions: ## Unit tests and contract suites on every supported Python that is here
	@bash scripts/test_versions.sh

docs: $(STAMP) ## Write the generated parts of docs/ again
	@$(BIN)/python scripts/generate_docs.py

pins: ## Compile requirements/*.txt again (PINS_ARGS=--upgrade for the newest)
	@[ -x $(PINS)/bin/pip-compile ] || { $(BIN)/python -m venv $(PINS) && $(PINS)/bin/pip install -q pip-tools==7.6.2; }
	$(PINS)/bin/python scripts/pins.py $(PINS_ARGS)

clean: ## Remove everything that was made here
	rm -rf $(VENV) .tools .venvs dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
