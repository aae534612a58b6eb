"""The store: what the world, the supervisors and our own orders say, kept as records.

`put_*` and `remove_*` (the Sink) are synchronous and O(1): they keep the record, mark what it touches and wake the loop; `projection` makes the
decision's State of it, when the loop asks. Nothing here decides, and nothing does I/O.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from corral.api import GatewayReport, InvalidObjectError, ModelPool
from corral.control.demand import DemandBook
from corral.control.observation import SupervisorStatus
from corral.control.outcomes import Outcomes
from corral.control.packing import Packed
from corral.control.pods import Order, Pod
from corral.control.projection import Projection
from corral.control.records import Records
from corral.control.settings import ControlSettings
from corral.control.translate import key_of, read_deployment
from corral.domain.model import Device, Node
from corral.kube.ports import PodRecord

log = logging.getLogger(__name__)

SOURCES = frozenset({"models", "pools", "reports", "pods", "nodes"})


class Store:
    """Implements `Sink`."""

    def __init__(self, settings: ControlSettings, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.wake = asyncio.Event()
        self.missing = set(SOURCES)  # what has not synced yet
        self.ready = asyncio.Event()
        self.records = records = Records(DemandBook(settings.report_lifetime))
        self.projection = projection = Projection(records, settings)
        self.outcomes = Outcomes(projection, settings, clock)
        self.dirty, self.demand = records.dirty, records.demand
        self.deployments, self.pools, self.pool_objects, self.pods = records.deployments, records.pools, records.pool_objects, records.pods
        self.state, self.facts, self.names, self.retries = projection.state, projection.facts, projection.names, projection.retries
        self._devices: dict[str, set[Any]] = {}
        self._cached: dict[str, frozenset[str]] = {}  # the files of each node, by the last word of a supervisor there
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self.pods_changed: Callable[[str], None] = lambda _key: None
        """Called for a pod that came, went, or can be reached elsewhere."""

    # --- the sink

    def put_model(self, obj: Mapping[str, Any]) -> None:
        key = key_of(obj)
        old = self.deployments.get(key)
        if old is not None and old.packed.same_but_status(packed := Packed.of(obj)):
            # Only the status moved, and the status is ours: kept for comparison, nobody is woken.
            self.deployments[key] = replace(old, packed=packed)
            return
        self.deployments[key] = read_deployment(obj)
        self.dirty.models.add(key)
        self.wake.set()

    def remove_model(self, namespace: str, name: str) -> None:
        key = f"{namespace}/{name}"
        if self.deployments.pop(key, None) is not None:
            self.dirty.models.add(key)
            self.wake.set()

    def put_pool(self, obj: Mapping[str, Any]) -> None:
        try:
            pool = ModelPool.parse(obj)
        except InvalidObjectError as error:
            log.warning("%s", error)
            return
        name = pool.metadata.name
        old = self.pools.get(name)
        self.pools[name], self.pool_objects[name] = pool, obj
        if old is None or (old.spec, old.metadata.generation) != (pool.spec, pool.metadata.generation):
            self._pool_changed(name, first=not self.pools.keys() - {name})

    def remove_pool(self, name: str) -> None:
        self.pool_objects.pop(name, None)
        if self.pools.pop(name, None) is not None:
            self._pool_changed(name, first=not self.pools)

    def _pool_changed(self, name: str, *, first: bool) -> None:
        # The first pool, or the loss of the last, changes what every other name means.
        self.dirty.models |= set(self.deployments) if first else self.projection.models_of_pool(name)
        self.dirty.pools.add(name)
        self.wake.set()

    def put_report(self, obj: Mapping[str, Any]) -> None:
        try:
            report = GatewayReport.parse(obj)
        except InvalidObjectError as error:
            log.warning("%s", error)
            return
        touched = self.demand.put(report, self._clock())
        if touched:
            self.dirty.demand |= touched
            self.wake.set()

    def remove_report(self, namespace: str, name: str) -> None:
        touched = self.demand.remove(f"{namespace}/{name}")
        if touched:
            self.dirty.demand |= touched
            self.wake.set()

    def put_pod(self, pod: PodRecord) -> None:
        key = f"{pod.namespace}/{pod.name}"
        old = self.pods.get(key)
        if old is None:
            self.pods[key] = fresh = Pod(record=pod, planned=None if pod.running else pod.created or None)
            commitment = fresh.commitment
            fresh.loaded_at = commitment.at if commitment is not None and commitment.at else None
        elif old.record.uid != pod.uid:
            if old.record.uid and _older(pod, old.record):
                return  # the watch still tells of the one before
            ours = not old.record.uid  # the one that we have just made
            self.pods[key] = Pod(record=pod, since=self._clock(), order=old.order if ours else None, planned=old.planned if ours else None)
        elif _older(pod, old.record):
            return  # our own write's answer was newer
        else:
            old.record, old.seen = pod, True
        self.pods[key].note_running(self._clock())
        self.touch(key)
        self.pods_changed(key)

    def remove_pod(self, namespace: str, name: str, uid: str) -> None:
        key = f"{namespace}/{name}"
        pod = self.pods.get(key)
        if pod is None or pod.record.uid != uid:
            return
        del self.pods[key]
        self.dirty.pods.add(key)
        self.dirty.status.add(pod.record.model)
        self._tell(key)
        self.pods_changed(key)
        self.wake.set()

    def put_node(self, node: Node, devices: Sequence[Device]) -> None:
        for key in self._devices.get(node.name, set()) - {device.key for device in devices}:
            self.state.remove_device(key)
        self._devices[node.name] = {device.key for device in devices}
        self._note_overlaps(self.state.nodes.get(node.name), node)
        self.state.put_node(self._with_files(node))
        for device in devices:
            self.state.put_device(device)
            self.dirty.pools.add(device.pool)
        self.wake.set()

    def remove_node(self, name: str) -> None:
        for key in self._devices.pop(name, set()):
            self.state.remove_device(key)
        node = self.state.nodes.get(name)
        if node is not None:
            self.dirty.pools.add(node.pool)
            self._note_overlaps(node, None)
        self.state.remove_node(name)
        self._cached.pop(name, None)
        self.wake.set()

    def _with_files(self, node: Node) -> Node:
        told = self._cached.get(node.name)
        return node if told is None or told == node.cached else replace(node, cached=told)

    def _note_files(self, name: str, before: SupervisorStatus | None, status: SupervisorStatus) -> None:
        """Supervisors on one node look into the same cache; whoever told of a change last is right."""
        if status.cached != (before.cached if before is not None else ()):
            self._cached[name] = frozenset(status.cached)
            node = self.state.nodes.get(name)
            if node is not None:
                self.state.put_node(self._with_files(node))

    def _note_overlaps(self, old: Node | None, new: Node | None) -> None:
        overlaps = self.records.overlaps
        for pool in old.overlapping if old is not None else ():
            overlaps[pool].pop(old.name, None)  # type: ignore[union-attr]
            self.dirty.pools.add(pool)
        for pool in new.overlapping if new is not None else ():
            overlaps.setdefault(pool, {})[new.name] = new.pool  # type: ignore[union-attr]
            self.dirty.pools.add(pool)

    def synced(self, source: str) -> None:
        if source not in SOURCES:
            raise ValueError(f"there is no source {source!r}; the sources are {', '.join(sorted(SOURCES))}")
        self.missing.discard(source)
        if not self.missing:
            self.ready.set()
            self.wake.set()

    # --- what supervisors say

    def put_supervisor(self, key: str, uid: str, status: SupervisorStatus) -> None:
        pod = self.pods.get(key)
        if pod is None or pod.record.uid != uid:
            return
        before, silent = pod.status, not pod.reachable
        pod.status, pod.reachable = status, True
        if before != status:
            self.outcomes.note(pod, before)
            self._note_files(pod.record.node, before, status)
        if before != status or silent:  # that it answers again is news, even when it says what it said before
            self.touch(key)

    def lost_supervisor(self, key: str, uid: str) -> None:
        """It does not answer: what it committed still counts."""
        pod = self.pods.get(key)
        if pod is not None and pod.record.uid == uid and pod.reachable:
            pod.reachable = False
            self.touch(key)

    def fail(self, model: str, node: str, reason: str, message: str, *, retry: bool, now: float) -> None:
        """Remember a failure that an action came to."""
        self.outcomes.fail(model, node, reason, message, retry=retry, now=now)
        self.wake.set()

    # --- orders and expectations

    def order(self, key: str, order: Order | None) -> None:
        pod = self.pods.get(key)
        if pod is not None:
            pod.order = order
            self.touch(key)

    def plan_pod(self, record: PodRecord, order: Order) -> None:
        """A pod that is being created and nobody has seen yet."""
        self.pods[f"{record.namespace}/{record.name}"] = Pod(record=record, seen=False, order=order, since=self._clock(), planned=self._clock())
        self.touch(f"{record.namespace}/{record.name}")

    def forget_planned(self, key: str) -> None:
        pod = self.pods.get(key)
        if pod is not None and not pod.record.uid:
            del self.pods[key]
            self.dirty.pods.add(key)
            self.dirty.status.add(pod.record.model)
            self.wake.set()

    def expect_gone(self, key: str, uid: str, until: float) -> None:
        """Its deletion was ordered; it is believed to be going until then."""
        pod = self.pods.get(key)
        if pod is not None and pod.record.uid == uid:
            pod.delete_ordered = self.records.going[key] = until
            self.touch(key)

    def touch(self, key: str) -> None:
        """Something about this pod changed: the loop looks, and so does whoever waits for it."""
        self.dirty.pods.add(key)
        self._tell(key)
        self.wake.set()

    def touch_model(self, key: str) -> None:
        self.dirty.models.add(key)
        self.wake.set()

    def everything(self) -> list[str]:
        """The keys of all models that there are, or of which something is there."""
        return list(self.deployments.keys() | self.state.models.keys() | self.state.by_model.keys())

    def touch_some(self, keys: list[str], *, pools: bool) -> None:
        """A slice of everything; a model's pods come along with it."""
        self.dirty.models |= set(keys)
        for key in keys:
            self.dirty.pods |= self.state.by_model.get(key, frozenset())
        if pools:
            self.dirty.pools |= self.pools.keys()

    def touch_all(self) -> None:
        """Only at the start; from then on everything comes round a slice at a time."""
        self.dirty.models |= self.deployments.keys() | self.state.models.keys()
        self.dirty.pods |= self.pods.keys()
        self.dirty.pools |= self.pools.keys()
        self.wake.set()

    async def until(self, key: str, holds: Callable[[Pod | None], bool], within: float) -> bool:
        """Wait until `holds` of this pod (None: it is gone); False when the time ran out."""
        event = asyncio.Event()
        watchers = self._watchers.setdefault(key, set())
        watchers.add(event)
        try:
            async with asyncio.timeout(within):
                while not holds(self.pods.get(key)):
                    event.clear()
                    await event.wait()
        except TimeoutError:
            return False
        finally:
            watchers.discard(event)
            if not watchers and self._watchers.get(key) is watchers:
                del self._watchers[key]
        return True

    def _tell(self, key: str) -> None:
        for event in self._watchers.get(key, ()):
            event.set()

    def take_dirty_statuses(self) -> set[str]:
        taken, self.dirty.status = self.dirty.status, set()
        return taken

    def take_dirty_pools(self) -> set[str]:
        taken, self.dirty.pools = self.dirty.pools, set()
        return taken & self.pools.keys()


def _older(new: PodRecord, old: PodRecord) -> bool:
    """Resource versions are numbers that grow wherever this runs; where they are not, the newest to come counts."""
    if not (new.resource_version.isdigit() and old.resource_version.isdigit()):
        return False
    return int(new.resource_version) < int(old.resource_version)
