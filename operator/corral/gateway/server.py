"""Two listening ports and a graceful end, around uvicorn's HTTP protocol. It owns connections; of requests it knows only how to count them.

`GatewayServer.start()` listens, `stop()` ends in this order: readiness false, `settle` seconds in which new requests are still taken, then no new
connections, existing requests up to `grace` seconds, then whoever still waits is refused, then the rest is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from corral.gateway.admin import Admin
from corral.gateway.app import Gateway
from corral.gateway.settings import GatewaySettings

log = logging.getLogger("corral.gateway")


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with limits on headers, and with a way to tell and be told of a connection's end."""

    settings: GatewaySettings
    running: RequestResponseCycle | None = None
    on_gone: Callable[[], None] | None = None
    on_writable: Callable[[], None] | None = None
    closing_after_next = False
    _header_bytes = 0
    _header_timer: asyncio.TimerHandle | None = None
    _in_headers = True
    _discarding = False
    _stalled_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.settings = self.app_state["corral.settings"]
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        running = self.running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        gone, self.on_gone = self.on_gone, None
        if gone is not None:
            gone()

    def cut(self) -> None:
        """End the connection now, in the middle of an answer."""
        if self.running is not None:
            self.running.disconnected = True
        self.on_gone = None
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            if self._header_timer is None:
                self._expect_headers()
            self._header_bytes += len(data)
            if self._header_bytes > self.settings.max_header and b"\r\n\r\n" not in data[: self.settings.max_header]:
                self._refuse(b"431 Request Header Fields Too Large")
                return
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        if self.running is not None and not self.running.response_complete:
            self.cut()  # an answer is under way: nothing may be written into it
            return
        super().send_400_response(msg)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._header_bytes = 0
        self._stop_header_timer()
        refusal = _refusal(self.headers, self.parser)
        if refusal is not None:
            raise httptools.HttpParserError(refusal)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_headers = True
        if self._discarding:
            self._discarding = False
            self._stop_header_timer()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.running = cycle
        self.on_gone = self.on_writable = None
        if self.closing_after_next:
            cycle.keep_alive = False
        cycle.scope["corral.connection"] = self  # type: ignore[typeddict-unknown-key]
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.on_gone = self.on_writable = None
        super().on_response_complete()
        if not self._in_headers and not self.transport.is_closing():
            # Answered before the body was in: the rest is read and thrown away, so that the answer is not lost to a reset, for a while.
            self._discarding = True
            self._stop_header_timer()
            self._expect_headers()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        self._stalled_since = None
        super().resume_writing()
        if self.on_writable is not None:
            self.on_writable()

    def stalled_for(self, now: float) -> float:
        return 0.0 if self._stalled_since is None else now - self._stalled_since

    @property
    def busy(self) -> bool:
        return self.running is not None and not self.running.response_complete

    def close_soon(self) -> None:
        """Say `Connection: close` with this or the next answer."""
        self.closing_after_next = True
        if self.busy and self.running is not None:
            self.running.keep_alive = False

    def _expect_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.settings.header_timeout, self._refuse, b"408 Request Timeout")

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _refuse(self, status: bytes) -> None:
        self._stop_header_timer()
        if self.transport.is_closing():
            return
        if self.busy:
            self.cut()
            return
        if self._header_bytes and not self._discarding:
            self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()


def _refusal(headers: list[tuple[bytes, bytes]], parser: Any) -> str | None:
    """What makes a request ambiguous for anybody in front of or behind us."""
    lengths = hosts = codings = 0
    for name, value in headers:
        if name == b"content-length":
            lengths += 1
        elif name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            codings += 1
            if value.strip().lower() != b"chunked":
                return "a transfer-encoding other than chunked"
    if lengths > 1 or codings > 1:
        return "the body's length is given twice"
    if lengths and codings:
        return "both content-length and transfer-encoding"
    if hosts > 1 or (hosts == 0 and parser.get_http_version() == "1.1"):
        return "the host must be given once"
    return None


class Listener:
    """One port with uvicorn's protocol, without uvicorn's server: that one wants the process's signals."""

    def __init__(self, app: Any, settings: GatewaySettings, *, host: str, port: int) -> None:
        self._settings = settings
        self._config = Config(
            app, loop="none", http=GatewayProtocol, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, date_header=False, proxy_headers=False, timeout_keep_alive=int(settings.keep_alive),
        )  # fmt: skip
        self._config.load()
        self._state = ServerState()
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._clock: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()

        def protocol() -> GatewayProtocol:
            return GatewayProtocol(self._config, self._state, {"corral.settings": self._settings}, loop)

        self._server = await loop.create_server(protocol, self._host, self._port, backlog=2048)
        self._tick()

    @property
    def port(self) -> int:
        assert self._server is not None  # noqa: S101 - asked after start
        address: tuple[Any, ...] = self._server.sockets[0].getsockname()
        return int(address[1])

    @property
    def connections(self) -> list[GatewayProtocol]:
        return [connection for connection in self._state.connections if isinstance(connection, GatewayProtocol)]

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
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=2)

    def _tick(self) -> None:
        """Each second: the date header, and clients that stopped reading."""
        loop = asyncio.get_running_loop()
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        for connection in self.connections:
            if connection.stalled_for(loop.time()) > self._settings.client_stall:
                connection.transport.abort()
        self._clock = loop.call_later(1.0, self._tick)


class GatewayServer:
    """A gateway on its two ports."""

    def __init__(self, gateway: Gateway) -> None:
        settings = gateway.settings
        self.gateway = gateway
        self._data = Listener(gateway, settings, host=settings.host, port=settings.port)
        self._admin = Listener(Admin(gateway), settings, host=settings.admin_host, port=settings.admin_port)

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
        await asyncio.sleep(settings.settle)
        self._data.stop_accepting()
        self._data.close_soon()
        await self._until_done(settings.grace)
        gateway.driver.refuse_waiting()
        await self._until_done(0.5)
        await self._data.finish()
        await gateway.stop()
        await self._admin.finish()

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
