"""Nodes with their devices, as the decision sees them: put together from Node objects, pools and what foreign pods take.

It owns the trimmed facts of each node and tells the sink of a node only when what it would say has changed. Until nodes, pools and foreign use
have all been listed it says nothing: a device that looks larger than it is would be given away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from corral.domain.model import Device, DeviceKind, Node, Taint
from corral.kube.client import NODES, KubeClient
from corral.kube.devices import GPU_TAINTS, Backends, NodeFacts
from corral.kube.foreign import GPU_RESOURCES, ForeignUse
from corral.kube.membership import Pools
from corral.kube.pods import seconds
from corral.kube.ports import Sink
from corral.kube.quantity import whole
from corral.kube.watch import Object, Reflector, Target


def trim(obj: Object) -> Object:
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    allocatable = status.get("allocatable") or {}
    return {
        "metadata": {"name": metadata["name"], "uid": metadata.get("uid", ""), "labels": metadata.get("labels") or {}},
        "spec": {"taints": spec.get("taints") or [], "unschedulable": bool(spec.get("unschedulable"))},
        "status": {
            "allocatable": {key: value for key, value in allocatable.items() if key in {"memory", "pods"} or key.startswith(GPU_RESOURCES)},
            "conditions": [c for c in status.get("conditions") or [] if c.get("type") == "Ready"],
        },
    }


def facts(obj: Mapping[str, Any]) -> NodeFacts:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    allocatable = status.get("allocatable") or {}
    ready: Mapping[str, Any] = next((c for c in status.get("conditions") or [] if c.get("type") == "Ready"), {})
    return NodeFacts(
        name=obj["metadata"]["name"],
        labels=obj["metadata"].get("labels") or {},
        taints=tuple((t.get("key", ""), t.get("value") or "", t.get("effect", "")) for t in spec.get("taints") or []),
        unschedulable=bool(spec.get("unschedulable")),
        ready=ready.get("status") == "True",
        ready_since=seconds(ready.get("lastTransitionTime")),
        memory=whole(allocatable.get("memory")),
        pods=whole(allocatable.get("pods")),
        gpus={key: whole(value) for key, value in allocatable.items() if key.startswith(GPU_RESOURCES)},
    )


class NodeBook:
    """Feeds the sink with nodes. Pools are watched by somebody else, who says `pools_synced` after the first list."""

    def __init__(self, client: KubeClient, sink: Sink, backends: Backends, pools: Pools, *, more: Collection[str] = ()) -> None:
        """`more`: further sources of what backends know, of whose first list `arrived` is told."""
        self._sink = sink
        self._backends = backends
        self._facts: dict[str, NodeFacts] = {}
        self._pools = pools
        pools.changed = self._tell_all
        self._told: dict[str, tuple[Node, tuple[Device, ...]]] = {}
        self._missing = {"nodes", "pools", "foreign", *more}
        self.foreign = ForeignUse(client, self._tell, lambda: self._arrived("foreign"))
        self.reflector = Reflector(client, NODES.path(), Target(self._put, self._remove, lambda: self._arrived("nodes")), trim=trim)

    def pools_synced(self) -> None:
        self._arrived("pools")

    def arrived(self, source: str) -> None:
        self._arrived(source)

    def look_again(self, nodes: Iterable[str]) -> None:
        """What a backend knows of these nodes may have changed."""
        for name in nodes:
            self._tell(name)

    def _put(self, obj: Object) -> None:
        node = facts(obj)
        if self._facts.get(node.name) != node:
            self._facts[node.name] = node
            self._tell(node.name)

    def _remove(self, _namespace: str, name: str, _uid: str) -> None:
        self._facts.pop(name, None)
        if self._told.pop(name, None) is not None:
            self._sink.remove_node(name)

    def _arrived(self, source: str) -> None:
        self._missing.discard(source)
        if not self._missing:
            self._tell_all()
            self._sink.synced("nodes")

    def _tell_all(self) -> None:
        for name in self._facts:
            self._tell(name)

    def _tell(self, name: str) -> None:
        found = self._facts.get(name)
        if found is None or self._missing:
            return
        pool, overlapping = self._pools.of(found.labels)
        use = self.foreign.of(name)
        devices = tuple(self._backends.inventory(found, pool, use)) if pool else ()
        tolerated = GPU_TAINTS if any(device.kind is DeviceKind.GPU for device in devices) else ()
        node = Node(
            name=name,
            pool=pool.metadata.name if pool else "",
            labels=found.labels,
            taints=tuple(Taint(key, value, effect) for key, value, effect in found.taints if not (key in tolerated and effect == "NoSchedule")),
            ready=found.ready,
            schedulable=not found.unschedulable,
            not_ready_since=None if found.ready else found.ready_since,
            pod_slots=max(0, found.pods - use.pods),
            overlapping=overlapping,
        )
        told = (node, devices)
        if self._told.get(name) != told:
            self._told[name] = told
            self._sink.put_node(*told)
