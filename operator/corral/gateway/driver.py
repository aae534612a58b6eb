"""The shell around the machine: carries its effects out, brings it the directory's changes and the passing of time, publishes its reports.

It owns no decision. One task per watched replica follows the replica's status; one timer serves all deadlines.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from corral.gateway.effects import Arrival, Effect, Grant, Reject, ReplicaStatus, Unwatch, Wait, Watch
from corral.gateway.machine import Machine
from corral.gateway.ports import Clock, Directory, ModelView, ReplicaView, Report, ReportSink
from corral.gateway.watching import Watcher

log = logging.getLogger("corral.gateway")

Outcome = Grant | Reject
_OWN = (Grant, Reject)


class Driver:
    """Implements `DirectoryListener`."""

    def __init__(self, machine: Machine, directory: Directory, sink: ReportSink, watcher: Watcher, clock: Clock) -> None:
        self.machine = machine
        self.directory = directory
        self._sink = sink
        self._watcher = watcher
        self._clock = clock
        self.now = clock.monotonic
        self._waiters: dict[str, asyncio.Future[Outcome]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._publishing: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False
        self.reports_stored = 0
        self.reports_failed = 0
        self.listeners: list[Callable[[str], None]] = []
        """Told the key of every model that changed: the event streams of the router API."""

    def start(self) -> None:
        """Take over what is in the directory, and follow it from now on. Call it on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._watcher.start(self)
        self._unsubscribe = self.directory.subscribe(self)
        for model in list(self.directory.models.values()):
            self.model_changed(model)
        for replica in list(self.directory.replicas.values()):
            self.replica_changed(replica)

    async def stop(self) -> None:
        self._stopped = True
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._timer is not None:
            self._timer.cancel()
        await self._watcher.stop()
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)

    def refuse_waiting(self) -> None:
        """The grace period is over: whoever still waits is told so."""
        self.apply(self.machine.close(self.now()))

    # DirectoryListener

    def model_changed(self, model: ModelView) -> None:
        self.apply(self.machine.model_changed(model, self.now()))
        self._tell(model.key)

    def model_removed(self, key: str) -> None:
        self.apply(self.machine.model_removed(key, self.now()))
        self._tell(key)

    def replica_changed(self, replica: ReplicaView) -> None:
        self.apply(self.machine.replica_changed(replica, self.now()))

    def replica_removed(self, uid: str) -> None:
        self.apply(self.machine.replica_removed(uid, self.now()))

    # What watched replicas say

    def replica_status(self, uid: str, status: ReplicaStatus) -> None:
        self.apply(self.machine.replica_status(uid, status, self.now()))
        replica = self.directory.replicas.get(uid)
        if replica is not None:
            self._tell(replica.model)

    def replica_unreachable(self, uid: str) -> None:
        self.apply(self.machine.replica_unreachable(uid, self.now()))

    # Requests

    def arrive(self, arrival: Arrival, now: float) -> Grant | Reject | asyncio.Future[Outcome]:
        """The machine's answer; for Wait a future of the answer to come."""
        return self._own(arrival.id, self.machine.arrive(arrival, now))

    def refused(self, request: str, *, unreachable: bool) -> Grant | Reject | asyncio.Future[Outcome]:
        return self._own(request, self.machine.refused(request, self.now(), unreachable=unreachable))

    def ended(self, request: str, *, served: bool) -> None:
        effects = self.machine.ended(request, self.now(), served=served)
        if effects or self.machine.sooner:
            self.apply(effects)

    def left(self, request: str) -> None:
        self._waiters.pop(request, None)
        self.apply(self.machine.left(request, self.now()))

    def wish(self, key: str, action: str) -> bool:
        known = self.machine.wish(key, action, int(self._clock.time() * 1000), self.now())
        self._rearm()
        return known

    def _own(self, request: str, effects: list[Effect]) -> Grant | Reject | asyncio.Future[Outcome]:
        """Split the effect of the caller's own request off, and carry out the rest."""
        first = effects[0] if len(effects) == 1 else None
        if isinstance(first, _OWN):
            if self.machine.sooner:
                self._rearm()
            return first
        own: Grant | Reject | asyncio.Future[Outcome] | None = None
        rest: list[Effect] = []
        for effect in effects:
            if isinstance(effect, _OWN) and effect.request == request:
                own = effect
            elif isinstance(effect, Wait):
                pass
            else:
                rest.append(effect)
        if own is None:
            assert self._loop is not None  # noqa: S101 - requests come after start
            own = self._waiters[request] = self._loop.create_future()
        self.apply(rest)
        return own

    # Effects

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, _OWN):
                waiter = self._waiters.pop(effect.request, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(effect)
                elif isinstance(effect, Grant):  # its client left in this very moment
                    self.machine.left(effect.request, self.now())
            elif isinstance(effect, Watch):
                self._watcher.watch(effect.replica)
            elif isinstance(effect, Unwatch):
                self._watcher.unwatch(effect.uid)
        self._rearm()

    def _rearm(self) -> None:
        at = self.machine.wake_at(reports=self._publishing is None)
        if at is None or self._stopped or self._loop is None or at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - self.now()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._timer_at = float("inf")
        now = self.now()
        self.apply(self.machine.tick(now))
        if self._publishing is None:
            report = self.machine.report(now)
            if report is not None:
                self._publishing = asyncio.ensure_future(self._publish(report))
        self._rearm()

    async def _publish(self, report: Report) -> None:
        try:
            await self._sink.publish(report)
            self.reports_stored += 1
        except Exception:
            self.reports_failed += 1
            log.exception("report %d was not stored; what is true then goes out in a second", report.sequence)
            self.machine.report_lost(report, self.now())
        self._publishing = None
        self._rearm()

    def _tell(self, key: str) -> None:
        for listener in tuple(self.listeners):
            listener(key)
