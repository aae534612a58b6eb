"""What a simulated operator knows: its watches, the long polls of its supervisors, and what it makes of both for the real `State`.

It keeps what the real shell keeps: orders laid over what is seen, failures as back-off, places in the queue. What must outlive it is in the objects.
It must never order anything; `simulate.hands` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from corral.domain import reasons
from corral.domain.backoff import after_failure, after_success
from corral.domain.footprint import after_out_of_memory, need_on
from corral.domain.model import Blocked, Demand, Device, DeviceKey, DeviceKind, Model, Node, Replica, ReplicaState
from corral.domain.plan import Plan
from corral.domain.snapshot import State
from corral.simulate.cluster import Cluster, ModelState
from corral.simulate.pods import Record, RefusedError, Status, UnreachableError
from corral.simulate.timeline import Freezable, Process, Signal, Steps

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLLOW_SILENCE = 5.0
SAME_WAITER = 1.5  # gateways report whole seconds: an arrival that moves by less is the same


@dataclass(frozen=True, slots=True)
class Order:
    kind: str
    commitment: Mapping[DeviceKey, int] = field(default_factory=dict)
    loaded_for: float | None = None
    evicting_for: str = ""
    at: float = 0.0


@dataclass(slots=True)
class Known:
    """One pod as this operator knows it."""

    record: Record
    seen: bool = True
    status: Status | None = None
    reachable: bool = False
    loaded_at: float | None = None
    order: Order | None = None
    turn: float | None = None
    error_seen: float = 0.0
    held_until: float = 0.0
    gone: bool = False
    changed: Signal = field(default_factory=Signal)


class Sight(Freezable):
    def __init__(self, cluster: Cluster, name: str, epoch: int) -> None:
        self.cluster = cluster
        self.name = name
        self.epoch = epoch
        self.state = State()
        self.known: dict[str, Known] = {}
        self.alive = True
        self.frozen_until = 0.0
        self.renewed = cluster.now
        self.forget_orders = False  # a mutation: what was ordered does not count
        self.skip_grant = False  # a mutation: loads before the kubelet has granted the memory
        self.plan = Plan()
        self.decisions = 0
        self._reports: dict[str, tuple[int, float, Mapping[str, Any]]] = {}
        self._returning: dict[str, float] = {}  # until when a model's place is kept for clients that were told to come back
        self._processes: list[Process] = []
        self._poke = Signal()
        self._poked = True
        self._ordinals: dict[str, int] = {}
        self._estimating: set[str] = set()
        self._dirty: set[str] = set()
        self._created_held: dict[str, float] = {}

    # Life.

    def stop(self) -> None:
        """At once, wherever it is."""
        self.alive = False
        self.cluster.unwatch(self.name)
        for process in self._processes:
            process.kill()

    def spawn(self, steps: Steps) -> Process:
        process = self.cluster.timeline.spawn(steps, self)
        self._processes = [each for each in self._processes if each.alive]
        self._processes.append(process)
        return process

    def _renew(self) -> Steps:
        while self.alive:
            if not self.may_write():
                self._depose()
                return
            self.renewed = self.cluster.now
            yield self.cluster.scenario.lease / 4

    def may_write(self) -> bool:
        return self.cluster.lease_epoch == self.epoch and self.cluster.now < self.renewed + self.cluster.scenario.lease * 0.8

    def _depose(self) -> None:
        if self.alive:
            self.cluster.note(f"operator {self.name} (epoch {self.epoch}) sees that it leads no more")
            self.stop()

    def poke(self) -> None:
        self._poked = True
        self._poke.fire()

    # What it sees.

    def _seen(self, kind: str, value: Any) -> None:
        if kind == "pod":
            self._pod(value)
        elif kind == "pod-gone":
            known = self.known.get(value.id)
            if known is not None and known.record.uid == value.uid:
                self._forget(value.id)
        elif kind == "node":
            self._node(value)
        elif kind == "model":
            self._model(value)
        elif kind == "report":
            gateway, sequence, entries = value
            if entries is None:
                self._reports.pop(gateway, None)
            else:
                self._report(gateway, sequence, entries)
            self._demands()
        self.poke()

    def _forget(self, key: str) -> None:
        known = self.known.pop(key, None)
        self.state.remove_replica(key)
        if known is not None:
            known.gone = True
            known.changed.fire()

    def _pod(self, record: Record) -> None:
        known = self.known.get(record.id)
        if known is None or known.record.uid != record.uid:
            if known is not None and known.seen and known.record.version > record.version:
                return
            order = known.order if known is not None and not known.seen else None
            self.known[record.id] = known = Known(record, order=order)
            if record.commit is not None:
                known.loaded_at = record.commit.at
            self.spawn(self._follow(record.id, record.uid))
        elif record.version > known.record.version or not known.seen:
            known.record, known.seen = record, True
        self._lay(record.id)

    def _follow(self, key: str, uid: str) -> Steps:
        """The long poll of one supervisor."""
        cluster = self.cluster
        while True:
            yield cluster.delay("call", self.name, key)
            known = self.known.get(key)
            if known is None or known.record.uid != uid:
                return
            supervisor = cluster.supervisors.get(uid)
            if supervisor is None:
                yield (known.changed, 0.5)
                continue
            try:
                status = supervisor.hello(self.epoch)
            except UnreachableError:
                if known.reachable:
                    known.reachable = False
                    self._lay(key)
                yield 0.5
                continue
            except RefusedError:
                self._depose()
                return
            self._status(key, known, status)
            if supervisor.version == status.version:
                yield (supervisor.changed, FOLLOW_SILENCE)

    def _status(self, key: str, known: Known, status: Status) -> None:
        before, silent = known.status, not known.reachable
        known.status, known.reachable = status, True
        if status.state is ReplicaState.LOADED and (before is None or before.state not in (ReplicaState.LOADED, ReplicaState.DRAINING)):
            if before is not None:
                known.loaded_at = self.cluster.wall
            self._succeeded(known)
        if status.error is not None and status.error[2] > known.error_seen:
            known.error_seen = status.error[2]
            self._failed(known, status.error[0], status.error[1])
        if before != status or silent:
            self._lay(key)
            known.changed.fire()

    def _succeeded(self, known: Known) -> None:
        model = self.cluster.models.get(known.record.model)
        if model is None or known.status is None:
            return
        measured = max(model.measured, known.status.measured)
        backoff = after_success(model.backoff, known.record.node)
        if measured != model.measured or backoff != model.backoff:
            self._write_model(known.record.model, measured=measured, backoff=backoff)

    def _failed(self, known: Known, reason: str, message: str) -> None:
        model = self.state.models.get(known.record.model)
        facts = self.cluster.models.get(known.record.model)
        if model is None or facts is None or reason == reasons.ENGINE_CRASHED:
            return
        changes: dict[str, Any] = {"backoff": after_failure(model, known.record.node, reason, message, self.cluster.wall)}
        if reason == reasons.OUT_OF_MEMORY and known.record.commit is not None and model.footprint is not None:
            given = sum(known.record.commit.devices.values())
            changes["measured"] = after_out_of_memory(model.footprint, given, known.status.measured if known.status else 0).measured
        self._write_model(known.record.model, **changes)

    def _write_model(self, key: str, **changes: Any) -> None:
        """Its own memory at once; the object after a write, if it lives until then."""
        self.spawn(self._write_status(key, changes))
        facts = self.cluster.models.get(key)
        if facts is not None:
            self._model(key, changes)

    def _write_status(self, key: str, changes: dict[str, Any]) -> Steps:
        yield self.cluster.delay("write", self.name)
        if self.may_write():
            self.cluster.change_model(key, **changes)

    def _node(self, name: str) -> None:
        node = self.cluster.nodes[name]
        spec = node.spec
        if node.gone:
            self.state.remove_node(name)
            for device in spec.devices:
                self.state.remove_device(DeviceKey(name, device))
            return
        pool = self.cluster.scenario.pool.name
        cached = frozenset(node.cached)
        self.state.put_node(
            Node(
                name,
                pool,
                spec.labels,
                ready=node.ready,
                schedulable=node.schedulable,
                not_ready_since=node.not_ready_since,
                pod_slots=spec.pod_slots,
                cached=cached,
            )
        )
        for device, capacity in spec.devices.items():
            key = DeviceKey(name, device)
            if key not in self.state.devices:
                kind = self.cluster.device_kind(key)
                claimed = kind is DeviceKind.GPU and any(each.namespace_claims for each in self.cluster.scenario.models)
                self.state.put_device(Device(key, pool, kind, capacity, spec.margin, namespaced=claimed))

    def _model(self, key: str, changes: Mapping[str, Any] | None = None) -> None:
        facts = self.cluster.models.get(key)
        if facts is None:
            self.state.remove_model(key)
            return
        self.state.put_model(self._model_of(facts, changes or {}))

    def _model_of(self, facts: ModelState, changes: Mapping[str, Any]) -> Model:
        spec = facts.spec
        old = self.state.models.get(spec.key)
        now = self.cluster.wall
        backoff = changes.get("backoff", facts.backoff)
        return Model(
            key=spec.key,
            namespace=spec.namespace,
            revision=f"r{facts.revision}",
            pool=self.cluster.scenario.pool.name,
            priority=spec.priority,
            pinned=spec.pinned,
            min_replicas=spec.min_replicas,
            max_replicas=spec.max_replicas,
            target_in_flight=spec.target_in_flight,
            sleep_after=spec.sleep_after,
            stop_after=spec.stop_after,
            max_devices=spec.max_devices,
            footprint=spec.footprint(measured=changes.get("measured", facts.measured)) if facts.estimated else None,
            residue=spec.residue if any(node.spec.kind is DeviceKind.HOST for node in self.cluster.nodes.values()) else 0,
            created=self.cluster.epoch0 + spec.created,
            deleting=facts.deleted,
            backoff=tuple(each for each in backoff if each.until > now or each.failures > 1),
            queue_since=changes.get("queue_since", old.queue_since if old else facts.queue_since),
            queue_until=changes.get("queue_until", old.queue_until if old else facts.queue_until),
            load_seconds=spec.load,
            estimating=spec.key in self._estimating,
        )

    def _report(self, gateway: str, sequence: int, entries: Mapping[str, Any]) -> None:
        """Whoever was told to come back is said once, and it stays true although the gateway goes."""
        self._reports[gateway] = (sequence, self.cluster.now, entries)
        for key, entry in entries.items():
            if entry.returning_seconds:
                until = self.cluster.epoch0 + self.cluster.now + entry.returning_seconds
                former = self._returning.get(key, 0.0)
                self._returning[key] = former if abs(until - former) <= SAME_WAITER else max(until, former)

    def _demands(self) -> None:
        """Sums of what the gateways reported; one that should have renewed its report and did not counts nothing."""
        now, wall = self.cluster.now, self.cluster.epoch0
        sums: dict[str, list[Any]] = {}
        for _, at, entries in self._reports.values():
            if now >= at + self.cluster.scenario.report_lifetime:
                continue
            for key, entry in entries.items():
                total = sums.setdefault(key, [0, None, 0, 0.0, "", ""])
                total[0] += entry.waiting
                if entry.waiting:
                    oldest = wall + at - entry.oldest_wait_seconds
                    total[1] = oldest if total[1] is None else min(total[1], oldest)
                total[2] += entry.in_flight
                total[3] = max(total[3], entry.last_used or 0.0)
                facts = self.cluster.models.get(key)
                if entry.wish is not None and facts is not None and entry.wish.id > facts.wish_done:
                    total[4], total[5] = entry.wish.action, str(entry.wish.id)
        self._returning = {key: until for key, until in self._returning.items() if until > wall + now}
        for key in self._returning:
            sums.setdefault(key, [0, None, 0, 0.0, "", ""])
        for key in self.state.demand.keys() - sums.keys():
            self.state.put_demand(key, Demand())
        for key, (waiting, oldest, in_flight, used, wish, wish_id) in sums.items():
            old = self.state.demand.get(key)
            same = old is not None and old.oldest is not None and oldest is not None and abs(old.oldest - oldest) <= SAME_WAITER
            arrival = old.oldest if old is not None and same else oldest
            self.state.put_demand(key, Demand(waiting, arrival, in_flight, used, wish, wish_id, self._returning.get(key)))

    def _lay(self, key: str) -> None:
        """What is seen, with what was ordered laid over it."""
        known = self.known.get(key)
        if known is None:
            return
        self.state.put_replica(self._replica(known))
        self.poke()

    def _replica(self, known: Known) -> Replica:
        record, status, order = known.record, known.status, known.order
        committed: dict[DeviceKey, int] = dict(record.commit.devices) if record.commit is not None else {}
        if order is not None and not self.forget_orders:
            for device, size in order.commitment.items():
                committed[device] = max(committed.get(device, 0), size)
        resident = status is not None and status.state in (ReplicaState.LOADING, ReplicaState.LOADED, ReplicaState.DRAINING)
        model = self.state.models.get(record.model)
        if resident and not committed and model is not None and model.footprint is not None:
            committed = {device: need_on(model.footprint, self.cluster.device_kind(device)) for device in record.devices}
        held = {}
        if record.devices[0].id == "host":
            held = {record.devices[0]: max(record.granted, record.requested, status.residue if status else 0)}
        served = status.served if status is not None else 0
        waiter = order.loaded_for if order is not None and order.kind == "Load" else record.loaded_for
        if status is not None and status.state is ReplicaState.LOADED and served:
            waiter = None
        turn = known.turn if known.turn is not None else record.turn
        error = Blocked(status.error[0], status.error[1]) if status is not None and status.error is not None else None
        return Replica(
            name=record.name,
            namespace=record.namespace,
            model=record.model,
            revision=record.revision,
            devices=record.devices,
            state=status.state if status is not None else ReplicaState.PENDING,
            uid=record.uid,
            created=record.created,
            committed=committed,
            held=held,
            admitting=status.admitting if status is not None else False,
            reachable=known.reachable,
            in_flight=status.in_flight if status is not None else 0,
            served=served,
            last_used=status.last_used if status is not None else 0.0,
            loaded_at=known.loaded_at if resident else None,
            loaded_for=waiter,
            turn_started=turn,
            error=error,
            ordered=order.kind if order is not None and not self.forget_orders else "",
            evicting_for=order.evicting_for if order is not None and not self.forget_orders else "",
            scheduled=record.scheduled,
            unschedulable_since=record.unschedulable_since,
            deleting=record.deleting,
            namespace_claim=record.claims,
        )
