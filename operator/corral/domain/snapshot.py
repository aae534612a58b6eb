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

from corral.domain.index import Index
from corral.domain.model import Demand, Device, DeviceKey, Model, Node, Pool, Replica
from corral.domain.ranks import on_node

NO_IDS: frozenset[str] = frozenset()
NO_DEMAND = Demand()
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
    index: Index = field(default_factory=Index)

    def pool_devices(self, pool: str) -> Sequence[DeviceKey]:
        return self.by_pool.get(pool, ())

    def replicas_of(self, model: str) -> list[Replica]:
        """Of one model, oldest first."""
        found = [self.replicas[each] for each in self.by_model.get(model, NO_IDS)]
        found.sort(key=lambda replica: (replica.created, replica.id))
        return found

    def on_node(self, node: str) -> list[DeviceKey]:
        """The node's devices."""
        found = self.nodes.get(node)
        return on_node(self.by_pool.get(found.pool, ()), node) if found is not None else []

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
    index: Index = field(default_factory=Index)

    def put_pool(self, pool: Pool) -> None:
        if self.pools.get(pool.name) != pool:
            self.pools[pool.name] = pool
            self.index.pool_changed()

    def remove_pool(self, name: str) -> None:
        if self.pools.pop(name, None) is not None:
            self.index.pool_changed()

    def put_node(self, node: Node) -> None:
        old = self.nodes.get(node.name)
        self.nodes[node.name] = node
        self.index.node_changed(self, old, node)

    def remove_node(self, name: str) -> None:
        old = self.nodes.pop(name, None)
        if old is not None:
            self.index.node_changed(self, old, None)

    def put_device(self, device: Device) -> None:
        old = self.devices.get(device.key)
        if old is not None:
            # Foreign use comes and goes: what a device had once, it can have again.
            device = replace(device, largest=max(device.largest, device.capacity, old.largest, old.capacity))
            if old == device:
                return
            if old.pool != device.pool:
                self.remove_device(device.key)
                old = None
        self.devices[device.key] = device
        if old is None:
            insort(self.by_pool.setdefault(device.pool, []), device.key)
        self.index.device_changed(self, old, device)

    def remove_device(self, key: DeviceKey) -> None:
        old = self.devices.pop(key, None)
        if old is not None:
            keys = self.by_pool[old.pool]
            del keys[bisect_left(keys, key)]
            self.index.device_changed(self, old, None)

    def put_model(self, model: Model) -> None:
        old = self.models.get(model.key)
        if old == model:
            return
        self.models[model.key] = model
        self.index.model_changed(self, model.key, old, model)

    def remove_model(self, key: str) -> None:
        old = self.models.pop(key, None)
        if old is not None:
            self.index.model_changed(self, key, old, None)

    def put_demand(self, model: str, demand: Demand) -> None:
        if demand == NO_DEMAND:
            if self.demand.pop(model, None) is None:
                return
        elif self.demand.get(model) == demand:
            return
        else:
            self.demand[model] = demand
        self.index.review(self, model)

    def put_replica(self, replica: Replica) -> None:
        old = self.replicas.get(replica.id)
        if old == replica:
            return
        if old is not None and old.model == replica.model and old.devices == replica.devices and _arenas(old) == _arenas(replica):
            self.replicas[replica.id] = replica
            for key in _arenas(replica):
                self._use(key, replica.uses(key) - old.uses(key))
        else:
            if old is not None:
                self._drop(old)
            self.replicas[replica.id] = replica
            _include(self.by_model, replica.model, replica.id)
            for node in {key.node for key in replica.devices}:
                _include(self.by_node, node, replica.id)
            for key in _arenas(replica):
                _include(self.by_device, key, replica.id)
                self._use(key, replica.uses(key))
        self.index.replica_changed(self, old, replica)

    def remove_replica(self, replica_id: str) -> None:
        old = self.replicas.get(replica_id)
        if old is not None:
            self._drop(old)
            self.index.replica_changed(self, old, None)

    def _drop(self, old: Replica) -> None:
        del self.replicas[old.id]
        _exclude(self.by_model, old.model, old.id)
        for node in {key.node for key in old.devices}:
            _exclude(self.by_node, node, old.id)
        for key in _arenas(old):
            _exclude(self.by_device, key, old.id)
            self._use(key, -old.uses(key))

    def _use(self, key: DeviceKey, change: int) -> None:
        left = self.used.get(key, 0) + change
        if left:
            self.used[key] = left
        else:
            self.used.pop(key, None)

    def snapshot(self) -> Snapshot:
        self.index.settle(self)
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
            index=self.index,
        )


def _arenas(replica: Replica) -> set[DeviceKey]:
    return {*replica.devices, *replica.committed, *replica.held}


def _include(index: dict[K, frozenset[str]], key: K, member: str) -> None:
    index[key] = index.get(key, NO_IDS) | {member}


def _exclude(index: dict[K, frozenset[str]], key: K, member: str) -> None:
    left = index[key] - {member}
    if left:
        index[key] = left
    else:
        del index[key]
