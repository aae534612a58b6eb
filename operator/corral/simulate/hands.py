"""What a simulated operator does: the steps of each action with their delays, between any two of which it can die or freeze.

Each step asks whether this operator may still write, as the real ones do. It must never choose what to do; that is the plan's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from corral.domain import reasons
from corral.domain.model import ReplicaState
from corral.domain.plan import Action, Create, Delete, Estimate, Evict, Load
from corral.simulate.cluster import ConflictError, GoneError, ModelState
from corral.simulate.pods import Commit, Record, RefusedError, Supervisor, UnreachableError
from corral.simulate.sight import Known, Order, Sight
from corral.simulate.timeline import Signal, Steps

Wait = float | tuple[Signal, float]
GRANT_TIMEOUT = 20.0
HELD_BACK = 1.0


class DeposedError(Exception):
    """Somebody else leads."""


class Hands(Sight):
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
