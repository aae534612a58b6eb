"""Putting Corral onto the cluster as a user would: images, namespaces, a volume for the cache, the chart. And a hub that serves the models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import yaml
from e2e.support.kubectl import Kubectl, until
from e2e.support.world import HUB, HUB_URL, MODELS, SYSTEM, World, namespace, pool
from tests.support import gguf_files, models

INGRESS_HOST, ROUTE_HOST = "corral.example", "route.corral.example"
SERVER_IMAGE, CORRAL_IMAGE = "localhost/corral-server:e2e", "localhost/corral:e2e"
MIB = 1024 * 1024
SIZE = 300 * MIB  # of a model's weights: two of them do not fit on one node
HUB_SCRIPT = Path(__file__).resolve().parents[1] / "hub" / "serve.py"


def images(root: Path, cluster: dict[str, str]) -> None:
    """Build what changed, and load what is new."""
    done = subprocess.run([root / "e2e" / "images" / "build"], check=True, stdout=subprocess.PIPE, text=True)
    archives = done.stdout.split()
    marks = {archive: f"{Path(archive).stat().st_mtime_ns}" for archive in archives}
    record = Path(cluster["CORRAL_E2E_STATE"]) / "loaded-images.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    fresh = [archive for archive in archives if known.get(archive) != marks[archive]]
    if fresh:
        subprocess.run([cluster["CORRAL_E2E_LOAD_IMAGE"], *fresh], check=True)
        record.write_text(json.dumps(marks))


def namespaces(kubectl: Kubectl) -> None:
    kubectl.apply(*(namespace(name) for name in (SYSTEM, MODELS, HUB)))


def volume(name: str, where: str, cluster: dict[str, str], owner: str, mode: str) -> list[dict[str, Any]]:
    """A local volume that both nodes have (here they share one disk), and the claim on it."""
    folder = Path(cluster["CORRAL_E2E_VOLUMES"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, 65532, 65532)
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": cluster["CORRAL_E2E_NODES"].split()}]}]
    size = {"storage": "20Gi"}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{where}-{name}"},
            "spec": {
                "capacity": size,
                "accessModes": [mode],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": cluster["CORRAL_E2E_STORAGE_CLASS"],
                "local": {"path": str(folder)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
                "claimRef": {"namespace": where, "name": owner},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": owner, "namespace": where},
            "spec": {
                "accessModes": [mode],
                "storageClassName": cluster["CORRAL_E2E_STORAGE_CLASS"],
                "volumeName": f"{where}-{name}",
                "resources": {"requests": size},
            },
        },
    ]


def cache_volume(kubectl: Kubectl, cluster: dict[str, str]) -> None:
    kubectl.apply(*volume("cache", MODELS, cluster, "model-cache", "ReadWriteMany"))


def hub(kubectl: Kubectl, cluster: dict[str, str]) -> dict[str, str]:
    """A hub in the cluster with every model the scenarios use; short names to sources."""
    folder = Path(cluster["CORRAL_E2E_VOLUMES"]) / "hub"
    files: dict[str, Path] = {}
    for name in ("alpaca", "badger", "camel"):
        files[name] = gguf_files.sentence_model(f"I am {name}.", size=SIZE, layers=4)
        files[f"{name}-for-ever"] = gguf_files.sentence_model(f"I am {name} and", size=SIZE, layers=4, loop=True)
    files["whale"] = gguf_files.sentence_model("I am whale.", size=1200 * MIB, layers=4)
    files["smollm2"] = models.smollm2()
    kubectl.apply(*volume("hub", HUB, cluster, "files", "ReadWriteMany"))
    sources = {}
    for name, path in files.items():
        target = folder / "org" / name / f"{name}.gguf"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.stat().st_size != path.stat().st_size:
            shutil.copyfile(path, target)
        sources[name] = f"{HUB_URL}/files/org/{name}/{name}.gguf"
    sources["smollm2"] = "hf://org/smollm2/smollm2.gguf"
    labels = {"app": "hub"}
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hub", "namespace": HUB}, "data": {"serve.py": HUB_SCRIPT.read_text()}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "hub", "namespace": HUB, "labels": labels},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "hub",
                    "image": SERVER_IMAGE,
                    "imagePullPolicy": "Never",
                    "command": ["python3", "/hub/serve.py", "--folder", "/files", "--port", "8000"],
                    "ports": [{"containerPort": 8000}],
                    "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
                    "securityContext": restricted,
                    "volumeMounts": [{"name": "hub", "mountPath": "/hub"}, {"name": "files", "mountPath": "/files"}],
                }
            ],
            "volumes": [{"name": "hub", "configMap": {"name": "hub"}}, {"name": "files", "persistentVolumeClaim": {"claimName": "files"}}],
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "hub", "namespace": HUB},
        "spec": {"selector": labels, "ports": [{"port": 8000}]},
    }
    kubectl.delete("pod", "hub", namespace=HUB)
    kubectl.apply(script, service, pod)
    kubectl.run("wait", "pod/hub", "-n", HUB, "--for=condition=Ready", "--timeout=60s", timeout=70)
    return sources


def chart(root: Path, kubectl: Kubectl, cluster: dict[str, str], capacity: str, margin: str) -> None:
    gateway_namespace, gateway = cluster["CORRAL_E2E_GATEWAY"].split("/")
    values = {
        "image": {
            "corral": {"repository": "localhost/corral", "tag": "e2e", "pullPolicy": "Never"},
            "server": {"repository": "localhost/corral-server", "tag": "e2e", "pullPolicy": "Never"},
        },
        "server": {"hfEndpoint": HUB_URL, "graceSeconds": 10},
        "gateway": {"graceSeconds": 20, "settleSeconds": 2},
        "ingress": {"enabled": True, "className": cluster["CORRAL_E2E_INGRESS_CLASS"], "hosts": [INGRESS_HOST]},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": gateway, "namespace": gateway_namespace}], "hostnames": [ROUTE_HOST]},
        "pool": {"spec": pool(capacity, margin)["spec"]},
    }
    helm = ["helm", "--kubeconfig", kubectl.kubeconfig, "upgrade", "--install", "corral", str(root / "charts" / "corral"), "-n", SYSTEM]
    subprocess.run([*helm, "--values", "-"], input=yaml.safe_dump(values), text=True, check=True, stdout=subprocess.DEVNULL)
    # The images' tag never changes: pods of a former run are replaced by hand.
    kubectl.run("rollout", "restart", "deployment", "-n", SYSTEM)
    for name in kubectl.run("get", "deployment", "-n", SYSTEM, "-o", "name").split():
        kubectl.run("rollout", "status", name, "-n", SYSTEM, "--timeout=120s", timeout=130)
    kubectl.apply(pool(capacity, margin))


def wait_for_gateway(world: World) -> None:
    def answers() -> bool:
        try:
            return httpx2.get(f"{world.gateway}/v1/models", headers={"Host": world.host}, timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    until("the gateway answers through the Ingress", answers, 60)


def uninstall(kubectl: Kubectl) -> None:
    helm = ["helm", "--kubeconfig", kubectl.kubeconfig, "uninstall", "corral", "-n", SYSTEM, "--wait", "--timeout", "90s"]
    subprocess.run(helm, check=True, stdout=subprocess.DEVNULL)
