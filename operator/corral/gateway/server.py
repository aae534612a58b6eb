"""Two listening ports and a graceful end. It owns connections; of requests it knows only how to count them.

`GatewayServer.start()` listens, `stop()` ends in this order: readiness false; new requests are still taken until none came for `settle` seconds; then
no new connections and existing requests, up to `settle` and `grace` seconds in all; then whoever still waits is refused, then the rest is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from corral.gateway.admin import Admin
from corral.gateway.app import Gateway
from corral.gateway.connections import ClientConnection, Serve, Shared
from corral.gateway.origins import nobody
from corral.gateway.settings import GatewaySettings

log = logging.getLogger("corral.gateway")


class Listener:
    """One port, with its connections."""

    def __init__(self, serve: Serve, settings: GatewaySettings, *, host: str, port: int, allow_origin: Callable[[bytes], bytes] = nobody) -> None:
        self._settings = settings
        self._shared = Shared(serve, settings, allow_origin)
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._clock: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ClientConnection(self._shared, loop), self._host, self._port, backlog=2048)
        self._tick()

    @property
    def port(self) -> int:
        assert self._server is not None  # noqa: S101 - asked after start
        address: tuple[Any, ...] = self._server.sockets[0].getsockname()
        return int(address[1])

    @property
    def connections(self) -> list[ClientConnection]:
        return list(self._shared.connections)

    def close_soon(self) -> None:
        for connection in self.connections:
            connection.close_soon()

    def stop_accepting(self) -> None:
        if self._server is not None:
            self._server.close()

    def close_idle(self) -> None:
        for connection in self.connections:
            if not connection.busy:
                connection.transport.close()

    async def finish(self) -> None:
        """Cut whatever is left."""
        if self._clock is not None:
            self._clock.cancel()
        self.stop_accepting()
        for connection in self.connections:
            connection.transport.abort()
        await asyncio.sleep(0)

    def _tick(self) -> None:
        """The date header, and connections that took too long."""
        loop = asyncio.get_running_loop()
        self._shared.date_line = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        now = loop.time()
        for connection in self.connections:
            connection.sweep(now)
        settings = self._settings
        limits = (settings.header_timeout, settings.keep_alive, settings.client_stall)
        self._clock = loop.call_later(min(1.0, min(limits) / 4), self._tick)


class GatewayServer:
    """A gateway on its two ports."""

    def __init__(self, gateway: Gateway) -> None:
        settings = gateway.settings
        self.gateway = gateway
        self._data = Listener(gateway.serve, settings, host=settings.host, port=settings.port, allow_origin=gateway.access.allow_origin)
        self._admin = Listener(Admin(gateway).serve, settings, host=settings.admin_host, port=settings.admin_port)

    async def start(self) -> None:
        await self.gateway.start()
        await self._data.start()
        await self._admin.start()
        log.info("serving on port %d, administration on port %d", self.port, self.admin_port)

    @property
    def port(self) -> int:
        return self._data.port

    @property
    def admin_port(self) -> int:
        return self._admin.port

    @property
    def connections(self) -> int:
        """Open client connections of the data path."""
        return len(self._data.connections)

    async def stop(self) -> None:
        gateway, settings = self.gateway, self.gateway.settings
        gateway.begin_stop()
        self._data.close_soon()
        deadline = asyncio.get_running_loop().time() + settings.settle + settings.grace
        await self._until_quiet(settings.settle, deadline)
        self._data.stop_accepting()
        self._data.close_soon()
        await self._until_done(deadline - asyncio.get_running_loop().time())
        gateway.driver.refuse_waiting()
        await self._until_done(0.5)
        await self._data.finish()
        await gateway.stop()
        await self._admin.finish()

    async def _until_quiet(self, settle: float, deadline: float) -> None:
        """Until whoever routes to this gateway has stopped: what still comes says that somebody has not heard yet."""
        loop = asyncio.get_running_loop()
        while settle:
            before = self.gateway.arrivals
            await asyncio.sleep(min(settle, max(0.0, deadline - loop.time())))
            self._data.close_soon()
            if self.gateway.arrivals == before or loop.time() >= deadline:
                return

    async def _until_done(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while loop.time() < deadline:
            self._data.close_soon()
            if not self.gateway.open_requests:
                self._data.close_idle()
                return
            await asyncio.sleep(0.02)


async def serve(gateway: Gateway, *, ready: Callable[[GatewayServer], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends at once."""
    loop = asyncio.get_running_loop()
    server = GatewayServer(gateway)
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    await server.start()
    gc.freeze()  # what is there by now stays: the collector need not look at it again
    gc.set_threshold(20_000, 20, 50)
    if ready is not None:
        ready(server)
    await asked.wait()
    asked.clear()
    stopping = asyncio.ensure_future(server.stop())
    again = asyncio.ensure_future(asked.wait())
    await asyncio.wait((stopping, again), return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not stopping.done():
        stopping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stopping
