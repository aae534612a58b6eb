"""What the chart's pods may do: Pod Security `restricted`, a read-only root, and rights that are written down here one by one."""

from typing import Any

import pytest
from tests.support.chart import NAMESPACE, only, pod_of, render

EVERYTHING = (
    "operator.replicas=2",
    "keys.namespace=corral-keys",
    "keys.createNamespace=true",
    "ingress.enabled=true",
    "httpRoute.enabled=true",
    "httpRoute.parentRefs[0].name=public",
    "metrics.serviceMonitor.enabled=true",
    "metrics.podMonitor.enabled=true",
    "networkPolicy.enabled=true",
    "networkPolicy.modelNamespaces={models,search}",
    "imagePullSecrets={registry}",
)
PODS = ("Deployment", "Pod", "Job")
VOLUMES = {"configMap", "secret", "projected", "downwardAPI", "emptyDir", "persistentVolumeClaim", "csi", "ephemeral"}


@pytest.mark.parametrize("settings", [(), EVERYTHING], ids=["defaults", "everything"])
def test_every_pod_passes_pod_security_restricted(settings: tuple[str, ...]) -> None:
    pods = [(obj["metadata"]["name"], pod_of(obj)) for obj in render(*settings) if obj["kind"] in PODS]
    assert len(pods) == 3
    for name, pod in pods:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        for volume in pod.get("volumes", []):
            assert volume.keys() - {"name"} <= VOLUMES, name
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}, name
            assert container["resources"]["limits"]["memory"], name
            assert "hostPort" not in str(container.get("ports", [])), name


def test_only_operator_and_gateway_get_a_token() -> None:
    for obj in render(*EVERYTHING):
        if obj["kind"] == "ServiceAccount":
            assert obj["automountServiceAccountToken"] is False
        if obj["kind"] == "Pod":
            assert pod_of(obj)["automountServiceAccountToken"] is False


def rights(settings: tuple[str, ...], service_account: str) -> set[tuple[str, ...]]:
    """(namespace or *, group/resource, name or *, verb) for one service account."""
    objects = render(*settings)
    found = set()
    for binding in (obj for obj in objects if obj["kind"] in {"RoleBinding", "ClusterRoleBinding"}):
        if service_account not in {subject["name"] for subject in binding["subjects"]}:
            continue
        assert [subject["namespace"] for subject in binding["subjects"]] == [NAMESPACE]
        role = only([obj for obj in objects if _same_place(obj, binding)], binding["roleRef"]["kind"], binding["roleRef"]["name"])
        where = "*" if role["kind"] == "ClusterRole" else role["metadata"]["namespace"]
        for rule in role["rules"]:
            found |= {
                (where, f"{group}/{resource}".strip("/"), name, verb)
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for name in rule.get("resourceNames", ["*"])
                for verb in rule["verbs"]
            }
    return found


def _same_place(obj: dict[str, Any], binding: dict[str, Any]) -> bool:
    return obj["metadata"].get("namespace") == binding["metadata"].get("namespace")


def told(where: str, resource: str, verbs: str, name: str = "*") -> set[tuple[str, ...]]:
    return {(where, resource, name, verb) for verb in verbs.split()}


def test_the_operators_rights() -> None:
    own = "corral-operator"
    assert rights((), own) == (
        told("*", "corral.dev/modeldeployments", "get list watch")
        | told("*", "corral.dev/modelpools", "get list watch")
        | told("*", "corral.dev/gatewayreports", "get list watch")
        | told("*", "corral.dev/modeldeployments/status", "patch")
        | told("*", "corral.dev/modelpools/status", "patch")
        | told("*", "corral.dev/modeldeployments/finalizers", "update")
        | told("*", "pods", "get list watch create patch delete")
        | told("*", "pods/resize", "patch")
        | told("*", "batch/jobs", "get list watch create delete")
        | told("*", "nodes", "get list watch")
        | told("*", "persistentvolumeclaims", "get")
        | told("*", "events", "get list create patch")
        | told("*", "resource.k8s.io/resourceclaims", "get list watch create delete")
        | told("*", "resource.k8s.io/resourceslices", "get list watch")
        | told("*", "resource.k8s.io/deviceclasses", "get list watch")
        | told(NAMESPACE, "coordination.k8s.io/leases", "create")
        | told(NAMESPACE, "coordination.k8s.io/leases", "get update", own)
        | told(NAMESPACE, "secrets", "create")
        | told(NAMESPACE, "secrets", "get", "corral-signing-key")
    )


def test_the_gateways_rights() -> None:
    reads = (
        told("*", "corral.dev/modeldeployments", "get list watch")
        | told("*", "corral.dev/modelpools", "get list watch")
        | told("*", "pods", "get list watch")
        | told(NAMESPACE, "corral.dev/gatewayreports", "get list watch create patch delete")
    )
    assert rights((), "corral-gateway") == reads
    assert rights(EVERYTHING, "corral-gateway") == reads | told("corral-keys", "secrets", "get list watch")


def test_nobody_writes_a_spec() -> None:
    for account in ("corral-operator", "corral-gateway"):
        for _, resource, _, verb in rights(EVERYTHING, account):
            assert "*" not in resource + verb
            if resource in {"corral.dev/modeldeployments", "corral.dev/modelpools"}:
                assert verb in {"get", "list", "watch"}
