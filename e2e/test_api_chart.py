"""The chart on a real API server, before anything runs: taken word for word, and through install, upgrade and uninstall.

The images are not needed: nothing here waits for a pod. Like `test_api.py` it goes first, and leaves out what would touch an installed Corral.
"""

import secrets
import subprocess
from collections.abc import Iterator

import pytest
import yaml
from e2e.support.kubectl import Kubectl, until
from tests.support.chart import CHART, helm_binary, render

CRDS = ("modeldeployments.corral.dev", "modelpools.corral.dev", "gatewayreports.corral.dev")
NOT_EVERYWHERE = {"ServiceMonitor", "PodMonitor", "HTTPRoute"}


@pytest.fixture
def bare(kubectl: Kubectl) -> Iterator[tuple[Kubectl, str]]:
    """A namespace of its own that enforces `restricted`, in a cluster without Corral."""
    if any(kubectl.get("crd", name) for name in CRDS):
        pytest.skip("Corral's resources are there already")
    namespace = f"corral-chart-{secrets.token_hex(3)}"
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})
    yield kubectl, namespace
    kubectl.delete("crd", *CRDS, wait=False)
    kubectl.delete("namespace", namespace, wait=False)
    until("the CRDs are gone", lambda: not any(kubectl.get("crd", name) for name in CRDS), timeout=120)


def helm(where: tuple[Kubectl, str], *arguments: str) -> str:
    kube, namespace = where
    command = [helm_binary(), "--kubeconfig", kube.kubeconfig, *arguments, "--namespace", namespace]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
    return done.stdout


def test_install_upgrade_uninstall(bare: tuple[Kubectl, str]) -> None:
    kube, namespace = bare
    helm(bare, "install", "corral", str(CHART), "--set", "image.corral.pullPolicy=Never", "--set", "pool.spec.memoryMargin=512Mi")
    pool = kube.json("get", "mp", "default")
    assert pool["spec"]["memoryMargin"] == "512Mi"

    helm(bare, "upgrade", "corral", str(CHART), "--reuse-values", "--set", "pool.spec.memoryMargin=256Mi")
    again = kube.json("get", "mp", "default")
    assert again["spec"]["memoryMargin"] == "256Mi"
    assert again["metadata"]["uid"] == pool["metadata"]["uid"]

    assert every_object_is_taken(kube, namespace) == ""

    helm(bare, "uninstall", "corral")
    assert all(kube.get("crd", name) for name in CRDS)
    assert kube.get("mp", "default") is None


def every_object_is_taken(kube: Kubectl, namespace: str) -> str:
    """What a server-side dry run of everything that the chart can render has to say."""
    settings = (
        "operator.replicas=2",
        "keys.namespace=default",
        "ingress.enabled=true",
        "networkPolicy.enabled=true",
        "networkPolicy.modelNamespaces={default}",
    )
    arguments = ("--namespace", namespace, "--api-versions", "corral.dev/v1alpha1/ModelPool")
    objects = [obj for obj in render(*settings, arguments=arguments) if obj["kind"] not in NOT_EVERYWHERE]
    assert len(objects) > 20
    command = kube.command("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-")
    done = subprocess.run(command, input=yaml.safe_dump_all(objects), capture_output=True, text=True, check=False, timeout=120)
    return done.stderr
