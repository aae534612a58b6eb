"""The store: raw records of the world in, the decision's State out.

`put_*` and `remove_*` (the Sink) are synchronous and O(1): they keep the record, mark what it touches and wake the loop. `refresh` translates what
was marked, when the loop asks; the loop is the only one who calls it, so State has one owner. Nothing here decides, and nothing does I/O.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from corral.api import DEFAULT_POOL, GatewayReport, InvalidObjectError, ModelPool, effective
from corral.api.mdstatus import ModelDeploymentStatus
from corral.control.demand import DemandBook
from corral.control.facts import MODEL_WIDE, Facts, LoadTimes
from corral.control.naming import Names
from corral.control.observation import SupervisorStatus
from corral.control.pods import Order, Pod, loaded_for, replica_of, state_of
from corral.control.settings import ControlSettings
from corral.control.translate import (
    Deployment,
    Unreadable,
    blocked_model,
    created_of,
    key_of,
    model_of,
    pool_of,
    read_deployment,
    refused_by_pool,
    revision_of,
)
from corral.domain import reasons
from corral.domain.model import Blocked, Demand, Device, DeviceKey, Node, ReplicaState
from corral.domain.snapshot import State
from corral.kube.ports import PodRecord

log = logging.getLogger(__name__)

SOURCES = frozenset({"models", "pools", "reports", "pods", "nodes"})


@dataclass(slots=True)
class Dirty:
    """What changed since the last refresh, by key."""

    models: set[str] = field(default_factory=set)
    pods: set[str] = field(default_factory=set)
    demand: set[str] = field(default_factory=set)
    status: set[str] = field(default_factory=set)  # models whose status is to be rendered again
    pools: set[str] = field(default_factory=set)  # pools whose status is


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A failure that a supervisor reported; for events and metrics."""

    model: str
    pod: str
    node: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class LoadDone:
    model: str
    pod: str
    node: str
    seconds: float
    waited: float | None  # how long the oldest waiter had waited
    estimated: int
    measured: int


class Store:
    """Implements `Sink`."""

    def __init__(self, settings: ControlSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self.state = State()
        self.wake = asyncio.Event()
        self.dirty = Dirty()
        self.missing = set(SOURCES)  # what has not synced yet
        self.ready = asyncio.Event()
        self.deployments: dict[str, Deployment | Unreadable] = {}
        self.pools: dict[str, ModelPool] = {}
        self.pool_objects: dict[str, Mapping[str, Any]] = {}  # as read, with their status
        self.pools_by_model: dict[str, str] = {}
        self.pods: dict[str, Pod] = {}
        self.facts: dict[str, Facts] = {}
        self.names = Names()
        self.demand = DemandBook(settings.report_lifetime)
        self.happened: list[LoadFailed | LoadDone] = []
        self.retries: dict[str, float] = {}  # models with a failure whose time comes
        self._devices: dict[str, set[Any]] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._pool_models: dict[str, set[str]] = {}
        self.pods_changed: Callable[[str], None] = lambda _key: None
        """Called for a pod that came, went, or can be reached elsewhere."""

    # --- the sink

    def put_model(self, obj: Mapping[str, Any]) -> None:
        key = key_of(obj)
        old = self.deployments.get(key)
        if old is not None and not _differs(old.raw, obj):
            # Only the status moved, and the status is ours: kept for comparison, nobody is woken.
            self.deployments[key] = replace(old, raw=obj)
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
        self.dirty.models |= set(self.deployments) if first else self._pool_models.get(name, set())
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
            self.pods[key] = fresh = Pod(record=pod)
            commitment = fresh.commitment
            fresh.loaded_at = commitment.at if commitment is not None and commitment.at else None
        elif old.record.uid != pod.uid:
            if old.record.uid and _older(pod, old.record):
                return  # the watch still tells of the one before
            self.pods[key] = Pod(record=pod, since=self._clock(), order=old.order if not old.record.uid else None)
        elif _older(pod, old.record):
            return  # our own write's answer was newer
        else:
            old.record, old.seen = pod, True
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
        self.state.put_node(node)
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
        self.state.remove_node(name)
        self.wake.set()

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
        before = pod.status
        pod.status, pod.reachable = status, True
        if before == status:
            return
        self._note_outcome(pod, before)
        self.touch(key)

    def lost_supervisor(self, key: str, uid: str) -> None:
        """It does not answer: what it committed still counts."""
        pod = self.pods.get(key)
        if pod is not None and pod.record.uid == uid and pod.reachable:
            pod.reachable = False
            self.touch(key)

    def _note_outcome(self, pod: Pod, before: SupervisorStatus | None) -> None:
        """Remember what a load or a download came to, whoever ordered it."""
        status, record, now = pod.status, pod.record, self._clock()
        facts = self.facts.get(record.model)
        if status is None or facts is None:
            return
        facts.last_used = max(facts.last_used, status.last_used)
        facts.residue = max(facts.residue, status.memory.residue)
        if self._stale_revision(record):
            return
        if status.state is ReplicaState.LOADED and (before is None or before.state not in (ReplicaState.LOADED, ReplicaState.DRAINING)):
            if before is not None:
                pod.loaded_at = now
                self._loaded(pod, facts, status, now)
            facts.loaded_on(record.node, status, now)
            self.dirty.models.add(record.model)
        elif status.resident and facts.measure(status):
            self.dirty.models.add(record.model)
        self._note_failure(pod, before, facts, now)

    def _loaded(self, pod: Pod, facts: Facts, status: SupervisorStatus, now: float) -> None:
        load, order = status.load, pod.order
        total = now - order.since if order is not None and order.kind == "Load" else load.get("total", 0.0)
        facts.last_load = LoadTimes(
            total=total,
            download=load.get("download", 0.0) if status.loads <= 1 else 0.0,
            start=load.get("start", 0.0),
            load=load.get("load", 0.0),
            first_token=load.get("warmup", 0.0),
        )
        estimate = facts.footprint(self._settings)
        waiter = loaded_for(pod.record)
        waited = now - waiter if waiter is not None else None
        expected = estimate.estimated if estimate is not None else 0
        self.happened.append(LoadDone(pod.record.model, pod.key, pod.record.node, total, waited, expected, status.memory.total))

    def _note_failure(self, pod: Pod, before: SupervisorStatus | None, facts: Facts, now: float) -> None:
        status, record = pod.status, pod.record
        error = status.error if status is not None else None
        if status is None or error is None:
            source_back = before is not None and before.state is ReplicaState.FAILED and facts.blocked is not None
            if source_back and facts.blocked is not None and facts.blocked.at:
                facts.blocked = None  # the server's own retry got it
                self.dirty.models.add(record.model)
            return
        if (before is not None and before.error == error) or facts.noted(record.node, error.at):
            return
        self.fail(record.model, record.node, error.reason, error.message, retry=error.retry, at=error.at, now=now)
        self.happened.append(LoadFailed(record.model, pod.key, record.node, error.reason, error.message))
        if error.reason == reasons.OUT_OF_MEMORY:
            commitment = pod.commitment
            given = sum(commitment.devices.values()) if commitment is not None else 0
            facts.required = max(facts.required, status.memory.total, given + given // 10)

    def fail(self, model: str, node: str, reason: str, message: str, *, retry: bool, at: str = "", now: float) -> None:
        """Remember a failure, of the model itself or of it on this node."""
        facts = self.facts.get(model)
        if facts is None:
            return
        if reason in MODEL_WIDE:
            facts.block(reason, message, now, self._settings, retry=retry, at=at)
        else:
            facts.failed_on(node, reason, message, now, self._settings, at=at)
        self.dirty.models.add(model)
        self.wake.set()

    def _stale_revision(self, record: PodRecord) -> bool:
        """What an outdated pod says is no word on the present spec."""
        model = self.state.models.get(record.model)
        return model is not None and bool(model.revision) and model.revision != record.revision

    # --- orders and expectations

    def order(self, key: str, order: Order | None) -> None:
        pod = self.pods.get(key)
        if pod is not None:
            pod.order = order
            self.touch(key)

    def plan_pod(self, record: PodRecord, order: Order) -> None:
        """A pod that is being created and nobody has seen yet."""
        self.pods[f"{record.namespace}/{record.name}"] = Pod(record=record, seen=False, order=order, since=self._clock())
        self.touch(f"{record.namespace}/{record.name}")

    def forget_planned(self, key: str) -> None:
        pod = self.pods.get(key)
        if pod is not None and not pod.record.uid:
            del self.pods[key]
            self.dirty.pods.add(key)
            self.dirty.status.add(pod.record.model)
            self.wake.set()

    def touch(self, key: str) -> None:
        """Something about this pod changed: the loop looks, and so does whoever waits for it."""
        self.dirty.pods.add(key)
        self._tell(key)
        self.wake.set()

    def touch_model(self, key: str) -> None:
        self.dirty.models.add(key)
        self.wake.set()

    def touch_all(self) -> None:
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

    def models_of_pool(self, name: str) -> frozenset[str]:
        return frozenset(self._pool_models.get(name, ()))

    # --- translation, for the loop alone

    def next_time(self, now: float) -> float | None:
        """When a report expires, a failure is over, or an order is no longer believed."""
        times = [at for at in self.retries.values() if at > now]
        times += [pod.delete_ordered for pod in self.pods.values() if pod.delete_ordered is not None and pod.delete_ordered > now]
        expiry = self.demand.next_expiry()
        return min([*times, expiry] if expiry is not None else times, default=None)

    def take_dirty_statuses(self) -> set[str]:
        taken, self.dirty.status = self.dirty.status, set()
        return taken

    def take_dirty_pools(self) -> set[str]:
        taken, self.dirty.pools = self.dirty.pools, set()
        return taken & self.pools.keys()

    def refresh(self, now: float) -> set[str]:
        """Bring State up to what was recorded; the pods that it looked at. Costs what changed."""
        self.dirty.demand |= self.demand.expire(now)
        self.dirty.models |= {key for key, at in self.retries.items() if at <= now}
        models, self.dirty.models = self.dirty.models, set()
        if self.dirty.pools:
            self._refresh_pools()
        for key in models:
            self._refresh_names(key)
        renamed = self.names.resolve()
        self.dirty.status |= renamed
        for key in models:
            self._refresh_model(key, now)
        pods, self.dirty.pods = self.dirty.pods, set()
        for key in pods:
            self._refresh_pod(key, now)
        demanded, self.dirty.demand = self.dirty.demand, set()
        for key in demanded:
            self._refresh_demand(key)
        return pods

    def _refresh_pools(self) -> None:
        wanted = self.pools or {"default": DEFAULT_POOL}
        for name in self.state.pools.keys() - wanted.keys():
            self.state.remove_pool(name)
        for name in self.dirty.pools | (wanted.keys() - self.state.pools.keys()):
            if name in wanted:
                self.state.put_pool(pool_of(wanted[name]))

    def _refresh_names(self, key: str) -> None:
        found = self.deployments.get(key)
        if not isinstance(found, Deployment):
            self.names.remove(key)
            return
        name, aliases = found.parsed.metadata.name, found.parsed.spec.aliases
        self.names.put(key, created_of(found), (name, *aliases), self.facts_of(found).served_names)

    def facts_of(self, found: Deployment) -> Facts:
        metadata = found.parsed.metadata
        facts = self.facts.get(found.key)
        if facts is None or facts.uid != metadata.uid:
            status = found.parsed.status if isinstance(found.parsed.status, ModelDeploymentStatus) else ModelDeploymentStatus()
            facts = self.facts[found.key] = Facts.restore(metadata.uid, metadata.generation, found.estimate_key, status)
        else:
            facts.respecified(metadata.generation, found.estimate_key)
        return facts

    def _refresh_model(self, key: str, now: float) -> None:
        found = self.deployments.get(key)
        old_pool = self.pools_by_model.pop(key, None)
        if old_pool is not None:
            self._pool_models[old_pool].discard(key)
        self.retries.pop(key, None)
        self.dirty.status.add(key)
        self.dirty.pods |= self.state.by_model.get(key, frozenset())
        if found is None:
            self.state.remove_model(key)
            self.state.put_demand(key, Demand())
            self.facts.pop(key, None)
            return
        if isinstance(found, Unreadable):
            generation = int((found.raw.get("metadata") or {}).get("generation") or 0)
            self.state.put_model(blocked_model(key, generation, Blocked(reasons.INVALID, found.message)))
            return
        facts, name = self.facts_of(found), found.parsed.spec.pool
        retry_at = facts.next_retry(now)
        if retry_at is not None:
            self.retries[key] = retry_at
        self.pools_by_model[key] = name
        self._pool_models.setdefault(name, set()).add(key)
        pool = self.pools.get(name)
        self.state.put_model(
            model_of(
                found,
                effective(found.parsed, pool),
                facts,
                revision=revision_of(found, pool, self._settings),
                refused=refused_by_pool(found, pool, any_pool=bool(self.pools)),
                settings=self._settings,
            )
        )

    def _refresh_pod(self, key: str, now: float) -> None:
        pod = self.pods.get(key)
        if pod is None:
            old = self.state.replicas.get(key)
            if old is not None:
                self.dirty.pools.add(self.state.nodes[old.node].pool if old.node in self.state.nodes else "")
            self.state.remove_replica(key)
            return
        owner = self.deployments.get(pod.record.model)
        uid = ((owner.raw.get("metadata") or {}).get("uid", "") if owner else "") or ""
        pod.orphaned = bool(uid and pod.record.owner_uid and pod.record.owner_uid != uid)
        state = state_of(pod)
        if state is not pod.state:
            # A pod that was there before us has been in its state for longer than we know.
            found = pod.since == 0.0 and not pod.known
            pod.state, pod.since = state, 0.0 if found else now
        pod.known = pod.known or pod.status is not None
        if pod.delete_ordered is not None and not pod.record.deleting and now >= pod.delete_ordered:
            pod.delete_ordered = None
        facts = self.facts.get(pod.record.model)
        footprint = facts.footprint(self._settings) if facts else None
        keys = (DeviceKey(pod.record.node, device) for device in pod.record.devices)
        namespaced = any((device := self.state.devices.get(key)) is not None and device.namespaced for key in keys)
        self.state.put_replica(replica_of(pod, max(footprint.estimated, footprint.measured) if footprint else 0, namespaced=namespaced))
        self.dirty.status.add(pod.record.model)
        self.dirty.pools.add(pod.record.pool)

    def _refresh_demand(self, key: str) -> None:
        facts = self.facts.get(key)
        demand = self.demand.demand(key, facts.wish if facts else None)
        if facts is not None and demand.last_used > facts.last_used:
            facts.last_used = demand.last_used
        self.state.put_demand(key, demand)
        self.dirty.status.add(key)


def _differs(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether anything but the status (and the bookkeeping of writing it) differs."""
    before, after = old.get("metadata") or {}, new.get("metadata") or {}
    parts = ("uid", "generation", "deletionTimestamp", "creationTimestamp")
    return old.get("spec") != new.get("spec") or any(before.get(part) != after.get(part) for part in parts)


def _older(new: PodRecord, old: PodRecord) -> bool:
    """Resource versions are numbers that grow wherever this runs; where they are not, the newest to come counts."""
    if not (new.resource_version.isdigit() and old.resource_version.isdigit()):
        return False
    return int(new.resource_version) < int(old.resource_version)
