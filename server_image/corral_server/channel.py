"""Frames between supervisor, zygote, engine and renderer: a length and a JSON document, over a Unix socket pair.

Owns the framing only. The engine's side never blocks on reading while it has work.
"""

import asyncio
import select
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import orjson

_HEADER = struct.Struct("<I")
MAX_FRAME = 256 << 20
Message = dict[str, Any]


def pack(message: Message) -> bytes:
    body = orjson.dumps(message)
    return _HEADER.pack(len(body)) + body


class ClosedError(Exception):
    """The other side is gone."""


class BlockingChannel:
    """The side of a process that runs no event loop."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(True)
        self._buffer = bytearray()

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Message) -> None:
        try:
            self._sock.sendall(pack(message))
        except OSError as error:
            raise ClosedError(str(error)) from None

    def receive(self, timeout: float | None, *, unless: int | None = None) -> list[Message]:
        """All complete messages that are there; waits up to `timeout` (None: until one comes) for the first, or until the descriptor `unless`
        can be read.
        """
        messages = _take_frames(self._buffer)
        watched: list[Any] = [self._sock] if unless is None else [self._sock, unless]
        while not messages:
            readable, _, _ = select.select(watched, [], [], timeout)
            if self._sock not in readable:
                return []
            self._fill()
            messages = _take_frames(self._buffer)
        return messages

    def poll(self) -> list[Message]:
        """What has arrived, without waiting."""
        while select.select([self._sock], [], [], 0)[0]:
            self._fill()
        return _take_frames(self._buffer)

    def _fill(self) -> None:
        try:
            data = self._sock.recv(1 << 20)
        except OSError as error:
            raise ClosedError(str(error)) from None
        if not data:
            raise ClosedError("the other side closed the channel")
        self._buffer += data


def _take_frames(buffer: bytearray) -> list[Message]:
    """The complete messages at the beginning of a buffer, which are taken out of it."""
    messages: list[Message] = []
    start = 0
    while len(buffer) - start >= _HEADER.size:
        (length,) = _HEADER.unpack_from(buffer, start)
        if length > MAX_FRAME:
            raise ClosedError(f"a frame of {length} bytes is longer than any of ours")
        end = start + _HEADER.size + length
        if len(buffer) < end:
            break
        messages.append(orjson.loads(memoryview(buffer)[start + _HEADER.size : end]))
        start = end
    if start:
        del buffer[:start]
    return messages


class AsyncChannel(asyncio.Protocol):
    """The supervisor's side. What arrives is taken apart in the event loop's callback: one task lies between engine and client, not two."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiting: deque[Message] = deque()
        self._taker: Callable[[Message], None] | None = None
        self._news = asyncio.Event()
        self._over = False

    @classmethod
    async def open(cls, sock: socket.socket) -> "AsyncChannel":
        sock.setblocking(False)
        _, channel = await asyncio.get_running_loop().create_unix_connection(cls, sock=sock)
        return channel

    def send(self, message: Message) -> None:
        """Queue a message; the requests that we admit bound how much can pile up."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(message))

    async def next(self) -> Message | None:
        """The next message; None once the other side is gone."""
        while not self._waiting:
            if self._over:
                return None
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    async def messages(self) -> AsyncIterator[Message]:
        """Every message until the other side is gone."""
        while (message := await self.next()) is not None:
            yield message

    async def hand_to(self, taker: Callable[[Message], None]) -> None:
        """Call `taker` with every message from now on, as it arrives; returns when the other side is gone."""
        while self._waiting:
            taker(self._waiting.popleft())
        self._taker = taker
        while not self._over:
            self._news.clear()
            await self._news.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A stream's; uvloop's own are of no class of asyncio.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        messages = _take_frames(self._buffer)
        if self._taker is None:
            self._waiting += messages
            self._news.set()
            return
        for message in messages:
            self._taker(message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  gone is gone
        self._over = True
        self._news.set()
