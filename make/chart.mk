# The Helm chart. helm comes from the tools cache (`e2e/cluster/up` builds it), or from the PATH.
CORRAL_CACHE ?= $(HOME)/.cache/corral
HELM ?= $(firstword $(wildcard $(CORRAL_CACHE)/tools/helm-*/helm) helm)

.PHONY: chart

chart: ## check, render, test and package the chart into dist/
	$(HELM) lint --strict charts/corral
	HELM=$(HELM) $(PYTHON) -m pytest -q tests/chart
	$(HELM) package charts/corral --destination dist
