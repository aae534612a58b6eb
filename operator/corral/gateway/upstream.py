"""The client for the pods: HTTP/1.1 over pooled connections, as little of it as a gateway needs.

It owns the connections and the three time limits (connect, first byte, idle). `begin` sends over an idle connection at once, `send` over whatever it
takes; the answer goes to a `Receiver`. It never follows, decodes or repeats anything: a request that was sent may have run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from corral.gateway.pods import Aborted, ConnectFailed, PodConnection, Receiver, Target, TimedOut, UpstreamError
from corral.gateway.settings import GatewaySettings

PIECE = 256 * 1024


class Body(Protocol):
    """A request's body that can be sent more than once."""

    @property
    def size(self) -> int: ...

    @property
    def in_memory(self) -> bytes | None:
        """The whole of it, unless it is on disk."""
        ...

    async def piece(self, offset: int, length: int) -> bytes: ...


class Upstream:
    """The pool. One per event loop."""

    def __init__(self, settings: GatewaySettings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.loop = loop
        self._idle: dict[Target, deque[tuple[float, PodConnection]]] = {}
        self._active: set[PodConnection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self.retries = 0
        """Requests that went over a second connection because the first was stale."""

    @property
    def open_connections(self) -> int:
        return len(self._active) + sum(len(idle) for idle in self._idle.values())

    def begin(self, receiver: Receiver, target: Target, head: bytes, data: bytes) -> PodConnection | None:
        """Send over an idle connection; None when there is none."""
        connection = self._take(target)
        if connection is None:
            return None
        self._attach(connection, receiver)
        transport = connection.transport
        assert transport is not None  # noqa: S101 - it is connected
        if len(data) <= PIECE:
            transport.write(head + data)
        else:
            transport.write(head)
            transport.write(data)
        return connection

    async def connect(self, target: Target) -> PodConnection:
        """A new connection, for `send`. Raises ConnectFailed."""
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                _, connection = await self.loop.create_connection(lambda: PodConnection(self, target), target[0], target[1])
        except TimeoutError as error:
            raise ConnectFailed(f"no connection to {target[0]}:{target[1]} within {self.settings.connect_timeout:g}s") from error
        except OSError as error:
            raise ConnectFailed(f"no connection to {target[0]}:{target[1]}: {error}") from error
        if self._closed and connection.transport is not None:
            connection.transport.abort()
            raise ConnectFailed("the gateway stops")
        return connection

    async def send(self, connection: PodConnection, receiver: Receiver, head: bytes, body: Body | None) -> None:
        """Send over this connection. Whatever happens from here on, the receiver is told."""
        self._attach(connection, receiver)
        transport = connection.transport
        assert transport is not None  # noqa: S101 - it is connected
        transport.write(head)
        if body is None:
            return
        whole = body.in_memory
        if whole is not None:
            transport.write(whole)
            return
        connection.written = False
        offset = 0
        while offset < body.size and connection.receiver is receiver and not connection.headers_done:
            piece = await body.piece(offset, PIECE)
            if connection.receiver is not receiver or connection.headers_done:
                return
            offset += len(piece)
            transport.write(piece)
            connection.sent = self.loop.time()
            connection.written = offset >= body.size
            await connection.drain()

    async def fetch(self, target: Target, head: bytes, limit: int) -> tuple[int, bytes]:
        """Status and body of a small answer. Raises UpstreamError; a cancellation closes the connection."""
        collector = _Collector(self.loop, limit)
        connection = self.begin(collector, target, head, b"")
        if connection is None:
            connection = await self.connect(target)
            await self.send(connection, collector, head, None)
        try:
            return await collector.result
        finally:
            if connection.receiver is collector:
                connection.let_go()

    def _attach(self, connection: PodConnection, receiver: Receiver) -> None:
        connection.begin(receiver)
        self._active.add(connection)
        if self._sweeper is None:
            self._sweep_later()

    def take(self, target: Target) -> PodConnection | None:
        """An idle connection, for `send`."""
        return self._take(target)

    def _take(self, target: Target) -> PodConnection | None:
        idle = self._idle.get(target)
        if not idle:
            return None
        oldest = self.loop.time() - self.settings.pool_idle
        while idle:
            since, connection = idle.pop()
            transport = connection.transport
            if since >= oldest and not connection.closed and transport is not None and not transport.is_closing():
                connection.reused = True
                return connection
            if transport is not None:
                transport.abort()
        return None

    def release(self, connection: PodConnection) -> None:
        """The answer is complete: keep the connection when it may serve again."""
        self._active.discard(connection)
        if self._closed or not connection.reusable:
            if connection.transport is not None:
                connection.transport.abort()
            return
        if connection.paused:
            connection.resume()  # while it is idle its end must be noticed
        idle = self._idle.get(connection.target)
        if idle is None:
            idle = self._idle[connection.target] = deque()
        idle.append((self.loop.time(), connection))
        if self._sweeper is None:
            self._sweep_later()

    def forget(self, connection: PodConnection) -> None:
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


class _Collector:
    """Implements `Receiver` for answers that are read whole."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        self.result: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self._limit = limit
        self._status = 0
        self._body = bytearray()

    def on_answer(self, connection: PodConnection) -> None:
        self._status = connection.status

    def on_data(self, data: bytes, *, last: bool) -> bool:  # noqa: ARG002 - the protocol's form
        self._body += data
        if len(self._body) > self._limit and not self.result.done():
            self.result.set_exception(ValueError(f"the answer is larger than {self._limit} bytes"))
        return not self.result.done()

    def on_end(self, error: UpstreamError | None) -> None:
        if self.result.done():
            return
        if error is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result((self._status, bytes(self._body)))


__all__ = ["Body", "Upstream"]
