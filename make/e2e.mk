# End to end on a real cluster, and the benches.
.PHONY: e2e e2e-gpu e2e-ready bench

# What is tested runs in other processes: a connection that a test's client left to the garbage collector is told, and fails nothing.
E2E_WARNINGS := -W default::ResourceWarning -W default::pytest.PytestUnraisableExceptionWarning

e2e: e2e-ready ## the chart on a real cluster, driven by kubectl and the openai client (brings one up, takes it down)
	@status=0; $(PYTHON) -m pytest e2e $(E2E_WARNINGS) --ignore=e2e/test_gpu.py $(E2E_ARGS) || status=$$?; \
	if [ -z "$(CORRAL_E2E_KEEP)" ]; then e2e/cluster/down; fi; exit $$status

e2e-gpu: e2e-ready ## the scenarios on nodes with GPUs that are not there (about 15 minutes)
	@status=0; $(PYTHON) -m pytest e2e/test_gpu.py $(E2E_WARNINGS) $(E2E_ARGS) || status=$$?; \
	if [ -z "$(CORRAL_E2E_KEEP)" ]; then e2e/cluster/down; fi; exit $$status

# Images wait for the disk and the network, tools for the processors: the first time takes minutes less side by side.
e2e-ready: setup-test
	@$(MAKE) -j2 image cluster-tools
	@$(MAKE) cluster-up

bench: setup-test ## what there is to measure, and how to run each
	@for file in bench/[a-z]*.py; do printf '  %-22s ' "$$file"; $(PYTHON) -c "import ast,sys; print((ast.get_docstring(ast.parse(open(sys.argv[1]).read())) or '').splitlines()[0])" "$$file"; done
	@echo "  each takes --help and --json FILE; run one at a time on a quiet machine: $(PYTHON) bench/NAME.py"
