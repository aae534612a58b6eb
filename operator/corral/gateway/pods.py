# ruff: noqa: N818 - these exceptions are what befell a request
"""One connection to a pod: a request out, its answer in, given piece by piece to a `Receiver` as it comes.

It owns the reading of answers (HTTP/1.1, strict) and the pausing of a pod whose client is slow. It never decides what an answer means, and never
sends anything by itself.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Protocol, cast

import httptools

if TYPE_CHECKING:
    from corral.gateway.upstream import Upstream

Target = tuple[str, int]
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-authenticate"}
)
KEPT_HERE = HOP_BY_HOP | {b"x-request-id", b"server", b"date", b"x-corral-draining", b"x-corral-usage"}
"""Headers of an answer that are not sent on."""
LOOKED_AT = frozenset({b"content-type", b"content-length", b"cache-control", b"x-accel-buffering"})


class UpstreamError(Exception):
    """The pod gave no whole answer.

    UpstreamError
     +- ConnectFailed    nothing was sent
     +- NoAnswer         sent, and the connection ended before a byte
     +- BadAnswer        what came is not HTTP, or not within its limits
     +- Cut              the answer broke off
     +- TimedOut         a limit passed; `phase` names it
     +- Aborted          we gave it up
    """


class ConnectFailed(UpstreamError):
    pass


class NoAnswer(UpstreamError):
    def __init__(self, text: str, *, reused: bool = False) -> None:
        super().__init__(text)
        self.reused = reused


class BadAnswer(UpstreamError):
    pass


class Cut(UpstreamError):
    pass


class TimedOut(UpstreamError):
    def __init__(self, phase: str, seconds: float) -> None:
        super().__init__(f"the pod gave nothing for {seconds:g}s ({phase})")
        self.phase = phase


class Aborted(UpstreamError):
    pass


class Receiver(Protocol):
    """Who gets an answer: `on_answer` once, `on_data` any number of times, `on_end` once; only `on_end` when nothing usable came."""

    def on_answer(self, connection: PodConnection) -> None:
        """Status and headers are in."""
        ...

    def on_data(self, data: bytes, *, last: bool) -> bool:
        """False: give no more until `resume`."""
        ...

    def on_end(self, error: UpstreamError | None) -> None: ...


class PodConnection(asyncio.Protocol):
    """One connection, one request at a time."""

    status = 0
    headers_done = False
    complete = True
    """Nothing more is to come of the present answer, or there is none."""
    closed = False
    reused = False
    paused = False
    written = True
    """The request went out whole."""
    error: UpstreamError | None = None
    last = 0.0
    sent = 0.0
    receiver: Receiver | None = None
    _announced = False
    _until_close = False
    _keep_alive = False
    _header_bytes = 0
    _answer_bytes = 0
    _write_paused = False
    _write_waiter: asyncio.Future[None] | None = None

    def __init__(self, pool: Upstream, target: Target) -> None:
        self.pool = pool
        self.loop = pool.loop
        self.target = target
        self.transport: asyncio.Transport | None = None
        self.known: dict[bytes, bytes] = {}
        """Headers that are read here, by their names in lower case."""
        self.passing: list[bytes] = []
        """Headers that go on: name, colon, value, end of line, and so forth."""
        self.chunks: list[bytes] = []
        self._parser: Any = httptools.HttpResponseParser(self)

    def begin(self, receiver: Receiver) -> None:
        """A new request: everything of the last answer is forgotten."""
        self.receiver = receiver
        self.status = 0
        self.known = {}
        self.passing = []
        self.headers_done = self.complete = self._announced = self._until_close = self._keep_alive = False
        self._header_bytes = self._answer_bytes = 0
        self.error = None
        self.written = True
        self.last = self.sent = self.loop.time()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family != socket.AF_UNIX:
            # A node that vanishes sends no reset: the kernel finds out, within half a minute.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000)):
                if hasattr(socket, name):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def data_received(self, data: bytes) -> None:
        receiver = self.receiver
        if receiver is None:  # nobody asked: whatever this is, it must not become the next answer
            self._close()
            return
        self.last = self.loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._bad(f"the pod's answer is not HTTP: {error}")
        except httptools.HttpParserUpgrade:
            self._bad("the pod wants to speak another protocol")
        if not self._announced:
            self._answer_bytes += len(data)
            limit = self.pool.settings.max_header
            if self._header_bytes > limit or (not self.headers_done and self._answer_bytes > 2 * limit):
                self.complete = self.headers_done = False  # even when all of it is there
                self.error = None
                self._bad(f"the pod's answer has more than {limit} bytes of headers")
            if self.headers_done:
                self._announced = True
                receiver.on_answer(self)
            elif self.error is None:
                return
            if self.receiver is not receiver:
                return
        if self.chunks and self._announced:
            chunks, self.chunks = self.chunks, []
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            complete = self.complete
            if complete:
                self.receiver = None
                self.pool.release(self)  # before the client has the end, and may ask again
            more = receiver.on_data(data, last=complete)
            if complete:
                receiver.on_end(None)
                return
            if self.receiver is receiver and not more and not self.closed:
                self.pause()
        if self.complete or self.error is not None:
            self._end(receiver)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.pool.forget(self)
        self._wake_writer()
        receiver = self.receiver
        if receiver is None:
            return
        if self.error is None and not self.complete:
            if self.headers_done and self._until_close and exc is None:
                self.complete = True
            elif not self._answer_bytes and not self.headers_done:
                self.error = NoAnswer(f"the pod closed the connection without an answer ({exc or 'end of stream'})", reused=self.reused)
            elif not self.headers_done:
                self.error = BadAnswer("the pod closed the connection inside the headers of its answer")
            else:
                self.error = Cut("the pod's answer broke off")
        self._end(receiver)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._wake_writer()

    # httptools

    def on_message_begin(self) -> None:
        if self.complete:
            self._close()  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.headers_done:
            return  # a trailer
        self._header_bytes += len(name) + len(value) + 4
        name = name.lower()
        if name in KEPT_HERE:
            known = self.known
            known[name] = known[name] + b"," + value if name in known else value
            return
        if name in LOOKED_AT:
            self.known.setdefault(name, value)
        self.passing += (name, b": ", value, b"\r\n")

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        self.status = status = self._parser.get_status_code()
        if status < 200:
            return
        self.headers_done = True
        self._until_close = b"content-length" not in self.known and b"transfer-encoding" not in self.known and status not in (204, 304)

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self.chunks.append(body)

    def on_message_complete(self) -> None:
        if self.status < 200:  # 100 Continue and its like: the answer is still to come
            self.known, self.passing = {}, []
            return
        if not self._until_close:
            self._keep_alive = bool(self._parser.should_keep_alive())  # the parser knows it only until the next byte
            self.complete = True

    # For the pool and the receiver

    def fail(self, error: UpstreamError) -> None:
        """End it for this reason."""
        if self.error is None and not self.complete:
            self.error = error
        self._close()
        self._wake_writer()
        if self.receiver is not None:
            self._end(self.receiver)

    def let_go(self) -> None:
        """The receiver wants nothing more of this answer, and not to be told of its end."""
        self.receiver = None
        self.chunks = []
        self.pool.forget(self)
        self._close()

    async def drain(self) -> None:
        while self._write_paused and not self.closed and not self.headers_done and self.error is None:
            self._write_waiter = self.loop.create_future()
            try:
                await self._write_waiter
            finally:
                self._write_waiter = None

    def pause(self) -> None:
        if not self.paused and self.transport is not None:
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.paused and self.transport is not None and not self.closed:
            self.paused = False
            self.last = self.loop.time()
            self.transport.resume_reading()

    @property
    def reusable(self) -> bool:
        transport = self.transport
        return (
            self._keep_alive
            and self.written
            and not self.closed
            and transport is not None
            and not transport.is_closing()
            and transport.get_write_buffer_size() == 0
        )

    def _end(self, receiver: Receiver) -> None:
        self.receiver = None
        self.chunks = []
        if self.complete:
            self.pool.release(self)
            receiver.on_end(None)
        else:
            self.pool.forget(self)
            receiver.on_end(self.error)
        if self.headers_done or self.error is not None:
            self._wake_writer()

    def _bad(self, text: str) -> None:
        if self.error is None and not self.complete:
            self.error = BadAnswer(text)
        self._close()

    def _wake_writer(self) -> None:
        if self._write_waiter is not None and not self._write_waiter.done():
            self._write_waiter.set_result(None)

    def _close(self) -> None:
        if self.transport is not None and not self.closed:
            self.transport.abort()
