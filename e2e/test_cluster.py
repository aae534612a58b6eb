"""The cluster for end-to-end tests does what a cluster does, and leaves nothing behind however it ends.

It runs on a cluster of its own beside the one that the other tests use, and never touches that.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.support.kubectl import Kubectl, until

FOLDER = Path(__file__).resolve().parent / "cluster"
STATE = Path("/tmp/corral-e2e-9")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in {"CORRAL_E2E_STATE", "KUBECONFIG_E2E"}} | {
    "CORRAL_E2E_INSTANCE": "9",
    "CORRAL_E2E_CLUSTER": "nodes",
}
NAMESPACE = "trial"
PROBE = "localhost/corral-probe:1"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a cluster of processes needs root")


def call(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([FOLDER / program, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return done


def leftovers() -> list[str]:
    code = "import json; from twonodes import cleanup, state; print(json.dumps(cleanup.leftovers(state.state())))"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def processes() -> dict[str, int]:
    return {file.name: int(file.read_text()) for file in (STATE / "pids").iterdir()}


@pytest.fixture(scope="module")
def own() -> Iterator[dict[str, str]]:
    call("down")
    call("up")
    yield json.loads((STATE / "env.json").read_text())
    call("down")
    assert leftovers() == []


@pytest.fixture(scope="module")
def kubectl(own: dict[str, str]) -> Kubectl:
    return Kubectl(own["KUBECONFIG"], f"{own['CORRAL_E2E_TOOLS']}/kubectl")


def pod(name: str, node: str) -> dict[str, Any]:
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "probe"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "securityContext": {"runAsNonRoot": True, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "probe",
                    "image": PROBE,
                    "imagePullPolicy": "Never",
                    "securityContext": restricted,
                    "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
                    "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
                }
            ],
            "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}],
        },
    }


@pytest.fixture(scope="module")
def pods(own: dict[str, str], kubectl: Kubectl) -> dict[str, str]:
    """A pod on each node, in a namespace that enforces `restricted`, with one local volume between them; names to addresses."""
    folder = Path(own["CORRAL_E2E_VOLUMES"]) / "shared"
    folder.mkdir()
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    claimed = {"accessModes": ["ReadWriteMany"], "storageClassName": own["CORRAL_E2E_STORAGE_CLASS"]}
    nodes = own["CORRAL_E2E_NODES"].split()
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": nodes}]}]
    volume = {"capacity": {"storage": "1Gi"}, "local": {"path": str(folder)}, "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}, **claimed}
    backend = {"service": {"name": "probe", "port": {"number": 80}}}
    rules = [{"host": "ingress.example", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}]
    gateway_namespace, gateway = own["CORRAL_E2E_GATEWAY"].split("/")
    route = {
        "parentRefs": [{"namespace": gateway_namespace, "name": gateway}],
        "hostnames": ["route.example"],
        "rules": [{"backendRefs": [{"name": "probe", "port": 80}]}],
    }

    def named(version: str, kind: str, name: str, **content: Any) -> dict[str, Any]:
        return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, **content}

    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    # A pod is refused before its namespace has an account, which a controller makes soon after.
    until("the namespace has its service account", lambda: kubectl.get("serviceaccount", "default", NAMESPACE))
    kubectl.apply(
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "shared"}, "spec": volume},
        named("v1", "PersistentVolumeClaim", "shared", spec={**claimed, "resources": {"requests": {"storage": "1Gi"}}}),
        named("v1", "Service", "probe", spec={"selector": {"app": "probe"}, "ports": [{"port": 80, "targetPort": 8080}]}),
        named("networking.k8s.io/v1", "Ingress", "probe", spec={"ingressClassName": own["CORRAL_E2E_INGRESS_CLASS"], "rules": rules}),
        named("gateway.networking.k8s.io/v1", "HTTPRoute", "probe", spec=route),
        *(pod(f"on-{node}", node) for node in nodes),
    )
    names = [f"pod/on-{node}" for node in nodes]
    kubectl.run("wait", "-n", NAMESPACE, "--for=condition=Ready", "--timeout=60s", *names, timeout=70)
    return {item["metadata"]["name"]: item["status"]["podIP"] for item in kubectl.list("pods", NAMESPACE)}


def execute(kubectl: Kubectl, name: str, *command: str) -> str:
    return kubectl.run("exec", "-n", NAMESPACE, name, "--", "/probe", *command)


def ask(address: str, host: str = "") -> str:
    """The answer's body, or nothing while there is none."""
    request = urllib.request.Request(f"http://{address}/hello", headers={"Host": host} if host else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as response:
            return response.read().decode()
    except OSError:
        return ""


def test_pods_run_on_both_nodes_and_are_reached(pods: dict[str, str], kubectl: Kubectl) -> None:
    assert len(pods) == 2
    for name, address in pods.items():
        assert ask(f"{address}:8080") == f"{name} /hello\n"
        for other in pods.values():
            assert "/across" in execute(kubectl, name, "fetch", f"http://{other}:8080/across")


def test_dns_and_services_answer_in_pods_and_to_this_machine(pods: dict[str, str], kubectl: Kubectl) -> None:
    service = kubectl.get("service", "probe", NAMESPACE)
    assert service is not None
    address = service["spec"]["clusterIP"]
    for name in pods:
        assert address in execute(kubectl, name, "lookup", f"probe.{NAMESPACE}.svc.cluster.local")
        assert "/by-name" in execute(kubectl, name, "fetch", "http://probe/by-name")
        assert "no such host" in kubectl.run("exec", "-n", NAMESPACE, name, "--", "/probe", "lookup", "www.example.com", check=False)
    assert ask(address).endswith(" /hello\n")


def test_an_ingress_and_an_httproute_answer(pods: dict[str, str], own: dict[str, str]) -> None:
    for host in ("ingress.example", "route.example"):
        body = until(f"an answer for {host}", lambda host=host: ask(own["CORRAL_E2E_INGRESS"], host), timeout=30)
        assert body.split()[0] in pods
    assert ask(own["CORRAL_E2E_INGRESS"], "unknown.example") == ""


def test_a_local_volume_is_shared_by_restricted_pods(pods: dict[str, str], kubectl: Kubectl) -> None:
    first, second = sorted(pods)
    execute(kubectl, first, "write", "/shared/note", "from the other node")
    assert execute(kubectl, second, "read", "/shared/note") == "from the other node"


def test_restricted_is_enforced(pods: dict[str, str], kubectl: Kubectl) -> None:
    bad = pod("root", "node-1")
    bad["spec"]["securityContext"] = {}
    bad["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        kubectl.apply(bad)


def test_a_pod_gives_memory_back_and_takes_it_again_in_place(pods: dict[str, str], kubectl: Kubectl) -> None:
    name = min(pods)

    def allocated() -> tuple[str, int]:
        found = kubectl.get("pod", name, NAMESPACE)
        assert found is not None
        (status,) = found["status"]["containerStatuses"]
        return status["allocatedResources"]["memory"], status["restartCount"]

    for wanted in ("16Mi", "96Mi"):
        patch = {"spec": {"containers": [{"name": "probe", "resources": {"requests": {"memory": wanted}}}]}}
        kubectl.run("patch", "pod", name, "-n", NAMESPACE, "--subresource", "resize", "-p", json.dumps(patch))
        until(f"{wanted} allocated without a restart", lambda wanted=wanted: allocated() == (wanted, 0), timeout=20)


def test_an_image_is_loaded_into_every_node(own: dict[str, str], kubectl: Kubectl) -> None:
    tools = Path(own["CORRAL_E2E_TOOLS"]).resolve().parent
    call("load-image", *map(str, tools.glob("pod-*/probe.tar")))
    missing = subprocess.run([FOLDER / "load-image", "absent.tar"], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "absent.tar is no file" in missing.stderr


def test_a_second_up_changes_nothing(own: dict[str, str]) -> None:
    before = processes()
    done = call("up")
    assert "already up" in done.stderr
    assert done.stdout == (STATE / "env").read_text()
    assert processes() == before


def test_after_a_violent_death_up_starts_anew_and_down_leaves_nothing(own: dict[str, str], pods: dict[str, str], kubectl: Kubectl) -> None:
    before = processes()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    call("up")
    assert not set(before.values()) & set(processes().values())
    assert [item["metadata"]["name"] for item in kubectl.list("namespaces") if item["metadata"]["name"] == NAMESPACE] == []
    for pid in processes().values():
        os.kill(pid, signal.SIGKILL)
    call("down")
    assert leftovers() == []
    call("down")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("reached", ["node-1-containerd", "kube-apiserver", "node-2-kubelet"])
def test_an_interrupted_up_leaves_nothing(number: signal.Signals, reached: str) -> None:
    call("down")
    process = subprocess.Popen([FOLDER / "up"], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(f"{reached} started", (STATE / "pids" / reached).exists, timeout=120, every=0.01)
    process.send_signal(number)
    process.wait(timeout=60)
    if number is signal.SIGKILL:
        call("down")
    assert leftovers() == []
