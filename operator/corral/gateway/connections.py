"""One client connection: uvicorn's HTTP protocol, made strict about what a request may look like and how long it may take.

It tells the running request when its client is gone, and lets it write directly (`replies.DirectReply`). It never looks into a body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from corral.gateway.settings import GatewaySettings


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with limits on headers, and with a way to tell and be told of a connection's end."""

    settings: GatewaySettings
    running: RequestResponseCycle | None = None
    on_gone: Callable[[], None] | None = None
    on_writable: Callable[[], None] | None = None
    closing_after_next = False
    _header_bytes = 0
    _deadline: float | None = None
    """By when the headers have to be in, or an idle connection to be used. One sweep looks at all: a timer for each request costs too much."""
    _in_headers = True
    _discarding = False
    _stalled_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.settings = self.app_state["corral.settings"]
        self._deadline = self.loop.time() + self.settings.header_timeout

    def connection_lost(self, exc: Exception | None) -> None:
        running = self.running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)
        gone, self.on_gone = self.on_gone, None
        if gone is not None:
            gone()

    def whole_body(self) -> bytes | None:
        """The running request's body, when all of it is here already; what `receive` would give, without the detour."""
        cycle = self.running
        if cycle is None or cycle.more_body or cycle.disconnected:
            return None
        body = bytes(cycle.body)
        cycle.body = bytearray()
        self.flow.resume_reading()  # a further request behind this one paused it; the client's end must be noticed all the same
        return body

    def cut(self) -> None:
        """End the connection now, in the middle of an answer."""
        if self.running is not None:
            self.running.disconnected = True
        self.on_gone = None
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            if not self._header_bytes:
                self._deadline = self.loop.time() + self.settings.header_timeout
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

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers.append((name, value))
        if name in _FRAMING:
            self._framing.append((name, value))
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True

    def on_message_begin(self) -> None:
        self._framing: list[tuple[bytes, bytes]] = []
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._header_bytes = 0
        self._deadline = None
        refusal = _refusal(self._framing, self.parser)
        if refusal is not None:
            raise httptools.HttpParserError(refusal)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_headers = True
        if self._discarding:
            self._discarding = False
            self._deadline = self.loop.time() + self.settings.keep_alive

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.running = cycle
        self.on_gone = self.on_writable = None
        if self.closing_after_next:
            cycle.keep_alive = False
        cycle.scope["corral.connection"] = self  # type: ignore[typeddict-unknown-key]
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """As uvicorn's, but for its timer."""
        self.on_gone = self.on_writable = None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self._in_headers:
            self._deadline = self.loop.time() + self.settings.keep_alive
        else:
            # Answered before the body was in: the rest is read and thrown away, so that the answer is not lost to a reset, for a while.
            self._discarding = True
            self._deadline = self.loop.time() + self.settings.header_timeout

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        self._stalled_since = None
        super().resume_writing()
        if self.on_writable is not None:
            self.on_writable()

    def sweep(self, now: float) -> None:
        """Called every so often: end what took too long."""
        if self._stalled_since is not None and now - self._stalled_since > self.settings.client_stall:
            self.transport.abort()
        elif self._deadline is not None and now > self._deadline:
            self._deadline = None
            self._refuse(b"408 Request Timeout")

    @property
    def busy(self) -> bool:
        return self.running is not None and not self.running.response_complete

    def close_soon(self) -> None:
        """Say `Connection: close` with this or the next answer."""
        self.closing_after_next = True
        if self.busy and self.running is not None:
            self.running.keep_alive = False

    def _refuse(self, status: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.busy:
            self.cut()
            return
        if self._header_bytes and not self._discarding:
            self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()


_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host", b"expect"})


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
