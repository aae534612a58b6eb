# ruff: noqa: N818, TRY301 - these exceptions are what befell a request, and are raised where it is seen
"""The client for the pods: HTTP/1.1 over pooled connections, as little of it as a gateway needs.

`Upstream.send(target, head, body)` gives an `Answer`: status, headers, `read()` for the next bytes, `abort()`. It owns the connections and the
three time limits (connect, first byte, idle). It never follows, decodes or retries anything, but for one case: a *reused* connection that closed
without a byte was stale, so the request goes once more over a new one. It never sends a request twice otherwise: the first may have run.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

import httptools

from corral.gateway.settings import GatewaySettings

Target = tuple[str, int]
HIGH_WATER = 256 * 1024
"""Bytes of an answer that wait for the client before the pod's connection is paused."""
PIECE = 256 * 1024


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


class Body(Protocol):
    """A request's body that can be sent more than once."""

    @property
    def size(self) -> int: ...

    @property
    def in_memory(self) -> bytes | None:
        """The whole of it, unless it is on disk."""
        ...

    async def piece(self, offset: int, length: int) -> bytes: ...


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, pool: Upstream, target: Target) -> None:
        self.pool = pool
        self.loop = pool.loop
        self.target = target
        self.max_header = pool.settings.max_header
        self.transport: asyncio.Transport | None = None
        self.parser: Any = None
        self.waiter: asyncio.Future[None] | None = None
        self.write_waiter: asyncio.Future[None] | None = None
        self.write_paused = False
        self.owner: Sending | None = None
        self.closed = False
        self.reused = False
        self.error: UpstreamError | None = None
        self.complete = True
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.headers_done = False
        self.until_close = False
        self.keep_alive = False
        self.header_bytes = 0
        self.answer_bytes = 0
        self.chunks: list[bytes] = []
        self.pending = 0
        self.paused = False
        self.sink: Callable[[bytes], bool] | None = None

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
        if self.complete:  # nobody asked: whatever this is, it must not become the next answer
            self._close()
            return
        self.last = self.loop.time()
        self.answer_bytes += len(data)
        unfinished = not self.headers_done
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(BadAnswer(f"the pod's answer is not HTTP: {error}"))
            return
        except httptools.HttpParserUpgrade:
            self.fail(BadAnswer("the pod wants to speak another protocol"))
            return
        if unfinished and (self.header_bytes > self.max_header or (not self.headers_done and self.answer_bytes > 2 * self.max_header)):
            self.complete = False  # even when all of it is there
            self.fail(BadAnswer(f"the pod's answer has more than {self.max_header} bytes of headers"))
            return
        if self.sink is not None:
            if self.chunks:
                data = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
                self.chunks = []
                self.pending = 0
                if not self.sink(data) and not self.complete and not self.closed:
                    self.pause()
            if not self.complete:
                return
        elif self.pending > HIGH_WATER and not self.paused and not self.complete:
            self.pause()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.pool.forget(self)
        self._wake_writer()
        if self.complete or self.error is not None:
            return
        if self.headers_done and self.until_close and exc is None:
            self.complete = True
        elif not self.answer_bytes:
            self.error = NoAnswer(f"the pod closed the connection without an answer ({exc or 'end of stream'})", reused=self.reused)
        elif not self.headers_done:
            self.error = BadAnswer("the pod closed the connection inside the headers of its answer")
        else:
            self.error = Cut("the pod's answer broke off")
        self._wake()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self._wake_writer()

    # httptools

    def on_message_begin(self) -> None:
        if self.headers_done and self.complete:
            self._close()  # a second answer to one request

    def on_status(self, _: bytes) -> None:
        self.status = self.parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.headers_done:
            self.header_bytes += len(name) + len(value) + 4
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = status = self.parser.get_status_code()
        if status < 200:
            return
        if self.complete:
            return
        self.headers_done = True
        framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        self.until_close = not framed and status not in (204, 304)

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self.chunks.append(body)
            self.pending += len(body)

    def on_message_complete(self) -> None:
        if self.status < 200:  # 100 Continue and its like: the answer is still to come
            self.headers = []
            return
        if not self.until_close:
            self.keep_alive = bool(self.parser.should_keep_alive())  # the parser knows it only until the next byte
            self.complete = True

    # What Answer uses

    def begin(self) -> None:
        self._reset()
        self.parser = httptools.HttpResponseParser(self)
        self.complete = False
        self.error = None
        self.last = self.sent = self.loop.time()

    async def wait(self) -> None:
        """Until something changes: more bytes, the end, or an error."""
        self.waiter = self.loop.create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None

    async def drain(self) -> None:
        while self.write_paused and not self.closed and not self.headers_done:
            self.write_waiter = self.loop.create_future()
            try:
                await self.write_waiter
            finally:
                self.write_waiter = None

    def fail(self, error: UpstreamError) -> None:
        if self.error is None and not self.complete:
            self.error = error
        self._close()
        self._wake()

    def pause(self) -> None:
        if not self.paused and self.transport is not None:
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.paused and self.transport is not None and not self.closed:
            self.paused = False
            self.last = self.loop.time()
            self.transport.resume_reading()

    def reusable(self) -> bool:
        return (
            not self.closed
            and self.transport is not None
            and not self.transport.is_closing()
            and self.transport.get_write_buffer_size() == 0
            and self.keep_alive
        )

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
        if self.headers_done or self.error is not None:
            self._wake_writer()

    def _wake_writer(self) -> None:
        if self.write_waiter is not None and not self.write_waiter.done():
            self.write_waiter.set_result(None)

    def _close(self) -> None:
        if self.transport is not None and not self.closed:
            self.transport.abort()


class Answer:
    """A pod's answer whose headers are in."""

    __slots__ = ("_connection", "_released", "headers", "status")

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._released = False
        self.status = connection.status
        self.headers = connection.headers

    @property
    def complete(self) -> bool:
        """Whether everything has arrived already (what is left to read is in memory)."""
        return self._connection.complete

    async def read(self) -> bytes:
        """The next bytes, all that are there; empty at the end. Raises when the answer breaks off, after what came before."""
        connection = self._connection
        while True:
            if connection.chunks:
                chunks = connection.chunks
                data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                connection.chunks = []
                connection.pending = 0
                if connection.paused:
                    connection.resume()
                return data
            if connection.complete:
                self._release()
                return b""
            if connection.error is not None:
                raise connection.error
            await connection.wait()

    def rest(self) -> bytes:
        """All that is still unread of a complete answer."""
        connection = self._connection
        chunks, connection.chunks = connection.chunks, []
        connection.pending = 0
        self._release()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def pump(self, sink: Callable[[bytes], bool]) -> None:
        """Give all that comes to `sink` as it comes, and return at the end. After a False from it nothing comes until `resume`."""
        connection = self._connection
        if connection.chunks:
            data = b"".join(connection.chunks)
            connection.chunks = []
            connection.pending = 0
            if not sink(data):
                if not connection.complete and not connection.closed:
                    connection.pause()
            elif connection.paused:
                connection.resume()
        connection.sink = sink
        try:
            while not connection.complete and connection.error is None:
                await connection.wait()
        finally:
            connection.sink = None
        if connection.error is not None and not connection.complete:
            raise connection.error
        self._release()

    def resume(self) -> None:
        if not self._released:
            self._connection.resume()

    def abort(self) -> None:
        """Give it up: the connection is closed, which tells the pod to stop."""
        if not self._released:
            self._connection.fail(Aborted("given up"))

    def finish(self) -> None:
        """Return the connection when all of the answer is in; otherwise the same as `abort`."""
        if self._connection.complete:
            self._release()
        else:
            self.abort()

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self._connection.pool.release(self._connection)


class Sending:
    """A request on its way, so that it can be given up while its answer is still awaited."""

    __slots__ = ("_given_up", "connection")

    def __init__(self) -> None:
        self.connection: _Connection | None = None
        self._given_up = False

    @property
    def given_up(self) -> bool:
        return self._given_up

    def abort(self) -> None:
        self._given_up = True
        if self.connection is not None and self.connection.owner is self:
            self.connection.fail(Aborted("given up"))


class Upstream:
    """The pool. One per event loop."""

    def __init__(self, settings: GatewaySettings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.loop = loop
        self._idle: dict[Target, deque[tuple[float, _Connection]]] = {}
        self._active: set[_Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self.retries = 0
        """Requests that went over a second connection because the first was stale."""

    @property
    def open_connections(self) -> int:
        return len(self._active) + sum(len(idle) for idle in self._idle.values())

    async def send(self, target: Target, head: bytes, body: Body | None, sending: Sending) -> Answer:
        """Send, and return when the headers of the answer are in."""
        connection = self._take(target)
        if connection is not None:
            try:
                return await self._exchange(connection, head, body, sending)
            except NoAnswer as error:
                if not error.reused or sending.given_up:
                    raise
                self.retries += 1
        connection = await self._connect(target)
        return await self._exchange(connection, head, body, sending)

    async def _exchange(self, connection: _Connection, head: bytes, body: Body | None, sending: Sending) -> Answer:
        transport = connection.transport
        assert transport is not None  # noqa: S101 - it is connected
        sending.connection = connection
        connection.owner = sending
        self._active.add(connection)
        self._sweep_later()
        connection.begin()
        try:
            if sending.given_up:
                raise Aborted("given up")
            if connection.closed:
                raise NoAnswer("the connection closed while idle", reused=connection.reused)
            whole = None if body is None else body.in_memory
            if body is None:
                transport.write(head)
            elif whole is not None:
                if len(whole) <= PIECE:
                    transport.write(head + whole)
                else:
                    transport.write(head)
                    transport.write(whole)
            else:
                transport.write(head)
                offset = 0
                while offset < body.size and not connection.headers_done and connection.error is None:
                    piece = await body.piece(offset, PIECE)
                    offset += len(piece)
                    transport.write(piece)
                    connection.sent = self.loop.time()
                    await connection.drain()
            while not connection.headers_done and connection.error is None:
                await connection.wait()
            if connection.error is not None:
                raise connection.error
        except BaseException:
            connection.complete = True
            self._active.discard(connection)
            if not connection.closed:
                transport.abort()
            raise
        return Answer(connection)

    def _take(self, target: Target) -> _Connection | None:
        idle = self._idle.get(target)
        oldest = self.loop.time() - self.settings.pool_idle
        while idle:
            since, connection = idle.pop()
            if since >= oldest and not connection.closed and connection.transport is not None and not connection.transport.is_closing():
                connection.reused = True
                return connection
            if connection.transport is not None:
                connection.transport.abort()
        return None

    async def _connect(self, target: Target) -> _Connection:
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                _, connection = await self.loop.create_connection(lambda: _Connection(self, target), target[0], target[1])
        except TimeoutError as error:
            raise ConnectFailed(f"no connection to {target[0]}:{target[1]} within {self.settings.connect_timeout:g}s") from error
        except OSError as error:
            raise ConnectFailed(f"no connection to {target[0]}:{target[1]}: {error}") from error
        return connection

    def release(self, connection: _Connection) -> None:
        """The answer is complete: keep the connection when it may serve again."""
        self._active.discard(connection)
        connection.owner = None
        if self._closed or not connection.reusable():
            if connection.transport is not None:
                connection.transport.abort()
            return
        if connection.paused:
            connection.resume()  # while it is idle its end must be noticed
        self._idle.setdefault(connection.target, deque()).append((self.loop.time(), connection))
        self._sweep_later()

    def forget(self, connection: _Connection) -> None:
        self._active.discard(connection)
        idle = self._idle.get(connection.target)
        if idle:
            kept = deque(entry for entry in idle if entry[1] is not connection)
            if kept:
                self._idle[connection.target] = kept
            else:
                del self._idle[connection.target]

    def close(self) -> None:
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self._active):
            connection.fail(Aborted("the gateway stops"))
        for idle in list(self._idle.values()):
            for _, connection in list(idle):
                if connection.transport is not None:
                    connection.transport.abort()

    def _sweep_later(self) -> None:
        if self._sweeper is None and not self._closed:
            limits = (self.settings.first_byte_timeout, self.settings.idle_timeout, self.settings.pool_idle)
            self._sweeper = self.loop.call_later(min(1.0, *(limit / 4 for limit in limits)), self._sweep)

    def _sweep(self) -> None:
        """One timer for all connections: a timer per request or chunk would cost more than the request."""
        self._sweeper = None
        now = self.loop.time()
        for connection in list(self._active):
            if connection.complete or connection.paused:
                continue
            limit = self.settings.idle_timeout if connection.headers_done else self.settings.first_byte_timeout
            # Headers that come byte by byte are no more an answer than none: their limit runs from the request's last byte.
            if now - (connection.last if connection.headers_done else connection.sent) > limit:
                connection.fail(TimedOut("idle" if connection.headers_done else "first byte", limit))
        for target, idle in list(self._idle.items()):
            while idle and now - idle[0][0] > self.settings.pool_idle:
                _, connection = idle.popleft()
                if connection.transport is not None:
                    connection.transport.abort()
            if not idle:
                self._idle.pop(target, None)
        if self._active or self._idle:
            self._sweep_later()
