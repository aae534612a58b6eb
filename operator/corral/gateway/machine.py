"""The gateway's decisions: which request goes to which replica, which waits, which is refused. Pure: events in, effects out, time passed in.

It owns every count (in flight, waiting, bytes held) and every place in a queue. It must never do I/O, read a clock, or know of asyncio, so that
the gateway and the simulation drive the very same thing.

Events, each with `now` (seconds on any clock that never goes back) and each answered with a list of effects, to be carried out in order:

    model_changed(view, now)             model_removed(key, now)
    replica_changed(view, now)           replica_removed(uid, now)
    arrive(Arrival, now)                 a request: exactly one of Grant, Wait, Reject for it comes back
    refused(id, now, unreachable=False)  a granted request came back without an answer: draining pod, or no connection. It keeps its place
    ended(id, now, served=True)          a granted request is over, however it ended
    left(id, now)                        its client is gone, wherever it is
    replica_status(uid, status, now)     the answer of a watched replica
    replica_unreachable(uid, now)        a watched replica did not answer
    tick(now)                            time passed; call it at `wake_at()`
    close(now)                           the gateway ends: whoever still waits is refused

Effects (`corral.gateway.effects`): Grant, Wait, Reject, Watch, Unwatch. Every request that arrives ends exactly once: by Reject, by `ended`,
or by `left`. Questions: `resolve(name)`, `situation(id, now)`, `in_flight(key)`, `waiting(key)`, `resident(key)`, `wake_at()`. Demand:
`report(now)` gives a Report when one is due (see `reporting`), `report_lost(report, now)` takes it back, `wish(key, action, id, now)` adds a
manual load or unload.

A replica is *open* when requests may be sent to it: its supervisor said that it admits, or `status.placements` began to call it Loaded. A refusal
closes it until one of the two happens anew. While a model has waiters all its replicas are watched, and the first that opens takes them all,
oldest first; with no waiters nothing is watched.
"""

from __future__ import annotations

import heapq

from corral.domain import reasons
from corral.gateway import refusals
from corral.gateway.balance import choose
from corral.gateway.effects import (
    Arrival,
    Effect,
    Grant,
    LoadError,
    Reject,
    Rejection,
    ReplicaStatus,
    Situation,
    Unwatch,
    Wait,
    Watch,
)
from corral.gateway.entries import Model, Replica, Ticket
from corral.gateway.naming import Names, Route
from corral.gateway.ports import LOADED, ModelDemand, ModelView, ReplicaView, Report, Wish
from corral.gateway.reporting import ReportSchedule
from corral.gateway.waiting import WaitingRoom

UNDER_WAY = frozenset({reasons.LOADING, reasons.STARTING, reasons.DOWNLOADING, reasons.EVICTING})
WISH_LIFETIME = 60.0
"""Seconds after which a wish that nobody acknowledged is no longer reported."""
ASKING_SECONDS = 2.0
"""How long a request that must not wake its model waits for what the replicas say: this gateway may not know yet that one is open."""
REFUSAL_PAUSE = 0.05
REFUSAL_PAUSE_MAX = 1.0


class Machine:
    """See the module's docstring. `wall_offset` is what turns `now` into seconds since 1970."""

    def __init__(self, *, wall_offset: float = 0.0, first_sequence: int = 1, held_bytes_max: int = 1 << 30) -> None:
        self._wall_offset = wall_offset
        self._models: dict[str, Model] = {}
        self._replicas: dict[str, Replica] = {}
        self._tickets: dict[str, Ticket] = {}
        self._room = WaitingRoom(self._tickets, held_bytes_max)
        self._names = Names()
        self._reopenings: list[tuple[float, str]] = []
        self._schedule = ReportSchedule(first_sequence)
        self._busy: set[str] = set()
        """Models with anything waiting, in flight, or wished."""
        self._places = 0
        self.sooner = True
        """`wake_at` may be earlier than when it was last asked."""

    # What there is

    def model_changed(self, view: ModelView, now: float) -> list[Effect]:
        model = self._model(view.key)
        old, model.view = model.view, view
        self._names.put(view)
        if model.wish is not None and view.acknowledged_wish is not None and view.acknowledged_wish >= model.wish.id:
            self._drop_wish(model, now)
        effects: list[Effect] = []
        if model.queue and not self._open(model):
            refusal = refusals.blocked(view)
            if refusal is None and (old is None or old.ready is not False or old.reason != view.reason):
                refusal = refusals.failing(view)
            if refusal is not None:
                self._refuse_all(model, refusal, now, effects)
        return effects

    def model_removed(self, key: str, now: float) -> list[Effect]:
        model = self._models.get(key)
        effects: list[Effect] = []
        if model is None:
            return effects
        self._names.remove(key)
        model.view = None
        if model.wish is not None:
            self._drop_wish(model, now)
        self._refuse_all(model, refusals.not_found(key), now, effects)
        self._forget(model)
        return effects

    def replica_changed(self, view: ReplicaView, now: float) -> list[Effect]:
        model = self._model(view.model)
        replica = self._replicas.get(view.uid)
        effects: list[Effect] = []
        if replica is None:
            replica = Replica(view)
            self._replicas[view.uid] = model.replicas[view.uid] = replica
            hint_changed = True
        else:
            old, replica.view = replica.view, view
            hint_changed = old.state != view.state or not old.host
            if (old.host, old.control_port) != (view.host, view.control_port) and replica.watched:
                replica.watched = False
                effects.append(Unwatch(view.uid))
        if view.deleting or not view.host:
            replica.open = False
        elif hint_changed and view.state == LOADED:
            if not replica.open:
                self._open_replica(replica, now, by_hint=True)
        elif hint_changed and replica.by_hint:
            replica.open = replica.by_hint = False
        self._settle(model, now, effects)
        return effects

    def replica_removed(self, uid: str, now: float) -> list[Effect]:  # noqa: ARG002 - every event has its time
        replica = self._replicas.pop(uid, None)
        effects: list[Effect] = []
        if replica is None:
            return effects
        replica.open = False
        model = self._model(replica.view.model)
        model.replicas.pop(uid, None)
        if replica.watched:
            replica.watched = False
            effects.append(Unwatch(uid))
        self._forget(model)
        return effects

    # The life of a request

    def arrive(self, arrival: Arrival, now: float) -> list[Effect]:
        model = self._models.get(arrival.model)
        if model is None or model.view is None:
            return [Reject(arrival.id, refusals.not_found(arrival.model))]
        if arrival.id in self._tickets:
            raise ValueError(f"request id {arrival.id!r} is in use: ids name one request each")
        self._places += 1
        ticket = Ticket(arrival, self._places, now, now + model.view.hold.timeout)
        if not model.queue:
            candidates = [replica for replica in model.replicas.values() if replica.open]
            if candidates:
                self._tickets[arrival.id] = ticket
                return [self._grant(model, ticket, candidates, now)]
        refusal = self._why_not_hold(model, model.view, arrival)
        if refusal is not None and not self._may_ask(model, model.view, arrival):
            return [Reject(arrival.id, refusal)]
        if refusal is not None:
            ticket.unless_open = refusal
            ticket.deadline = now + min(ASKING_SECONDS, model.view.hold.timeout)
            asking: list[Effect] = [Wait(arrival.id, joined=False)]
            self._enqueue(model, ticket, now, urgent=False)
            self._settle(model, now, asking)
            return asking
        joined = model.view.state in UNDER_WAY or any(
            replica.status is not None and replica.status.state in UNDER_WAY for replica in model.replicas.values()
        )
        nobody = all(other.unless_open is not None for other in model.queue)
        effects: list[Effect] = [Wait(arrival.id, joined)]
        self._enqueue(model, ticket, now, urgent=nobody or (joined and not model.joined))
        model.joined = model.joined or joined
        self._settle(model, now, effects)
        return effects

    def refused(self, request: str, now: float, *, unreachable: bool = False) -> list[Effect]:
        ticket = self._tickets.get(request)
        if ticket is None or ticket.replica is None:
            return []
        replica = ticket.replica
        model = self._model(replica.view.model)
        self._release(model, ticket, now)
        replica.open = replica.by_hint = False
        replica.status = None
        pause = min(REFUSAL_PAUSE_MAX, REFUSAL_PAUSE * 2.0 ** min(replica.refusals, 10)) if replica.refusals or unreachable else 0.0
        replica.refusals += 1
        replica.closed_until = now + pause
        effects: list[Effect] = []
        if model.view is None:
            del self._tickets[request]
            self._forget(model)
            return [Reject(request, refusals.not_found(model.key))]
        if not ticket.arrival.autoload and not self._open(model):
            del self._tickets[request]
            return [Reject(request, refusals.not_loaded(model.view))]
        if ticket.unless_open is not None and not self._open(model):
            del self._tickets[request]
            return [Reject(request, ticket.unless_open)]
        refusal = None if self._open(model) else refusals.blocked(model.view)
        if refusal is None and now >= ticket.deadline:
            refusal = self._timed_out(model, model.view, ticket, now)
        if refusal is not None:
            del self._tickets[request]
            return [Reject(request, refusal)]
        first = not model.queue
        self._enqueue(model, ticket, now, urgent=first and not self._open(model))
        self._settle(model, now, effects)
        if ticket.replica is None:
            effects.insert(0, Wait(request, joined=not first))
        return effects

    def ended(self, request: str, now: float, *, served: bool = True) -> list[Effect]:
        ticket = self._tickets.get(request)
        if ticket is None or ticket.replica is None:
            return []
        del self._tickets[request]
        replica = ticket.replica
        if served:
            replica.refusals = 0
        model = self._model(replica.view.model)
        self._release(model, ticket, now)
        if not model.in_flight:
            self._forget(model)
        return []

    def left(self, request: str, now: float) -> list[Effect]:
        ticket = self._tickets.get(request)
        if ticket is None:
            return []
        if ticket.replica is not None:
            return self.ended(request, now, served=False)
        del self._tickets[request]
        model = self._model(ticket.arrival.model)
        self._dequeue(model, ticket, now)
        effects: list[Effect] = []
        self._settle(model, now, effects)
        return effects

    # What watched replicas say

    def replica_status(self, uid: str, status: ReplicaStatus, now: float) -> list[Effect]:
        replica = self._replicas.get(uid)
        effects: list[Effect] = []
        if replica is None:
            return effects
        replica.status = status
        model = self._model(replica.view.model)
        if status.admitting and status.state == LOADED and not replica.view.deleting:
            if not replica.open:
                self._open_replica(replica, now, by_hint=False)
            replica.by_hint = False
        else:
            replica.open = replica.by_hint = False
        if status.error is not None and status.error.at != replica.known_error:
            self._load_failed(model, replica, status.error, now, effects)
            replica.known_error = status.error.at
        replica.told = True
        self._settle(model, now, effects)
        self._end_asking(model, now, effects)
        return effects

    def replica_unreachable(self, uid: str, now: float) -> list[Effect]:
        replica = self._replicas.get(uid)
        effects: list[Effect] = []
        if replica is not None:
            replica.open = replica.by_hint = False
            replica.status = None
            replica.told = True
            self._end_asking(self._model(replica.view.model), now, effects)
        return effects

    # Time

    def wake_at(self, *, reports: bool = True) -> float | None:
        """When `tick` (or `report`, unless `reports` is false) next has something to do, if nothing happens until then."""
        self.sooner = False
        times = [entry[0] for entry in self._reopenings[:1]]
        deadline = self._room.next_deadline()
        if deadline is not None:
            times.append(deadline)
        due = self._schedule.due_at(active=bool(self._busy)) if reports else None
        if due is not None:
            times.append(due)
        return min(times, default=None)

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while (overdue := self._room.pop_overdue(now)) is not None:
            ticket = self._tickets.pop(overdue)
            model = self._model(ticket.arrival.model)
            self._dequeue(model, ticket, now)
            view = model.view
            refusal = ticket.unless_open
            if refusal is None:
                refusal = refusals.not_found(model.key) if view is None else self._timed_out(model, view, ticket, now)
            effects.append(Reject(overdue, refusal))
            self._settle(model, now, effects)
        while self._reopenings and self._reopenings[0][0] <= now:
            _, uid = heapq.heappop(self._reopenings)
            replica = self._replicas.get(uid)
            if replica is not None and replica.status is not None and replica.status.admitting and not replica.view.deleting:
                self._open_replica(replica, now, by_hint=False)
                self._settle(self._model(replica.view.model), now, effects)
        for model in [self._models[key] for key in self._busy if self._models[key].wish is not None]:
            if now >= model.wished_at + WISH_LIFETIME:
                self._drop_wish(model, now)
        return effects

    def close(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for model in list(self._models.values()):
            self._refuse_all(model, refusals.stopping(), now, effects)
        return effects

    # Demand

    def report(self, now: float) -> Report | None:
        """The report that is due now, or None."""
        changed = self._schedule.take(now, active=bool(self._busy))
        if changed is None:
            return None
        demands = [self._demand(key, now) for key in sorted(changed | self._busy)]
        return Report(self._schedule.sequence, tuple(demands))

    def report_lost(self, report: Report, now: float) -> None:
        self._schedule.lost({demand.name for demand in report.models}, now)
        self.sooner = True

    def wish(self, key: str, action: str, wish_id: int, now: float) -> bool:
        """Ask the operator to `Load` or `Unload` a model. False when there is no such model."""
        model = self._models.get(key)
        if model is None or model.view is None:
            return False
        model.wish = Wish(action, wish_id)
        model.wished_at = now
        self._busy.add(key)
        self._mark(key, now, urgent=True)
        return True

    # Questions

    def resolve(self, name: str) -> Route | None:
        return self._names.resolve(name)

    @property
    def names(self) -> Names:
        return self._names

    def view(self, key: str) -> ModelView | None:
        model = self._models.get(key)
        return model.view if model else None

    def in_flight(self, key: str | None = None) -> int:
        """Requests in flight, of one model or of all."""
        if key is None:
            return sum(model.in_flight for model in self._models.values())
        model = self._models.get(key)
        return model.in_flight if model else 0

    def waiting(self, key: str | None = None) -> int:
        if key is None:
            return self._room.waiting
        model = self._models.get(key)
        return len(model.queue) if model else 0

    @property
    def held_bytes(self) -> int:
        return self._room.held_bytes

    def resident(self, key: str) -> bool:
        """Whether a request for it would be sent at once."""
        model = self._models.get(key)
        return model is not None and not model.queue and bool(self._open(model))

    def replicas_of(self, key: str) -> int:
        model = self._models.get(key)
        return len(model.replicas) if model else 0

    def progress(self, key: str) -> tuple[str, float | None]:
        """State and progress of a model: the best that a watched replica says, else the status."""
        model = self._models.get(key)
        if model is None or model.view is None:
            return "", None
        best = max(
            (replica.status for replica in model.replicas.values() if replica.status is not None and replica.status.state in UNDER_WAY),
            key=lambda status: (status.state == reasons.LOADING, status.progress),
            default=None,
        )
        if self._open(model):
            return LOADED, 1.0
        return (best.state, best.progress) if best else (model.view.state, None)

    def situation(self, request: str, now: float) -> Situation | None:
        """What to tell the client of a waiting request; None when it does not wait."""
        ticket = self._tickets.get(request)
        if ticket is None or ticket.replica is not None:
            return None
        model = self._model(ticket.arrival.model)
        state, progress = self.progress(model.key)
        loaded = next((entry.message for entry in model.view.conditions if entry.type == "Loaded"), "") if model.view else ""
        return Situation(state, progress, loaded, self._room.ahead(model, ticket), now - ticket.since, max(0.0, ticket.deadline - now))

    # Inside

    def _model(self, key: str) -> Model:
        model = self._models.get(key)
        if model is None:
            model = self._models[key] = Model(key)
        return model

    def _forget(self, model: Model) -> None:
        """Drop the entry of a model that is gone and of which nothing is left."""
        if model.view is None and not model.replicas and not model.queue and not model.in_flight:
            self._models.pop(model.key, None)
            self._busy.discard(model.key)

    @staticmethod
    def _open(model: Model) -> list[Replica]:
        return [replica for replica in model.replicas.values() if replica.open]

    def _open_replica(self, replica: Replica, now: float, *, by_hint: bool) -> None:
        if now < replica.closed_until:
            heapq.heappush(self._reopenings, (replica.closed_until, replica.uid))
            self.sooner = True
            return
        replica.open = True
        replica.by_hint = by_hint

    def _mark(self, key: str, now: float, *, urgent: bool = False) -> None:
        if self._schedule.mark(key, now, urgent=urgent):
            self.sooner = True

    def _why_not_hold(self, model: Model, view: ModelView, arrival: Arrival) -> Rejection | None:
        if not arrival.autoload:
            return refusals.not_loaded(view)
        if not arrival.may_wake:
            return refusals.may_not_wake(view)
        return refusals.blocked(view) or self._room.no_place(model, view, arrival)

    def _may_ask(self, model: Model, view: ModelView, arrival: Arrival) -> bool:
        """Whether there is a replica whose own word is worth waiting for, for a request that must not wake the model."""
        if (arrival.autoload and arrival.may_wake) or refusals.blocked(view) is not None or self._room.no_place(model, view, arrival) is not None:
            return False
        return any(_answers(replica) and not (replica.watched and replica.told) for replica in model.replicas.values())

    def _end_asking(self, model: Model, now: float, effects: list[Effect]) -> None:
        """Every replica has said that it does not admit: those who only asked have their answer."""
        if not model.queue or any(_answers(replica) and not replica.told for replica in model.replicas.values()):
            return
        for ticket in [ticket for ticket in model.queue if ticket.unless_open is not None]:
            self._dequeue(model, ticket, now)
            del self._tickets[ticket.arrival.id]
            assert ticket.unless_open is not None  # noqa: S101 - it was chosen by that
            effects.append(Reject(ticket.arrival.id, ticket.unless_open))
        self._settle(model, now, effects)

    def _enqueue(self, model: Model, ticket: Ticket, now: float, *, urgent: bool) -> None:
        self._room.enter(model, ticket)
        self._tickets[ticket.arrival.id] = ticket
        self.sooner = True
        self._busy.add(model.key)
        self._mark(model.key, now, urgent=urgent)

    def _dequeue(self, model: Model, ticket: Ticket, now: float) -> None:
        self._room.leave(model, ticket)
        if not model.queue:
            model.joined = False
        self._rest(model)
        # Nobody waits any more: what is still believed to be waited for would be loaded again at the cost of another.
        self._mark(model.key, now, urgent=not model.queue)

    def _grant(self, model: Model, ticket: Ticket, candidates: list[Replica], now: float) -> Grant:
        assert model.view is not None  # noqa: S101 - both callers looked
        replica = choose(candidates, ticket.arrival.affinity, ticket.arrival.home)
        ticket.replica = replica
        replica.in_flight += 1
        model.in_flight += 1
        model.last_used = now
        if model.in_flight == 1:
            self._busy.add(model.key)
            self._mark(model.key, now)
        return Grant(ticket.arrival.id, replica.view, model.view)

    def _release(self, model: Model, ticket: Ticket, now: float) -> None:
        assert ticket.replica is not None  # noqa: S101 - both callers looked
        ticket.replica.in_flight -= 1
        ticket.replica = None
        model.in_flight -= 1
        model.last_used = now
        if not model.in_flight:
            self._rest(model)
            self._mark(model.key, now)

    def _rest(self, model: Model) -> None:
        if not model.queue and not model.in_flight and model.wish is None:
            self._busy.discard(model.key)

    def _refuse_all(self, model: Model, refusal: Rejection, now: float, effects: list[Effect]) -> None:
        for ticket in list(model.queue):
            self._dequeue(model, ticket, now)
            del self._tickets[ticket.arrival.id]
            effects.append(Reject(ticket.arrival.id, refusal))
        self._settle(model, now, effects)

    def _settle(self, model: Model, now: float, effects: list[Effect]) -> None:
        """Give waiters to what is open, then watch what they wait for."""
        if model.queue and model.view is not None:
            candidates = self._open(model)
            for ticket in list(model.queue) if candidates else ():
                self._dequeue(model, ticket, now)
                effects.append(self._grant(model, ticket, candidates, now))
        for replica in model.replicas.values():
            wanted = bool(model.queue) and _answers(replica)
            if wanted and not replica.watched:
                replica.told = False
                effects.append(Watch(replica.view))
            elif replica.watched and not wanted:
                effects.append(Unwatch(replica.uid))
            replica.watched = wanted

    def _load_failed(self, model: Model, replica: Replica, error: LoadError, now: float, effects: list[Effect]) -> None:
        """A supervisor's failure that no retry can heal ends the wait of those who were there before it, unless another replica is on its way.

        What may heal is the operator's to judge; so is an out-of-memory, after which it makes more room and tries once more.
        """
        if error.retry or error.reason == reasons.OUT_OF_MEMORY or model.view is None:
            return
        others = (other for other in model.replicas.values() if other is not replica)
        if any(other.open or (other.status is not None and other.status.state in UNDER_WAY) for other in others):
            return
        before = error.at - self._wall_offset
        refusal = refusals.failed(model.view, error.reason, error.message)
        for ticket in [ticket for ticket in model.queue if replica.known_error is not None or ticket.since <= before]:
            self._dequeue(model, ticket, now)
            del self._tickets[ticket.arrival.id]
            effects.append(Reject(ticket.arrival.id, refusal))

    def _timed_out(self, model: Model, view: ModelView, ticket: Ticket, now: float) -> Rejection:
        """Its wait is over. Whoever is told when to come back finds the model's place kept."""
        refusal = refusals.timed_out(view, now - ticket.since)
        if refusal.code == "hold_timeout" and refusal.retry_after is not None:
            model.returning_until = now + 2 * refusal.retry_after
            self._mark(model.key, now)
        return refusal

    def _drop_wish(self, model: Model, now: float) -> None:
        model.wish = None
        self._rest(model)
        self._mark(model.key, now)

    def _demand(self, key: str, now: float) -> ModelDemand:
        model = self._models.get(key)
        if model is None:
            return ModelDemand(key)
        waiting = [ticket for ticket in model.queue if ticket.unless_open is None]
        return ModelDemand(
            name=key,
            waiting=len(waiting),
            oldest_wait_seconds=int(now - waiting[0].since) if waiting else 0,
            in_flight=model.in_flight,
            returning_seconds=max(0, round(model.returning_until - now)),
            last_used=None if model.last_used is None else model.last_used + self._wall_offset,
            wish=model.wish,
        )


def _answers(replica: Replica) -> bool:
    """Whether its supervisor can be asked."""
    return bool(replica.view.host) and not replica.view.deleting
