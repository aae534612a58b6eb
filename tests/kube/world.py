"""Small objects for the tests of this folder: a sink that remembers, a clock that is set by hand, requests with defaults."""

from __future__ import annotations

from typing import Any

from corral.domain.model import HOST_ID, DeviceKey, DeviceKind
from corral.kube.ports import EstimateRequest, ReplicaRequest

GI = 1 << 30
MI = 1 << 20


class RememberingSink:
    """Implements `Sink` by keeping what is current and what was said."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Any] = {}
        self.nodes: dict[str, tuple[Any, tuple[Any, ...]]] = {}
        self.pods: dict[str, Any] = {}
        self.said: list[tuple[Any, ...]] = []

    def put_model(self, obj):
        self.said.append(("put", obj["metadata"]["name"], obj["metadata"]["resourceVersion"]))

    def remove_model(self, namespace, name):
        self.said.append(("remove", namespace, name))

    def put_pool(self, obj):
        self.said.append(("pool", obj["metadata"]["name"]))

    def remove_pool(self, name):
        self.said.append(("no pool", name))

    def put_report(self, obj):
        self.said.append(("report", obj["metadata"]["name"]))

    def remove_report(self, namespace, name):
        self.said.append(("no report", namespace, name))

    def put_pod(self, pod):
        self.pods[pod.uid] = pod

    def remove_pod(self, namespace, name, uid):
        self.pods.pop(uid, None)

    def put_node(self, node, devices):
        self.nodes[node.name] = (node, tuple(devices))
        self.said.append(("node", node.name))

    def remove_node(self, name):
        self.nodes.pop(name, None)
        self.said.append(("no node", name))

    def synced(self, source):
        self.said.append(("synced", source))


class HandClock:
    def __init__(self) -> None:
        self.mono = 1000.0
        self.wall = 1_800_000_000.0

    def monotonic(self) -> float:
        return self.mono

    def time(self) -> float:
        return self.wall

    def pass_by(self, seconds: float) -> None:
        self.mono += seconds
        self.wall += seconds


def deployment(**spec: Any) -> dict[str, Any]:
    spec = {"model": {"source": "https://models.example/small.gguf"}} | spec
    return {
        "apiVersion": "corral.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "small", "namespace": "models", "uid": "md-1", "generation": 3},
        "spec": spec,
    }


def replica_request(obj: dict[str, Any] | None = None, **changes: Any) -> ReplicaRequest:
    given: dict[str, Any] = {
        "model_object": obj or deployment(),
        "model": "models/small",
        "namespace": "models",
        "name": "small-abc123-0",
        "revision": "abc123",
        "pool": "default",
        "devices": (DeviceKey("node-1", HOST_ID),),
        "device_kind": DeviceKind.HOST,
        "server_spec": {"name": "small", "namespace": "models"},
        "memory_request": 128 * MI,
        "memory_limit": 1 * GI,
        "owner_uid": "md-1",
        "cache": {"type": "EmptyDir", "size": "10Gi"},
    }
    return ReplicaRequest(**(given | changes))


def estimate_request(obj: dict[str, Any] | None = None, **changes: Any) -> EstimateRequest:
    given: dict[str, Any] = {
        "model_object": obj or deployment(),
        "model": "models/small",
        "namespace": "models",
        "name": "small",
        "server_spec": {"name": "small", "namespace": "models"},
        "owner_uid": "md-1",
        "pool": "default",
        "cache": {},
    }
    return EstimateRequest(**(given | changes))


def pool(name: str = "default", created: str = "2026-01-01T00:00:00Z", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": f"pool-{name}", "creationTimestamp": created, "resourceVersion": "1"}, "spec": spec}


def node(name: str = "node-1", *, memory: str = "16Gi", ready: str = "True", labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": labels or {}},
        "spec": spec,
        "status": {
            "allocatable": {"memory": memory, "pods": "110", "cpu": "2"},
            "conditions": [
                {"type": "MemoryPressure", "status": "False"},
                {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:10Z"},
            ],
        },
    }
