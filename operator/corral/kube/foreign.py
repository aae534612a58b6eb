"""What pods that are not Corral's take from each node: the second, trimmed watch of all scheduled pods.

It owns a few numbers per pod and their sums per node. Corral's own pods are left out by the selector, finished ones by the API server. It must
never know what the numbers are used for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from corral.kube.client import PODS, KubeClient
from corral.kube.pods import MANAGED_BY
from corral.kube.quantity import memory_of, whole
from corral.kube.watch import Object, Reflector, Target

FOREIGN_LABELS = f"{MANAGED_BY}!=corral"
SCHEDULED_FIELDS = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"


@dataclass(frozen=True, slots=True)
class Use:
    """Of one node, by foreign pods."""

    memory: int = 0
    pods: int = 0
    gpus: int = 0  # by extended resource; which ones is not to be seen


GPU_RESOURCES = ("nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-")


def gpu_requests(spec: Mapping[str, Any]) -> int:
    """GPUs and parts of GPUs that a pod asks a device plugin for."""
    found = 0
    for kind in ("containers", "initContainers"):
        for container in spec.get(kind) or []:
            limits = (container.get("resources") or {}).get("limits") or {}
            found += sum(whole(count) for name, count in limits.items() if name.startswith(GPU_RESOURCES))
    return found


def memory_request(spec: Mapping[str, Any], status: Mapping[str, Any] | None = None) -> int:
    """What the scheduler and the kubelet count for a pod: the larger of its containers together (with sidecars) and of each init container with
    the sidecars started before it; or what the pod says for itself; and its overhead. A resize that is not granted yet counts at its larger side."""
    allocated = {
        item.get("name"): whole((item.get("allocatedResources") or {}).get("memory"))
        for kind in ("containerStatuses", "initContainerStatuses")
        for item in (status or {}).get(kind) or []
    }

    def of(container: Mapping[str, Any]) -> int:
        return max(memory_of(container.get("resources")), allocated.get(container.get("name"), 0))

    sidecars, init = 0, 0
    for container in spec.get("initContainers") or []:
        if container.get("restartPolicy") == "Always":
            sidecars += of(container)
            init = max(init, sidecars)
        else:
            init = max(init, sidecars + of(container))
    total = max(sidecars + sum(of(container) for container in spec.get("containers") or []), init)
    own = memory_of(spec.get("resources"))
    return (own or total) + whole((spec.get("overhead") or {}).get("memory"))


def trim(obj: Object) -> Object:
    spec = obj.get("spec") or {}
    metadata = obj["metadata"]
    return {
        "metadata": {key: metadata.get(key, "") for key in ("name", "namespace", "uid")},
        "node": spec.get("nodeName", ""),
        "memory": memory_request(spec, obj.get("status")),
        "gpus": gpu_requests(spec),
    }


class ForeignUse:
    """`of(node)`; `changed(node)` is called when it moved, once the first list is in."""

    def __init__(self, client: KubeClient, changed: Callable[[str], None], synced: Callable[[], None]) -> None:
        self._changed = changed
        self._synced = False
        self._told = synced
        self._pods: dict[tuple[str, str], tuple[str, int, int]] = {}
        self._uses: dict[str, Use] = {}
        self.reflector = Reflector(
            client, PODS.path(), Target(self.put, self.remove, self._first_list), labels=FOREIGN_LABELS, fields=SCHEDULED_FIELDS, trim=trim
        )

    def of(self, node: str) -> Use:
        return self._uses.get(node, Use())

    def put(self, obj: Mapping[str, Any]) -> None:
        key = (obj["metadata"]["namespace"], obj["metadata"]["name"])
        new = (str(obj["node"]), int(obj["memory"]), int(obj["gpus"]))
        old = self._pods.get(key)
        if old == new:
            return
        if old is not None:
            self._add(old[0], -old[1], -1, -old[2])
        self._pods[key] = new
        self._add(new[0], new[1], 1, new[2])
        for node in {new[0], old[0] if old else new[0]}:
            self._tell(node)

    def remove(self, namespace: str, name: str, _uid: str) -> None:
        old = self._pods.pop((namespace, name), None)
        if old is not None:
            self._add(old[0], -old[1], -1, -old[2])
            self._tell(old[0])

    def _add(self, node: str, memory: int, pods: int, gpus: int) -> None:
        use = self.of(node)
        self._uses[node] = Use(use.memory + memory, use.pods + pods, use.gpus + gpus)
        if not self._uses[node].pods:
            del self._uses[node]

    def _tell(self, node: str) -> None:
        if self._synced:
            self._changed(node)

    def _first_list(self) -> None:
        self._synced = True
        self._told()
