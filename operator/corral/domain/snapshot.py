"""Everything a decision may look at, and the indexes that make it quick.

`State` is kept up by one owner (the control loop, or the simulation): `put_*` and `remove_*` change it and its indexes in the time that one change
costs. `State.snapshot()` is what `decide` reads. Expectations are laid over the observed replicas by the owner before `put_replica`. Neither
decides anything.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from corral.domain.model import Demand, Device, DeviceKey, Model, Node, Pool, Replica

NO_IDS: frozenset[str] = frozenset()
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A consistent view. The mappings must not be changed; `by_device`, `by_node` and `by_model` hold ids of replicas."""

    pools: Mapping[str, Pool]
    nodes: Mapping[str, Node]
    devices: Mapping[DeviceKey, Device]
    models: Mapping[str, Model]
    replicas: Mapping[str, Replica]
    demand: Mapping[str, Demand]
    by_model: Mapping[str, frozenset[str]]
    by_device: Mapping[DeviceKey, frozenset[str]]
    used: Mapping[DeviceKey, int]
    by_node: Mapping[str, frozenset[str]] = field(default_factory=dict)
    by_pool: Mapping[str, Sequence[DeviceKey]] = field(default_factory=dict)

    def pool_devices(self, pool: str) -> Sequence[DeviceKey]:
        return self.by_pool.get(pool, ())

    def replicas_of(self, model: str) -> list[Replica]:
        """Of one model, oldest first."""
        found = [self.replicas[each] for each in self.by_model.get(model, NO_IDS)]
        found.sort(key=lambda replica: (replica.created, replica.id))
        return found

    def on_device(self, key: DeviceKey) -> list[Replica]:
        return [self.replicas[each] for each in sorted(self.by_device.get(key, NO_IDS))]


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
    by_node: dict[str, frozenset[str]] = field(default_factory=dict)
    by_pool: dict[str, list[DeviceKey]] = field(default_factory=dict)

    def put_pool(self, pool: Pool) -> None:
        self.pools[pool.name] = pool

    def remove_pool(self, name: str) -> None:
        self.pools.pop(name, None)

    def put_node(self, node: Node) -> None:
        self.nodes[node.name] = node

    def remove_node(self, name: str) -> None:
        self.nodes.pop(name, None)

    def put_device(self, device: Device) -> None:
        old = self.devices.get(device.key)
        if old is not None:
            # Foreign use comes and goes: what a device had once, it can have again.
            device = replace(device, largest=max(device.largest, device.capacity, old.largest))
            if old.pool != device.pool:
                self.remove_device(device.key)
                old = None
        self.devices[device.key] = device
        if old is None:
            insort(self.by_pool.setdefault(device.pool, []), device.key)

    def remove_device(self, key: DeviceKey) -> None:
        old = self.devices.pop(key, None)
        if old is not None:
            keys = self.by_pool[old.pool]
            del keys[bisect_left(keys, key)]

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
        _include(self.by_model, replica.model, replica.id)
        for node in {key.node for key in replica.devices}:
            _include(self.by_node, node, replica.id)
        for key in {*replica.devices, *replica.committed, *replica.held}:
            _include(self.by_device, key, replica.id)
            uses = replica.uses(key)
            if uses:
                self.used[key] = self.used.get(key, 0) + uses

    def remove_replica(self, replica_id: str) -> None:
        old = self.replicas.pop(replica_id, None)
        if old is None:
            return
        _exclude(self.by_model, old.model, replica_id)
        for node in {key.node for key in old.devices}:
            _exclude(self.by_node, node, replica_id)
        for key in {*old.devices, *old.committed, *old.held}:
            _exclude(self.by_device, key, replica_id)
            left = self.used.get(key, 0) - old.uses(key)
            if left:
                self.used[key] = left
            else:
                self.used.pop(key, None)

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
            by_node=self.by_node,
            by_pool=self.by_pool,
        )


def _include(index: dict[K, frozenset[str]], key: K, member: str) -> None:
    index[key] = index.get(key, NO_IDS) | {member}


def _exclude(index: dict[K, frozenset[str]], key: K, member: str) -> None:
    left = index[key] - {member}
    if left:
        index[key] = left
    else:
        del index[key]
