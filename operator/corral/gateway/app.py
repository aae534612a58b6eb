"""The gateway: one object that ties machine, driver, client and settings together, and gives each request to who answers it.

It owns which handler a path has and what is counted of every request. It holds no routing decision: the machine does.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from corral.gateway.access import Access
from corral.gateway.bodies import BodyBudget
from corral.gateway.clock import SystemClock
from corral.gateway.coldstarts import ColdStarts
from corral.gateway.driver import Driver
from corral.gateway.effects import Grant
from corral.gateway.exchange import Exchange
from corral.gateway.keys import KeyStore, MemoryKeys
from corral.gateway.limits import Limiter
from corral.gateway.machine import Machine
from corral.gateway.metrics import Metrics
from corral.gateway.pages import Pages
from corral.gateway.ports import Clock, Directory, ReplicaView, ReportSink, Tokens
from corral.gateway.replies import Reply
from corral.gateway.requests import Request
from corral.gateway.retrieval import Retrieval
from corral.gateway.router_api import RouterApi
from corral.gateway.routes import PROXIED, Carries, proxied
from corral.gateway.settings import GatewaySettings
from corral.gateway.tracing import tracing_from
from corral.gateway.upstream import Upstream
from corral.gateway.watching import Watcher

log = logging.getLogger("corral.gateway")

PREFIX_SECONDS = 5.0
"""How long a pod's token is used without asking the signer whether it has a newer one."""
_POSTS = {path.encode(): route for (method, path), route in PROXIED.items() if method == "POST" and "{" not in path and not route.called}
"""By what a request line says when it has no query: nearly all requests."""


class Gateway:
    """`start` and `stop` on the event loop that serves it; `serve` for each request."""

    def __init__(
        self, directory: Directory, sink: ReportSink, tokens: Tokens, settings: GatewaySettings, clock: Clock, keys: KeyStore | None = None
    ) -> None:
        self.directory = directory
        self.tokens = tokens
        self.settings = settings
        self.clock = clock
        self.machine = Machine(wall_offset=clock.time() - clock.monotonic(), first_sequence=int(clock.time()), held_bytes_max=settings.held_bytes_max)
        self.bodies = BodyBudget(settings)
        self.held_in_memory: set[Exchange] = set()
        self.stopping = False
        self.open_requests = 0
        self.metrics = Metrics()
        self.registries: list[CollectorRegistry] = [self.metrics.registry]
        """What the page of metrics shows; an operator in the same process adds its own."""
        exposed = settings.host not in {"127.0.0.1", "::1", "localhost"}
        self.access = Access(keys if keys is not None else MemoryKeys(), Limiter(lambda: directory.live_gateways), exposed=exposed)
        self.tracing = tracing_from(os.environ)
        self._cold_starts = ColdStarts()
        self._sink = sink
        self._count = 0
        self._started = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._prefixes: dict[str, tuple[float, str, bytes]] = {}

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.upstream = Upstream(self.settings, loop)
        self.driver = Driver(self.machine, self.directory, self._sink, Watcher(self.upstream, self.tokens), self.clock)
        self.router = RouterApi(self.driver)
        self.pages = Pages(self)
        self.driver.listeners.append(self._model_told)
        self.driver.start()
        self._started = True

    def begin_stop(self) -> None:
        """Not ready from now on; what has no end of its own ends."""
        self.stopping = True
        self.router.end()

    async def stop(self) -> None:
        self.begin_stop()
        await self.driver.stop()
        self.upstream.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.tracing is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.tracing.close)

    @property
    def ready(self) -> bool:
        return self._started and not self.stopping and self.directory.synced

    def next_id(self) -> str:
        self._count += 1
        return str(self._count)

    @property
    def arrivals(self) -> int:
        """Requests for models that came so far."""
        return self._count

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run it to its end, or to that of the gateway."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def serve(self, request: Request, reply: Reply) -> None:
        """A request of the data path; `connections.Serve`."""
        self.open_requests += 1
        route = _POSTS.get(request.target) if request.method == b"POST" else None
        if route is None:
            if not request.split():
                request.path = ""
            else:
                route = proxied(request.method.decode(), request.path)
                if route is not None and request.path == "/props" and request.method == b"GET" and b"model=" not in request.query:
                    route = None  # the gateway's own properties
                elif route is not None and route.called:
                    request.target = route.called + b"?" + request.query if request.query else route.called
        if route is None:
            self.spawn(self._page(request, reply))
        elif route.carries is Carries.PATH:
            Retrieval(self, route, request, reply).begin()
        else:
            Exchange(self, route, request, reply).begin()

    async def _page(self, request: Request, reply: Reply) -> None:
        try:
            await self.pages.answer(request, reply)
        finally:
            self.open_requests -= 1

    # What exchanges ask

    def prefix_of(self, replica: ReplicaView) -> bytes:
        """What every request to this pod says, between its target and its id."""
        kept = self._prefixes.get(replica.uid)
        now = self.driver.now()
        if kept is not None and now < kept[0] and kept[1] == replica.host:
            return kept[2]
        if len(self._prefixes) > 4096:
            self._prefixes.clear()
        token = self.tokens.infer_token(replica.uid)
        text = f" HTTP/1.1\r\nhost: {replica.host}\r\nauthorization: Bearer {token}\r\nx-request-id: ".encode()
        self._prefixes[replica.uid] = (now + PREFIX_SECONDS, replica.host, text)
        return text

    @staticmethod
    def marks_of(grant: Grant) -> bytes:
        """Which model and which replica answered, as the end of the line with the id and two more lines."""
        replica = grant.replica
        return f"\r\nx-corral-model: {replica.model}\r\nx-corral-replica: {replica.pod}\r\n".encode()

    # What exchanges report

    def missed(self, exchange: Exchange) -> None:
        """Its model was not resident when it arrived."""
        if self.machine.view(exchange.key) is not None:
            self.metrics.misses.labels(exchange.key).inc()

    def sending(self, exchange: Exchange) -> None:
        """A request is being sent."""
        self.metrics.added(self.driver.now() - exchange.arrived - exchange.waited)

    def held(self, exchange: Exchange) -> None:
        """A request begins to wait. Its body stays in memory only while few bytes wait there."""
        self._cold_starts.waiting(exchange.key, self.driver.now())
        if exchange.body is not None and exchange.body.in_memory is not None:
            total = exchange.body.size + sum(other.body.size for other in self.held_in_memory if other.body is not None)
            if total > self.settings.held_in_memory:
                exchange.body.spill()
            else:
                self.held_in_memory.add(exchange)

    def released(self, exchange: Exchange) -> None:
        """It waits no more, for whatever reason."""
        self.held_in_memory.discard(exchange)
        key = exchange.key
        if self.machine.view(key) is None:
            return
        self.metrics.hold_seconds.labels(key).observe(exchange.waited)
        if self.machine.resident(key):
            for phase, seconds in self._cold_starts.ready(key, self.driver.now()).items():
                self.metrics.cold_start.labels(key, phase).observe(seconds)
        elif not self.machine.waiting(key):
            self._cold_starts.nobody(key)

    def first_byte(self, exchange: Exchange, seconds: float) -> None:
        """The first bytes of an answer that was waited for."""
        self.metrics.cold_start.labels(exchange.key, "first_token").observe(seconds)

    def came_back(self, exchange: Exchange) -> None:
        """A pod did not take it."""
        self.metrics.returned.labels(exchange.key).inc()

    def finished(self, exchange: Exchange) -> None:
        """It has given back everything but its place."""
        self.open_requests -= 1
        if exchange.span is not None and self.tracing is not None:
            self.tracing.end(exchange)
        if exchange.grant is not None:
            self.driver.ended(exchange.id, served=exchange.served)
        else:
            self.driver.left(exchange.id)
        self.metrics.ended(exchange.key if self.machine.view(exchange.key) is not None else "", exchange.status)

    def _model_told(self, key: str) -> None:
        if self.machine.view(key) is None:
            self.metrics.forget(key)
            self._cold_starts.nobody(key)
        else:
            self._cold_starts.state(key, self.machine.progress(key)[0], self.driver.now())

    def metrics_page(self) -> bytes:
        """The gauges are read from the machine when somebody looks."""
        metrics, machine = self.metrics, self.machine
        for key in self.directory.models:
            metrics.in_flight.labels(key).set(machine.in_flight(key))
            metrics.waiting.labels(key).set(machine.waiting(key))
        metrics.held_bytes.set(machine.held_bytes)
        metrics.count_retries(self.upstream.retries)
        metrics.count_reports(self.driver.reports_stored, self.driver.reports_failed)
        return b"".join(generate_latest(registry) for registry in self.registries)


def create_app(
    directory: Directory,
    sink: ReportSink,
    signer: Tokens,
    settings: GatewaySettings | None = None,
    clock: Clock | None = None,
    keys: KeyStore | None = None,
) -> Gateway:
    """The gateway, to be served by `corral.gateway.server`."""
    return Gateway(directory, sink, signer, settings or GatewaySettings(), clock or SystemClock(), keys)
