# The images, and the real cluster that they are tested on.
.PHONY: image cluster-tools cluster-up cluster-down

image: ## build both images (Docker, else buildah) and print their archives' paths
	@e2e/images/build

cluster-tools: ## the programs of that cluster, from source; kept
	@e2e/cluster/prepare

cluster-up: ## a real Kubernetes for tests: KUBECONFIG_E2E, else kind, else two nodes on this machine
	@e2e/cluster/up

cluster-down: ## take that cluster away, and all that it left
	@e2e/cluster/down
