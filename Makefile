# `make` lists what there is. Parts of other folders come from make/*.mk.
PYTHON := .venv/bin/python
MAKEFLAGS += --no-print-directory
export PYTHONPATH := operator:server_image:.

.DEFAULT_GOAL := help
.PHONY: help setup setup-test demo up test lint format

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST) | sort

setup: ## make .venv with what the demo and `corral up` need
	@scripts/setup demo

setup-test: ## the same, with what the tests and the checks need
	@scripts/setup test
	@scripts/setup lint

demo: setup ## three models, room for two: watch them take turns (ends by itself)
	@$(PYTHON) -m demo

up: setup ## serve the demo's three models until Ctrl-C, on PORT (8080)
	@$(PYTHON) -m demo --keep-running --port $(or $(PORT),8080)

test: setup-test ## all tests that need no cluster
	$(PYTHON) -m pytest

lint: setup-test ## ruff, mypy, import contracts, generated files
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	$(dir $(PYTHON))lint-imports
	@$(MAKE) crds-check

format: setup-test ## let ruff put the code into its form
	$(PYTHON) -m ruff format
	$(PYTHON) -m ruff check --fix

include $(wildcard make/*.mk)
