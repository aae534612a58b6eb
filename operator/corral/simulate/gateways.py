"""A simulated gateway: the real state machine, with watches that come late and a network that takes its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corral.domain import reasons
from corral.gateway.effects import Arrival, Effect, Grant, LoadError, Reject, ReplicaStatus, Unwatch, Watch
from corral.gateway.effects import Wait as Waits
from corral.gateway.machine import Machine
from corral.gateway.ports import Hold, ModelView, ReplicaView
from corral.simulate.pods import Record, Supervisor
from corral.simulate.scenario import START

if TYPE_CHECKING:
    from corral.simulate.cluster import Cluster
    from corral.simulate.requests import Request

# What the operator alone may call for good, as the status tells it.
NEVER = frozenset({reasons.DOES_NOT_FIT, reasons.PINNED_DOES_NOT_FIT, reasons.NO_DEVICES})


class Gateway:
    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.alive = True
        self.machine = Machine(wall_offset=START)
        self.drop_refused = False  # a mutation: who is refused by a draining pod is forgotten
        self._watched: set[str] = set()
        self._sent: dict[str, str] = {}  # request -> uid, on its way or in flight
        self._tick_at = float("inf")

    def start(self) -> None:
        self.cluster.watch(self.name, self._seen)
        self.cluster.supervisor_listeners[self.name] = self._supervisor
        for key in self.cluster.models:
            self._seen("model", key)
        for record in self.cluster.pods.values():
            self._seen("pod", record)

    def crash(self) -> None:
        """Its clients see their connections end; its pods' own streams end with them."""
        self.alive = False
        self.cluster.unwatch(self.name)
        self.cluster.note(f"gateway {self.name} dies")
        for request in [each for each in self.cluster.requests.live.values() if each.gateway is self]:
            if request.supervisor is not None:
                request.supervisor.done(request)
            self.cluster.requests.end(request, "gateway_lost")
        self.cluster.timeline.after(2.0, self.cluster.put_report, self.name, 0, None)

    @property
    def now(self) -> float:
        return self.cluster.now

    # What it sees.

    def _seen(self, kind: str, value: Any) -> None:
        if kind == "model":
            self._model(value)
        elif kind == "pod":
            self._pod(value)
        elif kind == "pod-gone":
            self._do(self.machine.replica_removed(value.uid, self.now))
        self._schedule()

    def _model(self, key: str) -> None:
        facts = self.cluster.models.get(key)
        if facts is None:
            self._do(self.machine.model_removed(key, self.now))
            return
        reason, stalled, message = facts.verdict
        spec = facts.spec
        view = ModelView(
            spec.namespace,
            spec.name,
            state=reason or "Idle",
            ready=not stalled,
            reason=reason,
            stalled=stalled,
            stalled_reason=reason if stalled else "",
            stalled_message=message if stalled else "",
            hold=Hold(timeout=self.cluster.scenario.pool.hold_timeout),
            max_replicas=spec.max_replicas,
            acknowledged_wish=facts.wish_done,
        )
        self._do(self.machine.model_changed(view, self.now))

    def _pod(self, record: Record) -> None:
        host = record.uid if record.scheduled else ""
        view = ReplicaView(record.model, record.name, record.uid, host, deleting=record.deleting, node=record.node)
        self._do(self.machine.replica_changed(view, self.now))

    def _supervisor(self, supervisor: Supervisor) -> None:
        if supervisor.uid in self._watched:
            self.cluster.timeline.after(self.cluster.delay("call", self.name), self._status, supervisor)

    def _status(self, supervisor: Supervisor) -> None:
        if not self.alive or supervisor.uid not in self._watched:
            return
        if not supervisor.alive or supervisor.silent_until > self.now or self.cluster.partitioned(supervisor.devices[0].node):
            self._do(self.machine.replica_unreachable(supervisor.uid, self.now))
            self.cluster.timeline.after(0.5, self._status, supervisor)
        else:
            error = supervisor.error
            told = None if error is None else LoadError(error[0], error[1], retry=True, at=error[2])
            status = ReplicaStatus(str(supervisor.state), supervisor.admitting, 0.0, told)
            self._do(self.machine.replica_status(supervisor.uid, status, self.now))
        self._schedule()

    # Requests.

    def arrive(self, request: Request) -> None:
        self._do(self.machine.arrive(Arrival(request.id, request.spec.model), self.now))
        self._schedule()

    def left(self, request: Request) -> None:
        self._sent.pop(request.id, None)
        self._do(self.machine.left(request.id, self.now))
        self._schedule()

    def ended(self, request: Request) -> None:
        self._sent.pop(request.id, None)
        self._do(self.machine.ended(request.id, self.now))
        self._schedule()

    def _do(self, effects: list[Effect]) -> None:
        requests = self.cluster.requests
        for effect in effects:
            if isinstance(effect, Grant):
                request = requests.live.get(effect.request)
                if request is None:
                    continue
                requests.goes(request)
                self._sent[request.id] = effect.replica.uid
                self.cluster.timeline.after(self.cluster.delay("call", self.name), self._send, request, effect.replica.uid)
            elif isinstance(effect, Waits):
                request = requests.live.get(effect.request)
                if request is not None:
                    requests.waits(request)
            elif isinstance(effect, Reject):
                request = requests.live.get(effect.request)
                if request is not None:
                    rejection = effect.rejection
                    requests.end(request, rejection.code, None if rejection.retry_after is None else float(rejection.retry_after))
            elif isinstance(effect, Watch):
                self._watched.add(effect.replica.uid)
                supervisor = self.cluster.supervisors.get(effect.replica.uid)
                if supervisor is not None:
                    self.cluster.timeline.after(self.cluster.delay("call", self.name), self._status, supervisor)
            elif isinstance(effect, Unwatch):
                self._watched.discard(effect.uid)

    def _send(self, request: Request, uid: str) -> None:
        if not self.alive or request.outcome or self._sent.get(request.id) != uid:
            return
        supervisor = self.cluster.supervisors.get(uid)
        unreachable = supervisor is None or supervisor.silent_until > self.now or self.cluster.partitioned(supervisor.devices[0].node)
        if not unreachable and supervisor is not None and supervisor.admit(request):
            self.cluster.requests.served(request, supervisor)
            return
        del self._sent[request.id]
        if self.drop_refused:
            return
        self._do(self.machine.refused(request.id, self.now, unreachable=unreachable))
        self._schedule()

    # Time.

    def _schedule(self) -> None:
        """One alarm for holds that end and reports that are due."""
        at = self.machine.wake_at()
        if at is not None and at < self._tick_at:
            self._tick_at = at
            self.cluster.timeline.at(at, self._tick, at)

    def _tick(self, at: float) -> None:
        if not self.alive or at != self._tick_at:
            return
        self._tick_at = float("inf")
        self._do(self.machine.tick(self.now))
        report = self.machine.report(self.now)
        if report is not None:
            entries = {each.name: each for each in report.models}
            delay = self.cluster.delay("write", self.name)
            self.cluster.timeline.after(delay, self._publish, report.sequence, entries)
        self._schedule()

    def _publish(self, sequence: int, entries: dict[str, Any]) -> None:
        if self.alive:
            self.cluster.put_report(self.name, sequence, entries)
