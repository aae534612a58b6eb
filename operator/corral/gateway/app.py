"""The data path: a bare ASGI application over one `Gateway`, which ties machine, driver, client and settings together.

It owns which handler a path has and what is counted of every request. It holds no routing decision: the machine does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

from corral.gateway import errors
from corral.gateway.access import Access
from corral.gateway.bodies import BodyBudget, ClientGone, Receive, read_whole
from corral.gateway.clock import SystemClock
from corral.gateway.coldstarts import ColdStarts
from corral.gateway.driver import Driver
from corral.gateway.effects import Rejection
from corral.gateway.errors import Refused
from corral.gateway.exchange import Exchange, request_id_of
from corral.gateway.keys import ApiKey, KeyStore, MemoryKeys
from corral.gateway.limits import Limiter
from corral.gateway.listing import Listing
from corral.gateway.machine import Machine
from corral.gateway.metrics import Metrics
from corral.gateway.ports import Clock, Directory, ModelView, ReportSink, Tokens, names_of
from corral.gateway.router_api import RouterApi
from corral.gateway.routes import allowed_methods, proxied, shape_of
from corral.gateway.settings import GatewaySettings
from corral.gateway.upstream import Upstream
from corral.gateway.watching import Watcher

log = logging.getLogger("corral.gateway")

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Gateway:
    """The ASGI application. `start` and `stop` on the event loop that serves it."""

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
        exposed = settings.host not in {"127.0.0.1", "::1", "localhost"}
        self.access = Access(keys if keys is not None else MemoryKeys(), Limiter(lambda: directory.live_gateways), exposed=exposed)
        self._cold_starts = ColdStarts()
        self._sink = sink
        self._count = 0
        self._started = False
        self._listing = Listing(self.machine)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.upstream = Upstream(self.settings, loop)
        self.driver = Driver(self.machine, self.directory, self._sink, Watcher(self.upstream, self.tokens), self.clock)
        self.router = RouterApi(self.driver)
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

    @property
    def ready(self) -> bool:
        return self._started and not self.stopping and self.directory.synced

    def next_id(self) -> str:
        self._count += 1
        return str(self._count)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._not_http(scope, receive, send)
            return
        self.open_requests += 1
        try:
            route = proxied(scope["method"], scope["path"])
            if route is not None and scope["path"] == "/props" and scope["method"] == "GET" and b"model=" not in scope["query_string"]:
                route = None  # the gateway's own properties
            if route is not None:
                exchange = Exchange(self, route, scope, receive, send)
                connection = scope.get("corral.connection")
                if connection is not None:
                    connection.on_gone = exchange.client_gone
                    await exchange.run()
                else:
                    await _watched(exchange, receive)
            else:
                await self._local(scope, receive, send)
        finally:
            self.open_requests -= 1

    # What exchanges report

    def arrived(self, exchange: Exchange, *, resident: bool) -> None:
        if resident:
            self.metrics.hit(exchange.key)
        elif self.machine.view(exchange.key) is not None:
            self.metrics.misses.labels(exchange.key).inc()

    def sending(self, exchange: Exchange) -> None:
        """A request is about to be sent."""
        self.metrics.added(max(0.0, self.driver.now() - exchange.arrived - exchange.waited))

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
        exchange.release()
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
        return metrics.page()

    def cut(self, exchange: Exchange) -> None:
        """End the client's connection in the middle of an answer."""
        connection = exchange.scope.get("corral.connection")
        if connection is None:
            raise ConnectionAbortedError("the pod's answer broke off")
        connection.cut()

    # What is answered here

    async def _local(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        request_id = request_id_of(scope["headers"])
        try:
            key = None if path in _PUBLIC else self.access.authenticate(scope["headers"])
            if path == "/models/sse" and scope["method"] == "GET":
                await self._events(scope, request_id, receive, send)
                return
            body = await self._page(scope, key, receive)
            status, headers = 200, [(b"content-type", b"application/json")]
        except ClientGone:
            return
        except Refused as refused:
            rejection = refused.rejection
            status, body = rejection.status, errors.error_body(shape_of(path), rejection)
            headers = errors.error_headers(rejection) + list(refused.headers)
        headers += [(b"content-length", b"%d" % len(body)), (b"x-request-id", request_id)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _page(self, scope: Scope, key: ApiKey | None, receive: Receive) -> bytes:
        method, path = scope["method"], scope["path"]

        def allowed(model: ModelView) -> bool:
            return key is None or key.may_use(*names_of(model))

        if path in ("/models/load", "/models/unload"):
            if method != "POST":
                raise _wrong_method("POST")
            self.access.need(key, "admin")
            kept = await read_whole(receive, scope["headers"], self.bodies)
            try:
                act = self.router.load if path == "/models/load" else self.router.unload
                return act(kept.in_memory or b"", lambda model, asked: self.access.need_model(key, model, asked))
            finally:
                kept.close()
        pages: dict[str, Callable[[], bytes]] = {
            "/models": lambda: self.router.models(allowed),
            "/v1/models": lambda: self._listing.all(allowed),
            "/props": self.router.props,
            "/health": lambda: _HEALTHY,
            "/v1/health": lambda: _HEALTHY,
        }
        page = pages.get(path)
        if page is None and path.startswith("/v1/models/"):
            page = partial(self._listing.one, path[len("/v1/models/") :], allowed)
        if page is not None:
            if method != "GET":
                raise _wrong_method("GET")
            return page()
        methods = allowed_methods(path)
        if methods:
            raise _wrong_method(", ".join(sorted(methods)))
        raise Refused(Rejection(404, "not_found", f"there is nothing at {method} {path}"))

    async def _events(self, scope: Scope, request_id: bytes, receive: Receive, send: Send) -> None:
        """`GET /models/sse`, until its client or this gateway goes."""
        queue = self.router.subscribe()
        connection = scope.get("corral.connection")
        watcher: asyncio.Task[None] | None = None
        if connection is not None:
            connection.on_gone = lambda: _put_end(queue)
        else:
            watcher = asyncio.ensure_future(_until_gone(receive, queue))
        headers = [(b"content-type", _EVENTS), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"), (b"x-request-id", request_id)]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b": connected\n\n", "more_body": True})
            while True:
                try:
                    async with asyncio.timeout(_PING_SECONDS):
                        event = await queue.get()
                except TimeoutError:
                    event = b": ping\n\n"
                if event is None:
                    break
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.router.unsubscribe(queue)
            if watcher is not None:
                watcher.cancel()

    @staticmethod
    async def _not_http(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1002})


_HEALTHY = b'{"status":"ok"}'
_PUBLIC = frozenset({"/health", "/v1/health"})
_EVENTS = b"text/event-stream; charset=utf-8"
_PING_SECONDS = 15.0


def _put_end(queue: asyncio.Queue[bytes | None]) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(None)


async def _until_gone(receive: Receive, queue: asyncio.Queue[bytes | None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    _put_end(queue)


def _wrong_method(allowed: str) -> Refused:
    return Refused(Rejection(405, "method_not_allowed", f"use {allowed} here"), ((b"allow", allowed.encode()),))


async def _watched(exchange: Exchange, receive: Receive) -> None:
    """Under a server other than `corral.gateway.server`: notice a client that leaves by a task that waits for the server to say so.

    The body has to be read first, from the same `receive`; until then its own disconnect message tells.
    """
    read = asyncio.Event()

    async def until_read() -> MutableMapping[str, Any]:
        try:
            message = await receive()
        except BaseException:
            read.set()
            raise
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            read.set()
        return message

    async def watch() -> None:
        await read.wait()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                exchange.client_gone()
                return

    exchange.receive = until_read
    watcher = asyncio.ensure_future(watch())
    try:
        await exchange.run()
    except ClientGone:
        pass
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


def create_app(
    directory: Directory,
    sink: ReportSink,
    signer: Tokens,
    settings: GatewaySettings | None = None,
    clock: Clock | None = None,
    keys: KeyStore | None = None,
) -> Gateway:
    """The gateway as an ASGI application; `await app.start()` before the first request, `await app.stop()` after the last."""
    return Gateway(directory, sink, signer, settings or GatewaySettings(), clock or SystemClock(), keys)
