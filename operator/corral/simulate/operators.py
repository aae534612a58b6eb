"""A simulated operator: watches, State, the real `decide`, and the steps of each action with their delays. It can die or freeze between any two.

It keeps what the real shell keeps: orders laid over what is seen, failures as back-off, places in the queue. What must outlive it is in the objects.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from corral.domain import reasons
from corral.domain.backoff import after_failure, after_success
from corral.domain.decide import decide
from corral.domain.footprint import after_out_of_memory, need_on
from corral.domain.model import Blocked, Demand, Device, DeviceKey, DeviceKind, Model, Node, Replica, ReplicaState
from corral.domain.plan import Action, Create, Delete, Estimate, Evict, Load, Plan
from corral.domain.snapshot import State
from corral.simulate.cluster import Cluster, ConflictError, GoneError, ModelState
from corral.simulate.pods import Commit, Record, RefusedError, Status, Supervisor, UnreachableError
from corral.simulate.timeline import Freezable, Process, Signal, Steps

if TYPE_CHECKING:
    from collections.abc import Mapping

Wait = float | tuple[Signal, float]
GRANT_TIMEOUT = 20.0
FOLLOW_SILENCE = 5.0
FIRST_WORD = 1.0
HELD_BACK = 1.0
SAME_WAITER = 1.5  # gateways report whole seconds: an arrival that moves by less is the same
SOON = 0.005


class DeposedError(Exception):
    """Somebody else leads."""


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


class Operator(Freezable):
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

    def start(self) -> None:
        cluster = self.cluster
        cluster.note(f"operator {self.name} leads with epoch {self.epoch}")
        cluster.watch(self.name, self._seen)
        self.state.put_pool(cluster.scenario.pool)
        for node in cluster.nodes:
            self._node(node)
        for key in cluster.models:
            self._model(key)
        for gateway, (sequence, entries) in cluster.reports.items():
            self._report(gateway, sequence, entries)
        for record in cluster.pods.values():
            self._pod(record)
        self._demands()
        self.spawn(self._loop())
        self.spawn(self._renew())

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

    # The loop.

    def _loop(self) -> Steps:
        cluster = self.cluster
        started = cluster.now
        while any(each.status is None and each.record.scheduled for each in self.known.values()) and cluster.now < started + FIRST_WORD:
            yield 0.1
        while self.alive:
            self._poked = False
            wake = self._cycle()
            if not self.alive:
                return
            if not self._poked:
                yield (self._poke, max(SOON, min(wake - cluster.wall, 10.0)))
            yield SOON * (1 + cluster.random(f"loop {self.name}").random())

    def _cycle(self) -> float:
        if not self.may_write():
            self._depose()
            return 0.0
        self._demands()
        now = self.cluster.wall
        for key, model in list(self.state.models.items()):
            if any(each.until <= now for each in model.backoff):
                self._model(key)
        snapshot = self.state.snapshot()
        plan = self.plan = decide(snapshot, now)
        self.decisions += 1
        self.cluster.watchdog.planned(snapshot, plan, now)
        for action in plan.actions:
            self._start(action)
        for key, at in plan.turns.items():
            self._turn(key, at)
        self._verdicts(plan)
        return plan.wake_at if plan.wake_at is not None else now + 10.0

    def _verdicts(self, plan: Plan) -> None:
        for key, model in list(self.state.models.items()):
            facts = self.cluster.models.get(key)
            if facts is None:
                continue
            verdict = plan.verdicts.get(key)
            since, until = (verdict.queue_since, verdict.queue_until) if verdict is not None else (None, None)
            told = (verdict.explanation.reason, verdict.stalled, verdict.explanation.message) if verdict is not None else ("", False, "")
            changes: dict[str, Any] = {}
            if (since, until) != (model.queue_since, model.queue_until):
                changes = {"queue_since": since, "queue_until": until}
            if told[:2] != facts.verdict[:2]:
                changes["verdict"] = told
            wish = self.state.demand.get(key)
            if wish is not None and wish.wish:
                resident = any(self.state.replicas[each].resident for each in self.state.by_model.get(key, ()))
                if resident == (wish.wish == "Load"):
                    changes["wish_done"] = int(wish.wish_id)
            if changes:
                self._write_model(key, **changes)

    # Actions.

    def _start(self, action: Action) -> None:
        now = self.cluster.now
        if isinstance(action, Estimate):
            if action.model not in self._estimating:
                self._estimating.add(action.model)
                self._model(action.model)
                self.spawn(self._estimate(action.model))
            return
        if isinstance(action, Create):
            if self._created_held.get(action.model, 0.0) <= now:
                self._order_create(action)
            return
        assert isinstance(action, Load | Evict | Delete)  # noqa: S101 - there are no others
        known = self.known.get(action.replica)
        if known is None or (known.order is not None and not self.forget_orders) or known.held_until > now:
            return
        self.cluster.note(f"{type(action).__name__} {action.replica}: {action.reason}: {action.message}")
        self.cluster.watchdog.ordered(self.name, f"{action.replica} ({known.record.uid})", type(action).__name__)
        if isinstance(action, Load):
            known.order = Order("Load", action.commitment, action.loaded_for, at=now)
            steps = self._load(action, known)
        elif isinstance(action, Evict):
            known.order = Order("Evict", evicting_for=action.evicting_for, at=now)
            steps = self._evict(action, known)
        else:
            known.order = Order("Delete", at=now)
            steps = self._delete(action, known)
        self._lay(action.replica)
        self.spawn(self._guard(action.replica, known, steps))

    def _guard(self, key: str, known: Known, steps: Generator[Wait, bool, bool]) -> Steps:
        good, name = False, f"{key} ({known.record.uid})"
        try:
            good = yield from steps
        except DeposedError:
            self._depose()
            return
        except (ConflictError, GoneError, RefusedError, UnreachableError):
            good = False
        known.order = None
        self.cluster.watchdog.over(self.name, name)
        if not good:
            known.held_until = self.cluster.now + HELD_BACK * self.cluster.random(f"held {self.name}").random()
            self.cluster.timeline.at(known.held_until, self.poke)
        if self.known.get(key) is known:
            self._lay(key)

    @contextmanager
    def _leading(self) -> Iterator[None]:
        """Checked before every call, which then takes its time: a freeze in between is what the epoch is for."""
        if not self.may_write():
            raise DeposedError
        yield

    def _call(self, known: Known, what: Callable[[Supervisor], Any], retries: int = 5) -> Generator[Wait, bool, Any]:
        for attempt in range(retries):
            with self._leading():
                yield self.cluster.delay("call", self.name, known.record.id)
            try:
                return what(self._reach(known))
            except UnreachableError:
                if attempt + 1 == retries:
                    raise
                yield 0.2 * 2**attempt
        return None

    def _reach(self, known: Known) -> Supervisor:
        supervisor = self.cluster.supervisors.get(known.record.uid)
        if supervisor is None:
            raise UnreachableError
        return supervisor

    def _annotate(self, known: Known, version: int | None, **changes: Any) -> Generator[Wait, bool, None]:
        with self._leading():
            yield self.cluster.delay("write", self.name)
        record = self.cluster.annotate(known.record.id, version, **changes)
        known.record = record
        self._lay(record.id)

    def _load(self, action: Load, known: Known) -> Generator[Wait, bool, bool]:
        cluster, key = self.cluster, action.replica
        commit = Commit(self.epoch, dict(action.commitment), action.split, cluster.wall)
        try:
            yield from self._annotate(known, known.record.version, commit=commit, loaded_for=action.loaded_for, turn=None)
        except ConflictError:
            yield (known.changed, 0.5)
            return False
        known.turn = None
        cluster.note(f"committed {key}")
        if not (yield from self._granted(action, known)):
            yield from self._release(known)
            return False
        try:
            yield from self._call(known, lambda it: it.wake(self.epoch, action.commitment))
        except (RefusedError, UnreachableError):
            yield from self._release(known)
            return False
        loads = known.status.loads if known.status is not None else 0
        while not known.gone and (known.status is None or known.status.loads == loads or known.status.state is ReplicaState.LOADING):
            yield (known.changed, 5.0)
        if known.gone:
            return False
        if known.status is not None and known.status.state is not ReplicaState.LOADED and not self._resident(known):
            yield from self._release(known)
        return True

    def _granted(self, action: Load, known: Known) -> Generator[Wait, bool, bool]:
        need = sum(size for device, size in action.commitment.items() if device.id == "host")
        if not need or known.record.granted >= need or self.skip_grant:
            return True
        with self._leading():
            yield self.cluster.delay("write", self.name)
        known.record = self.cluster.resize(known.record.id, known.record.uid, need)
        self._lay(known.record.id)
        until = self.cluster.now + GRANT_TIMEOUT
        while known.record.granted < need and not known.gone and self.cluster.now < until:
            yield 0.1
        if known.record.granted >= need:
            return True
        self._failed(known, reasons.WAITING_FOR_GRANT, "the kubelet did not grant the memory")
        return False

    def _release(self, known: Known) -> Generator[Wait, bool, bool]:
        """No engine runs, for sure and for this epoch; then the commitment and the memory are given back."""
        yield from self._call(known, lambda it: it.sleep(self.epoch))
        supervisor = self.cluster.supervisors.get(known.record.uid)
        while supervisor is not None and supervisor.alive and supervisor.memory:
            yield (supervisor.changed, 5.0)
        if supervisor is None or not supervisor.alive:
            return False
        ours = known.record.commit
        while ours is not None and known.record.commit == ours:
            try:
                yield from self._annotate(known, known.record.version, commit=None, loaded_for=None, turn=None)
            except ConflictError:
                yield 0.1
        known.turn = None
        known.loaded_at = None
        self._recheck(known)
        residue = supervisor.spec.residue
        if known.record.devices[0].id == "host" and known.record.requested > residue:
            with self._leading():
                yield self.cluster.delay("write", self.name)
            known.record = self.cluster.resize(known.record.id, known.record.uid, residue)
            for _ in range(50):
                if known.record.granted <= residue or known.gone:
                    break
                yield 0.1
        self.cluster.note(f"released {known.record.id}")
        return True

    @staticmethod
    def _resident(known: Known) -> bool:
        return known.status is not None and known.status.state in (ReplicaState.LOADING, ReplicaState.LOADED, ReplicaState.DRAINING)

    def _evict(self, action: Evict, known: Known) -> Generator[Wait, bool, bool]:
        if self._resident(known):
            if action.deadline is None:
                unused = action.unused_since
                why, target = action.reason, action.evicting_for
                try:
                    yield from self._call(
                        known,
                        lambda it: it.drain(self.epoch, if_idle=True, if_unused_since=unused, deadline=None, why=why, evicting_for=target),
                    )
                except RefusedError:
                    self._recheck(known)
                    return False
            elif not (yield from self._drain_until(known, action.deadline, action.reason, action.evicting_for)):
                return False
        return (yield from self._release(known))

    def _recheck(self, known: Known) -> None:
        """A refusal carries what the supervisor knows better."""
        supervisor = self.cluster.supervisors.get(known.record.uid)
        if supervisor is not None and supervisor.alive:
            known.status = supervisor.status()

    def _drain_until(self, known: Known, deadline: float, why: str, target: str) -> Generator[Wait, bool, bool]:
        while True:
            left = yield from self._call(
                known, lambda it: it.drain(self.epoch, if_idle=False, if_unused_since=None, deadline=deadline, why=why, evicting_for=target)
            )
            if not left:
                return True
            over = deadline + 5.0 - self.cluster.wall
            if over <= 0:
                return False
            supervisor = self.cluster.supervisors.get(known.record.uid)
            if supervisor is None:
                return False
            yield (supervisor.changed, min(3.0, over))

    def _delete(self, action: Delete, known: Known) -> Generator[Wait, bool, bool]:
        if self._resident(known) and known.reachable:
            try:
                if action.deadline is not None:
                    yield from self._drain_until(known, action.deadline, action.reason, "")
                else:
                    why, unused = action.reason, (known.status.last_used if known.status else 0.0) + 0.001
                    yield from self._call(
                        known, lambda it: it.drain(self.epoch, if_idle=True, if_unused_since=unused, deadline=None, why=why, evicting_for="")
                    )
            except UnreachableError:
                pass
            except RefusedError:
                self._recheck(known)
                return False
        with self._leading():
            yield self.cluster.delay("write", self.name)
        self.cluster.delete_pod(known.record.id, known.record.uid)
        known.record = self.cluster.pods.get(known.record.id, known.record)
        if action.reason in (reasons.UNSCHEDULABLE, reasons.NO_SPACE):
            self._failed(known, action.reason, action.message)
        yield (known.changed, 30.0)
        return True

    def _order_create(self, action: Create) -> None:
        facts = self.cluster.models.get(action.model)
        if facts is None:
            return
        self._created_held[action.model] = self.cluster.now + 0.3
        base = f"{facts.spec.name}-{action.revision}"
        taken = {each.rpartition("-")[2] for each in self.known if each.startswith(f"{facts.spec.namespace}/{base}-")}
        ordinal = next(str(each) for each in range(1000) if str(each) not in taken)
        name = f"{base}-{ordinal}"
        host = action.devices[0].id == "host"
        record = Record(
            name,
            facts.spec.namespace,
            "",
            0,
            action.model,
            action.revision,
            action.devices,
            self.cluster.wall,
            requested=facts.spec.residue if host else 0,
            claims=facts.spec.namespace_claims and not host,
        )
        self.cluster.note(f"Create {record.id} on {', '.join(map(str, action.devices))}: {action.reason}")
        if not self.forget_orders:
            self.known[record.id] = known = Known(record, seen=False, order=Order("Create", at=self.cluster.now))
            self._lay(record.id)
        else:
            known = Known(record, seen=False)
        self.spawn(self._create(action, facts, name, known))

    def _create(self, action: Create, facts: ModelState, name: str, known: Known) -> Steps:
        yield self.cluster.delay("write", self.name)
        key = f"{facts.spec.namespace}/{name}"
        if not self.may_write():
            self._depose()
            return
        try:
            record = self.cluster.create_pod(facts.spec, action.revision, name, action.devices)
        except ConflictError:
            record = None
        if self.known.get(key) is known:
            if record is None:
                self._forget(key)
            else:
                known.order = None
                known.record, known.seen = record, True
                self.spawn(self._follow(key, record.uid))
                self._lay(key)
        known.order = None
        self.poke()

    def _estimate(self, key: str) -> Steps:
        yield 0.3 + 0.5 * self.cluster.random(f"estimate {key}").random()
        self._estimating.discard(key)
        self.cluster.change_model(key, estimated=True)
        self._model(key)
        self.poke()

    def _turn(self, key: str, at: float) -> None:
        known = self.known.get(key)
        if known is None or known.turn == at:
            return
        known.turn = at
        self.cluster.watchdog.turn(known.record.uid, at)
        self._lay(key)
        self.spawn(self._mark_turn(known, at))

    def _mark_turn(self, known: Known, at: float) -> Steps:
        for _ in range(10):
            try:
                yield from self._annotate(known, known.record.version, turn=at)
            except ConflictError:
                yield 0.2
            except (GoneError, DeposedError):
                return
            else:
                return
