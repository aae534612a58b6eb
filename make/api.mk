# What is generated from the API's Python models.
PYTHON ?= .venv/bin/python

.PHONY: crds crds-check

crds: ## write crds/*.yaml, the chart's copies and docs/reference.md
	PYTHONPATH=operator $(PYTHON) -m corral.api.generate .

crds-check: ## fail when a generated file is not what `make crds` writes
	PYTHONPATH=operator $(PYTHON) -m corral.api.generate --check .
