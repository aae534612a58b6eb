"""Frames between supervisor, zygote, engine and renderer: a length and a JSON document, over a Unix socket pair.

Owns the framing only. The engine's side never blocks on reading while it has work.
"""

import asyncio
import select
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

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
        messages = self._parse()
        watched: list[Any] = [self._sock] if unless is None else [self._sock, unless]
        while not messages:
            readable, _, _ = select.select(watched, [], [], timeout)
            if self._sock not in readable:
                return []
            self._fill()
            messages = self._parse()
        return messages

    def poll(self) -> list[Message]:
        """What has arrived, without waiting."""
        while select.select([self._sock], [], [], 0)[0]:
            self._fill()
        return self._parse()

    def _fill(self) -> None:
        try:
            data = self._sock.recv(1 << 20)
        except OSError as error:
            raise ClosedError(str(error)) from None
        if not data:
            raise ClosedError("the other side closed the channel")
        self._buffer += data

    def _parse(self) -> list[Message]:
        messages: list[Message] = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer, start)
            if length > MAX_FRAME:
                raise ClosedError(f"a frame of {length} bytes is longer than any of ours")
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append(orjson.loads(memoryview(self._buffer)[start + _HEADER.size : end]))
            start = end
        if start:
            del self._buffer[:start]
        return messages


class AsyncChannel:
    """The supervisor's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> "AsyncChannel":
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=1 << 20)
        return cls(reader, writer)

    def send(self, message: Message) -> None:
        """Queue a message; the requests that we admit bound how much can pile up."""
        if not self._writer.is_closing():
            self._writer.write(pack(message))

    async def drain(self) -> None:
        await self._writer.drain()

    async def messages(self) -> AsyncIterator[Message]:
        """Every message until the other side is gone."""
        while True:
            try:
                header = await self._reader.readexactly(_HEADER.size)
                (length,) = _HEADER.unpack(header)
                body = await self._reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            yield orjson.loads(body)

    def close(self) -> None:
        self._writer.close()
