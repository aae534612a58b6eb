"""Clients and their requests: each ends exactly once. It counts who waits; it decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from corral.simulate.scenario import RequestSpec

if TYPE_CHECKING:
    from corral.simulate.cluster import Cluster
    from corral.simulate.gateways import Gateway
    from corral.simulate.pods import Supervisor

RETRIES = 20
GOOD_ENDS = frozenset({"answered", "left"})


@dataclass(slots=True)
class Request:
    id: str
    spec: RequestSpec
    arrived: float
    tries: int = 0
    gateway: Gateway | None = None
    supervisor: Supervisor | None = None  # in flight there
    waits_since: float | None = None
    waited: float = 0.0
    outcome: str = ""
    ended_at: float = 0.0
    first_byte: float = 0.0


class Requests:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.all: list[Request] = []
        self.live: dict[str, Request] = {}
        self.waiting: dict[str, dict[str, Request]] = {}  # by model, those who wait in a gateway
        self.wanting: dict[str, int] = {}  # by model: waiting, or told to come back
        self.last_waited: dict[str, float] = {}
        self.gateways: list[Gateway] = []

    def begin(self, spec: RequestSpec, tries: int = 0) -> None:
        request = Request(f"q{len(self.all)}", spec, self.cluster.now, tries)
        self.all.append(request)
        open_gateways = [each for each in self.gateways if each.alive]
        if not open_gateways:
            self.live[request.id] = request
            self.end(request, "gateway_lost")
            return
        self.live[request.id] = request
        gateway = self.cluster.random("balance").choice(open_gateways)
        request.gateway = gateway
        self.cluster.timeline.after(spec.patience, self._leave, request)
        gateway.arrive(request)

    def _leave(self, request: Request) -> None:
        if request.outcome:
            return
        if request.supervisor is not None:
            request.supervisor.done(request)
        gateway = request.gateway
        self.end(request, "left")
        if gateway is not None and gateway.alive:
            gateway.left(request)

    # Told by the gateway.

    def waits(self, request: Request) -> None:
        if request.waits_since is None:
            request.waits_since = self.cluster.now
        model = request.spec.model
        self.waiting.setdefault(model, {})[request.id] = request
        self.last_waited[model] = self.cluster.now
        self._want(request, 1)

    def goes(self, request: Request) -> None:
        """It waits no more: it was granted, refused, or left."""
        if request.waits_since is not None:
            request.waited += self.cluster.now - request.waits_since
            request.waits_since = None
        model = request.spec.model
        if self.waiting.get(model, {}).pop(request.id, None) is not None:
            self.last_waited[model] = self.cluster.now
            self._want(request, -1)

    def _want(self, request: Request, change: int) -> None:
        model = request.spec.model
        before = self.wanting.get(model, 0)
        self.wanting[model] = before + change
        if not before and change > 0:
            self.cluster.watchdog.wanted(model)

    def served(self, request: Request, supervisor: Supervisor) -> None:
        """A replica admitted it."""
        request.supervisor = supervisor
        request.first_byte = self.cluster.now
        self.cluster.watchdog.served(request)
        self.cluster.timeline.after(request.spec.service, self._answered, request, supervisor)

    def _answered(self, request: Request, supervisor: Supervisor) -> None:
        if request.outcome or request.supervisor is not supervisor:
            return
        supervisor.done(request)
        gateway = request.gateway
        self.end(request, "answered")
        if gateway is not None and gateway.alive:
            gateway.ended(request)

    def cut(self, request: Request, outcome: str) -> None:
        """Its replica ended it with an error."""
        if request.outcome or request.supervisor is None:
            return
        request.supervisor.done(request)
        gateway = request.gateway
        self.end(request, outcome)
        if gateway is not None and gateway.alive:
            gateway.ended(request)

    def end(self, request: Request, outcome: str, retry_after: float | None = None) -> None:
        self.cluster.watchdog.ended(request, outcome)
        self.goes(request)
        request.outcome, request.ended_at = outcome, self.cluster.now
        request.supervisor = None
        self.live.pop(request.id, None)
        if request.spec.retry and retry_after is not None and request.tries < RETRIES:
            self._want(request, 1)
            self.cluster.timeline.after(retry_after, self._again, request)

    def _again(self, request: Request) -> None:
        self._want(request, -1)
        self.begin(request.spec, request.tries + 1)
