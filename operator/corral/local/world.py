"""What there is on this machine, handed to the control loop and to the gateway: objects, pods, and one node.

On one machine all models share one pool and one node, whatever a manifest says of clusters: `spec.pool` and `spec.placement.nodeSelector` are
read as that pool and that node. It must never change an object of the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from corral.api.modelpool import ModelPool
from corral.domain.model import Device
from corral.gateway.directory import MemoryDirectory
from corral.kube.ports import PodRecord, Sink
from corral.local.devices import Inventory, node_and_devices
from corral.local.manifests import Key
from corral.local.pods import LocalPods
from corral.local.registry import Registry
from corral.views import model_view, replica_view

SOURCES = ("models", "pools", "reports", "pods", "nodes")


class World:
    def __init__(
        self,
        registry: Registry,
        pods: LocalPods,
        sink: Sink,
        directory: MemoryDirectory,
        *,
        inventory: Inventory,
        named: bool,
        say: Callable[[str, str], None],
    ) -> None:
        self._registry = registry
        self._pods = pods
        self._sink = sink
        self._directory = directory
        self._inventory = inventory
        self._named = named
        self._say = say
        self._said: set[str] = set()
        self._pool: Mapping[str, Any] | None = None
        self._uids: dict[Key, str] = {}
        self.devices: list[Device] = []
        self.how = inventory.how
        """Where the devices' sizes come from, for people."""

    def start(self) -> None:
        """Hand in what the registry holds, and every change from now on. The folder has been scanned once."""
        self._registry.subscribe(self._object)
        self._pods.subscribe(self._pod)
        self._choose_pool()
        for kind in ("Secret", "ModelDeployment"):
            for obj in list(self._registry.of_kind(kind)):
                metadata = obj["metadata"]
                self._object(Key(kind, metadata.get("namespace", ""), metadata["name"]), obj)
        for source in SOURCES:
            self._sink.synced(source)
        self._directory.synced = True

    # --- objects

    def _object(self, key: Key, obj: Mapping[str, Any] | None) -> None:
        if key.kind == "Secret":
            self._pods.put_secret(key.namespace, key.name, obj["values"] if obj else None)
        elif key.kind == "ModelPool":
            self._choose_pool()
        elif obj is None:
            self._sink.remove_model(key.namespace, key.name)
            self._directory.remove_model(f"{key.namespace}/{key.name}")
            self._pods.collect(self._uids.pop(key, ""))
        else:
            self._uids[key] = obj["metadata"]["uid"]
            local = self._as_local(key, obj)
            self._sink.put_model(local)
            self._directory.put_model(model_view(local, self._pool))

    def _as_local(self, key: Key, obj: Mapping[str, Any]) -> Mapping[str, Any]:
        pool = self._pool["metadata"]["name"] if self._pool else "default"
        spec = dict(obj["spec"])
        if spec.get("pool", "default") != pool:
            self._note(f"{key}: spec.pool {spec.get('pool', 'default')} is read as {pool}, the one pool of this machine")
            spec["pool"] = pool
        if (spec.get("placement") or {}).get("nodeSelector"):
            self._note(f"{key}: spec.placement.nodeSelector is passed over: there is one node here")
            spec["placement"] = {**spec["placement"], "nodeSelector": {}}
        return {**obj, "spec": {**spec, "pool": pool}}

    def _note(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say("note", text)

    # --- the pool and its node

    def _choose_pool(self) -> None:
        pools = {obj["metadata"]["name"]: obj for obj in self._registry.of_kind("ModelPool")}
        name = "default" if "default" in pools or not pools else min(pools)
        chosen = pools.get(name)
        before, self._pool = self._pool, chosen
        if before is not None and (chosen is None or before["metadata"]["name"] != name):
            self._sink.remove_pool(before["metadata"]["name"])
        if chosen is None:
            return
        if len(pools) > 1:
            self._note(f"of the pools {', '.join(sorted(pools))} this machine belongs to {name}: it has one node, and a node belongs to one pool")
        self._sink.put_pool(chosen)
        if before is not None and (before["metadata"]["name"], before["spec"]) == (name, chosen["spec"]):
            return
        parsed = ModelPool.parse(chosen)
        node, self.devices = node_and_devices(self._inventory, parsed, self._named)
        limited = not self._named and parsed.spec.devices.host_memory.capacity is not None
        self.how = f"hostMemory.capacity of pool {name}" if limited else self._inventory.how
        self._sink.put_node(node, self.devices)
        for obj in list(self._registry.of_kind("ModelDeployment")) if before is not None else []:
            self._object(Key("ModelDeployment", obj["metadata"]["namespace"], obj["metadata"]["name"]), obj)

    # --- pods

    def _pod(self, record: PodRecord, gone: bool) -> None:
        if gone:
            self._sink.remove_pod(record.namespace, record.name, record.uid)
            self._directory.remove_replica(record.uid)
            return
        self._sink.put_pod(record)
        if record.host:
            self._directory.put_replica(replica_view(record))
