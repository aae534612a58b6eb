"""An answer on its way into a client's connection: head and first bytes in one write, the rest as it comes. It does not know what an answer means."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from corral.gateway.connections import ClientConnection
    from corral.gateway.requests import Request

Headers = list[tuple[bytes, bytes]]


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode())


_STATUS_LINES = {status: _status_line(status) for status in range(100, 600)}


class Reply:
    """`start`, then `feed` any number of times, then `finish`; each at once. The status line leaves with the first bytes or with `flush`."""

    __slots__ = ("_chunked", "_connection", "_left", "_mute", "_pending", "finished", "request", "started")

    def __init__(self, connection: ClientConnection, request: Request) -> None:
        self._connection = connection
        self.request = request
        self.started = False
        self.finished = False
        self._pending = b""
        self._chunked = False
        self._mute = False
        """A HEAD request's answer, or one of a status that has no body."""
        self._left = 0

    def start(self, status: int, headers: Headers) -> None:
        lines: list[bytes] = []
        length = None
        for name, value in headers:
            if name == b"content-length":
                length = value
            lines += (name, b": ", value, b"\r\n")
        self.start_raw(status, lines, length)

    def start_raw(self, status: int, lines: list[bytes], length: bytes | None) -> None:
        """`lines`: name, colon, value, end of line, and so forth; `length`: the content-length among them."""
        request = self.request
        self.started = True
        if status in (204, 304) or request.method == b"HEAD":
            self._mute = True
        elif length is not None:
            self._left = int(length)
        elif request.old:
            request.keep_alive = False
            self._left = -1
        else:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if not request.keep_alive or request.expects_continue:
            lines.append(b"connection: close\r\n")
        if b"origin" in request.known:
            lines.append(self._connection.shared.allow_origin(request.known[b"origin"]))
        lines.append(b"\r\n")
        self._pending = _STATUS_LINES[status] + self._connection.shared.date_line + b"".join(lines)

    def flush(self) -> None:
        if self._pending and not self._connection.lost:
            pending, self._pending = self._pending, b""
            self._connection.transport.write(pending)

    def feed(self, data: bytes) -> bool:
        """Write now. False: the client is slow, so give no more until `on_writable` of the connection is called."""
        connection = self._connection
        if connection.lost:
            return True
        if self._chunked:
            if self._pending:
                self.flush()
            connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            connection.transport.write(self._plain(data))
        return not connection.write_paused

    async def write(self, data: bytes) -> None:
        """Returns when the client's connection takes more."""
        if not self.feed(data):
            await self._connection.drain()

    def finish(self, data: bytes = b"") -> None:
        """The last bytes. The connection's next request may start before this returns."""
        connection = self._connection
        if self.finished:
            return
        self.finished = True
        if connection.lost:
            return
        if self._chunked:
            pending, self._pending = self._pending, b""
            last = b"%b%x\r\n%b\r\n0\r\n\r\n" % (pending, len(data), data) if data else pending + b"0\r\n\r\n"
        else:
            last = self._plain(data)
            if self._left > 0:
                connection.cut()  # shorter than it said: it must not pass for whole
                return
        if last:
            connection.transport.write(last)
        connection.answered()

    def _plain(self, data: bytes) -> bytes:
        pending, self._pending = self._pending, b""
        if self._mute:
            return pending
        if self._left >= 0:
            self._left -= len(data)
        return pending + data if pending else data
