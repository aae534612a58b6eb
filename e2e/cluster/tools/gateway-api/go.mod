module corral.dev/e2e/tools/gateway-api

go 1.26.0

// Only its folder config/crd/standard is used.
require sigs.k8s.io/gateway-api v1.6.3
