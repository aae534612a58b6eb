"""How an answer gets to the client: through ASGI's `send`, or, under `corral.gateway.server`, straight into the connection.

The direct way joins head and body into one write, and takes an answer's bytes from the pod's connection without waking anybody in between: most of
what a gateway costs is system calls and task switches. Both ways behave the same; neither knows what an answer means.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

if TYPE_CHECKING:
    from corral.gateway.connections import GatewayProtocol

Headers = list[tuple[bytes, bytes]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Reply(Protocol):
    """One answer: `start`, then `write` any number of times, then `end`."""

    def start(self, status: int, headers: Headers) -> None:
        """Status and headers; they leave with the first bytes or with `flush`."""
        ...

    async def flush(self) -> None: ...

    async def write(self, data: bytes) -> None:
        """Returns when the client's connection takes more."""
        ...

    async def end(self, data: bytes = b"") -> None: ...


class AsgiReply:
    """Implements `Reply` for any ASGI server."""

    __slots__ = ("_pending", "_send")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._pending: MutableMapping[str, Any] | None = None

    def start(self, status: int, headers: Headers) -> None:
        self._pending = {"type": "http.response.start", "status": status, "headers": headers}

    async def flush(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            await self._send(pending)

    async def write(self, data: bytes) -> None:
        await self.flush()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self.flush()
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


class DirectReply:
    """Implements `Reply` on a connection of our own server; `feed` is its way without an await."""

    __slots__ = ("_chunked", "_connection", "_cycle", "_left", "_pending")

    def __init__(self, connection: GatewayProtocol) -> None:
        self._connection = connection
        cycle = connection.running
        assert cycle is not None  # noqa: S101 - a request is running
        self._cycle = cycle
        self._pending = b""
        self._chunked = False
        self._left = 0

    def start(self, status: int, headers: Headers) -> None:
        cycle = self._cycle
        length: bytes | None = None
        lines = [STATUS_LINE[status]]
        for name, value in self._connection.server_state.default_headers:
            lines += (name, b": ", value, b"\r\n")
        for name, value in headers:
            if name == b"content-length":
                length = value
            lines += (name, b": ", value, b"\r\n")
        if status in (204, 304):
            self._left = 0
        elif length is not None:
            self._left = int(length)
        else:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._pending = b"".join(lines)
        cycle.response_started = True
        cycle.waiting_for_100_continue = False

    async def flush(self) -> None:
        if self._pending and not self._cycle.disconnected:
            pending, self._pending = self._pending, b""
            self._connection.transport.write(pending)

    def feed(self, data: bytes) -> bool:
        """Write now. False: the client is slow, so give no more until `on_writable` of the connection is called."""
        if self._cycle.disconnected:
            return True
        self._connection.transport.write(self._framed(data))
        return not self._connection.flow.write_paused

    async def write(self, data: bytes) -> None:
        if not self.feed(data):
            await self._connection.flow.drain()

    async def end(self, data: bytes = b"") -> None:
        self.finish(data)

    def finish(self, data: bytes = b"") -> None:
        """`end` without an await."""
        cycle = self._cycle
        if cycle.disconnected:
            return
        last = self._framed(data) if data else self._pending
        self._pending = b""
        if self._chunked:
            last += b"0\r\n\r\n"
        elif self._left > 0:
            self._connection.cut()  # shorter than it said: it must not pass for whole
            return
        if last:
            self._connection.transport.write(last)
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._connection.transport.close()
        cycle.on_response()

    def _framed(self, data: bytes) -> bytes:
        pending = self._pending
        if pending:
            self._pending = b""
        if self._chunked:
            return b"%b%x\r\n%b\r\n" % (pending, len(data), data)
        self._left -= len(data)
        return pending + data if pending else data
