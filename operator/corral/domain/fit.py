"""Which devices a model may use at all, and whether it could ever fit. Free bytes and victims are the business of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from corral.domain import reasons
from corral.domain.footprint import need_on, split
from corral.domain.model import Device, DeviceKey, DeviceKind, Model, Node, Pool, Taint, Toleration

if TYPE_CHECKING:
    from corral.domain.snapshot import Snapshot, State


def tolerates(tolerations: Iterable[Toleration], taint: Taint) -> bool:
    for toleration in tolerations:
        if toleration.effect and toleration.effect != taint.effect:
            continue
        if toleration.key and toleration.key != taint.key:
            continue
        if not toleration.key and toleration.operator != "Exists":
            continue
        if toleration.operator == "Exists" or toleration.value == taint.value:
            return True
    return False


def selected(model: Model, node: Node) -> bool:
    """The node is of the model's pool and carries the labels that it asks for."""
    return node.pool == model.pool and (not model.node_selector or all(node.labels.get(name) == value for name, value in model.node_selector.items()))


def node_closed(model: Model, node: Node | None) -> str:
    """Why nothing new of this model goes to this node now; empty when it may."""
    if node is None:
        return reasons.NODE_LOST
    if not node.ready:
        return reasons.NOT_READY
    if not node.schedulable:
        return reasons.CORDONED
    if node.taints and any(taint.effect != "PreferNoSchedule" and not tolerates(model.tolerations, taint) for taint in node.taints):
        return reasons.TAINTED
    return ""


def device_closed(device: Device | None) -> str:
    if device is None:
        return reasons.DEVICE_LOST
    if device.closed:
        return device.closed
    if device.no_execute:
        return reasons.TAINTED
    if device.vanished_since is not None:
        return reasons.VANISHED
    return ""


def candidates(snapshot: Snapshot, model: Model) -> Iterator[tuple[Node, Device]]:
    """Every device that the model's pool and selector name, open or not, in the order of their keys."""
    for key in snapshot.pool_devices(model.pool):
        device = snapshot.devices[key]
        node = snapshot.nodes.get(key.node)
        if node is not None and selected(model, node):
            yield node, device


def fits_alone(snapshot: Snapshot | State, model: Model) -> bool:
    """With nothing else anywhere, judged by the largest capacity that each device was seen with."""
    footprint = model.footprint
    if footprint is None:
        return True
    least = min(need_on(footprint, DeviceKind.HOST), need_on(footprint, DeviceKind.GPU))
    rooms: dict[str, list[int]] = {}
    for key in snapshot.index.pool(model.pool).usable.largest():
        device, node = snapshot.devices[key], snapshot.nodes.get(key.node)
        usable = max(device.capacity, device.largest) - device.margin
        if usable < least and model.max_devices < 2:
            return False
        if node is None or not selected(model, node):
            continue
        if need_on(footprint, device.kind) <= usable:
            return True
        if device.kind is DeviceKind.GPU:
            there = rooms.setdefault(node.name, [])  # the largest of each node come first
            there.append(usable)
            if 2 <= len(there) <= model.max_devices and split(footprint, there) is not None:
                return True
    return False


def refused_by_pool(model: Model, pools: Mapping[str, Pool]) -> tuple[str, str] | None:
    """The reason and message when the pool does not exist or its rules exclude the model."""
    pool = pools.get(model.pool)
    if pool is None:
        known = ", ".join(sorted(pools)) or "none"
        return reasons.POOL_NOT_FOUND, f"spec.pool: there is no ModelPool {model.pool!r}; there are: {known}."
    if "*" not in pool.allowed_namespaces and model.namespace not in pool.allowed_namespaces:
        return (
            reasons.POOL_NOT_ALLOWED,
            f"spec.pool: pool {pool.name} does not allow namespace {model.namespace!r}; it allows: {', '.join(pool.allowed_namespaces)}.",
        )
    if model.priority > pool.max_priority:
        return reasons.POOL_NOT_ALLOWED, f"spec.priority: {model.priority} is above pool {pool.name}'s maxPriority {pool.max_priority}."
    if model.pinned and not pool.pinned_allowed:
        return reasons.POOL_NOT_ALLOWED, f"spec.pinned: pool {pool.name} allows no pinned models."
    return None


def closed_for(snapshot: Snapshot, model: Model, keys: Iterable[DeviceKey]) -> str:
    """The first reason why none of these devices takes the model now."""
    for key in keys:
        reason = node_closed(model, snapshot.nodes.get(key.node)) or device_closed(snapshot.devices.get(key))
        if reason:
            return reason
    return ""
