"""The data path: a bare ASGI application over one `Gateway`, which ties machine, driver, client and settings together.

It owns which handler a path has and what is counted of every request. It holds no routing decision: the machine does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from corral.gateway import errors
from corral.gateway.bodies import BodyBudget, ClientGone, Receive
from corral.gateway.clock import SystemClock
from corral.gateway.driver import Driver
from corral.gateway.effects import Rejection
from corral.gateway.errors import Refused
from corral.gateway.exchange import Exchange, request_id_of
from corral.gateway.listing import Listing
from corral.gateway.machine import Machine
from corral.gateway.ports import Clock, Directory, ReportSink, Tokens
from corral.gateway.routes import allowed_methods, proxied, shape_of
from corral.gateway.settings import GatewaySettings
from corral.gateway.upstream import Upstream
from corral.gateway.watching import Watcher

log = logging.getLogger("corral.gateway")

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Gateway:
    """The ASGI application. `start` and `stop` on the event loop that serves it."""

    def __init__(self, directory: Directory, sink: ReportSink, tokens: Tokens, settings: GatewaySettings, clock: Clock) -> None:
        self.directory = directory
        self.tokens = tokens
        self.settings = settings
        self.clock = clock
        self.machine = Machine(wall_offset=clock.time() - clock.monotonic(), first_sequence=int(clock.time()), held_bytes_max=settings.held_bytes_max)
        self.bodies = BodyBudget(settings)
        self.held_in_memory: set[Exchange] = set()
        self.stopping = False
        self.open_requests = 0
        self._sink = sink
        self._count = 0
        self._started = False
        self._listing = Listing(self.machine)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.upstream = Upstream(self.settings, loop)
        self.driver = Driver(self.machine, self.directory, self._sink, Watcher(self.upstream, self.tokens), self.clock)
        self.driver.start()
        self._started = True

    async def stop(self) -> None:
        self.stopping = True
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
            if route is not None:
                exchange = Exchange(self, route, scope, receive, send)
                connection = scope.get("corral.connection")
                if connection is not None:
                    connection.on_gone = exchange.client_gone
                    await exchange.run()
                else:
                    await _watched(exchange, receive)
            else:
                await self._local(scope, send)
        finally:
            self.open_requests -= 1

    # What exchanges report

    def held(self, exchange: Exchange) -> None:
        """A request begins to wait. Its body stays in memory only while few bytes wait there."""
        if exchange.body is not None and exchange.body.in_memory is not None:
            total = exchange.body.size + sum(other.body.size for other in self.held_in_memory if other.body is not None)
            if total > self.settings.held_in_memory:
                exchange.body.spill()
            else:
                self.held_in_memory.add(exchange)

    def released(self, exchange: Exchange) -> None:
        self.held_in_memory.discard(exchange)

    def came_back(self, exchange: Exchange) -> None:
        """A pod did not take it."""

    def finished(self, exchange: Exchange) -> None:
        exchange.release()
        if exchange.grant is not None:
            self.driver.ended(exchange.id, served=exchange.served)
        else:
            self.driver.left(exchange.id)

    def cut(self, exchange: Exchange) -> None:
        """End the client's connection in the middle of an answer."""
        connection = exchange.scope.get("corral.connection")
        if connection is None:
            raise ConnectionAbortedError("the pod's answer broke off")
        connection.cut()

    # What is answered here

    async def _local(self, scope: Scope, send: Send) -> None:
        path: str = scope["path"]
        request_id = request_id_of(scope["headers"])
        try:
            body = self._page(scope["method"], path)
            status, headers = 200, [(b"content-type", b"application/json")]
        except Refused as refused:
            rejection = refused.rejection
            status, body = rejection.status, errors.error_body(shape_of(path), rejection)
            headers = errors.error_headers(rejection) + list(refused.headers)
        headers += [(b"content-length", b"%d" % len(body)), (b"x-request-id", request_id)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _page(self, method: str, path: str) -> bytes:
        if path == "/v1/models" or path.startswith("/v1/models/"):
            if method != "GET":
                raise _wrong_method("GET")
            return self._listing.all() if path == "/v1/models" else self._listing.one(path[len("/v1/models/") :])
        if path in ("/health", "/v1/health") and method == "GET":
            return b'{"status":"ok"}'
        allowed = allowed_methods(path)
        if allowed:
            raise _wrong_method(", ".join(sorted(allowed)))
        raise Refused(Rejection(404, "not_found", f"there is nothing at {method} {path}"))

    @staticmethod
    async def _not_http(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1002})


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
) -> Gateway:
    """The gateway as an ASGI application; `await app.start()` before the first request, `await app.stop()` after the last."""
    return Gateway(directory, sink, signer, settings or GatewaySettings(), clock or SystemClock())
