"""Everything a decision may look at, and the indexes that make it quick.

`State` is kept up by one owner (the control loop, or the simulation): `put_*` and `remove_*` change it and its indexes in the time that one change
costs. `State.snapshot()` is what `decide` reads. Expectations are laid over the observed replicas by the owner before `put_replica`. Neither
decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from corral.domain.model import Demand, Device, DeviceKey, Model, Node, Pool, Replica


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A consistent view. The mappings must not be changed; `by_device` and `by_model` hold ids of replicas."""

    pools: Mapping[str, Pool]
    nodes: Mapping[str, Node]
    devices: Mapping[DeviceKey, Device]
    models: Mapping[str, Model]
    replicas: Mapping[str, Replica]
    demand: Mapping[str, Demand]
    by_model: Mapping[str, frozenset[str]]
    by_device: Mapping[DeviceKey, frozenset[str]]
    used: Mapping[DeviceKey, int]


@dataclass(slots=True)
class State:
    """The mutable side of a snapshot; see the module."""

    pools: dict[str, Pool] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    devices: dict[DeviceKey, Device] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    demand: dict[str, Demand] = field(default_factory=dict)
    by_model: dict[str, frozenset[str]] = field(default_factory=dict)
    by_device: dict[DeviceKey, frozenset[str]] = field(default_factory=dict)
    used: dict[DeviceKey, int] = field(default_factory=dict)

    def put_pool(self, pool: Pool) -> None:
        self.pools[pool.name] = pool

    def remove_pool(self, name: str) -> None:
        self.pools.pop(name, None)

    def put_node(self, node: Node) -> None:
        self.nodes[node.name] = node

    def remove_node(self, name: str) -> None:
        self.nodes.pop(name, None)

    def put_device(self, device: Device) -> None:
        self.devices[device.key] = device

    def remove_device(self, key: DeviceKey) -> None:
        self.devices.pop(key, None)

    def put_model(self, model: Model) -> None:
        self.models[model.key] = model

    def remove_model(self, key: str) -> None:
        self.models.pop(key, None)

    def put_demand(self, model: str, demand: Demand) -> None:
        if demand == Demand():
            self.demand.pop(model, None)
        else:
            self.demand[model] = demand

    def put_replica(self, replica: Replica) -> None:
        self.remove_replica(replica.id)
        self.replicas[replica.id] = replica
        self.by_model[replica.model] = self.by_model.get(replica.model, frozenset()) | {replica.id}
        for key in {*replica.devices, *replica.committed, *replica.held}:
            self.by_device[key] = self.by_device.get(key, frozenset()) | {replica.id}
            self.used[key] = self.used.get(key, 0) + replica.uses(key)

    def remove_replica(self, replica_id: str) -> None:
        old = self.replicas.pop(replica_id, None)
        if old is None:
            return
        self.by_model[old.model] = self.by_model[old.model] - {replica_id}
        if not self.by_model[old.model]:
            del self.by_model[old.model]
        for key in {*old.devices, *old.committed, *old.held}:
            self.by_device[key] = self.by_device[key] - {replica_id}
            if not self.by_device[key]:
                del self.by_device[key]
            self.used[key] -= old.uses(key)
            if not self.used[key]:
                del self.used[key]

    def snapshot(self) -> Snapshot:
        return Snapshot(
            pools=self.pools,
            nodes=self.nodes,
            devices=self.devices,
            models=self.models,
            replicas=self.replicas,
            demand=self.demand,
            by_model=self.by_model,
            by_device=self.by_device,
            used=self.used,
        )
