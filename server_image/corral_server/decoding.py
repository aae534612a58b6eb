"""Images and audio from the supervisor's side: has them decoded by a process of their own, and keeps what comes out until the engine has it."""

import asyncio
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from corral_server.nursery import Child, Nursery

TIME_LIMIT = 30.0
_AT_ONCE = 1
"""Requests whose decoded images and audio may lie in memory at the same time: it takes milliseconds, and the footprint counts on it."""


@dataclass(frozen=True)
class MediaItem:
    """A part of a request that is no text. `kind`: image, audio or any; `data`: the file in base64; `where`: the field that it is in."""

    kind: str
    data: str
    where: str


class MediaError(Exception):
    """A part that cannot be used."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where} {message}")
        self.where = where


class Decoded:
    """What a request's files came to, in memory that the engine can open. Gone once every job that was given some of it has it; the request's seat
    is free once every job is over.
    """

    def __init__(self, descriptor: int, orders: list[dict[str, Any]], room: asyncio.Semaphore, seats: asyncio.Semaphore) -> None:
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        self.orders = [{**order, "path": path} for order in orders]
        self._waiting = self._unfinished = 0
        # Also where no job comes of it.
        self._close = weakref.finalize(self, _closed, descriptor, room)
        self._leave = weakref.finalize(self, seats.release)

    def hold(self) -> None:
        self._waiting += 1
        self._unfinished += 1

    def taken(self) -> None:
        self._waiting -= 1
        if self._waiting <= 0:
            self._close()

    def over(self) -> None:
        self._unfinished -= 1
        if self._unfinished <= 0:
            self._leave()

    def some(self, start: int, end: int) -> "Media | None":
        return Media(self, self.orders[start:end]) if end > start else None


@dataclass(frozen=True, eq=False)
class Media:
    """Those of a request's images and audio that belong to one prompt."""

    whole: Decoded
    orders: list[dict[str, Any]]


def _closed(descriptor: int, room: asyncio.Semaphore) -> None:
    os.close(descriptor)
    room.release()


class Decoding:
    def __init__(self, nursery: Nursery, seats: int) -> None:
        """`seats`: how many requests with images or audio the engine has at a time: each holds what was made of them until it is answered."""
        self._nursery = nursery
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._seats = asyncio.Semaphore(seats)
        self.waiting = 0

    async def decode(self, items: Sequence[MediaItem], sample_rate: int) -> Decoded:
        """Pixels and samples; MediaError names the part that has none."""
        self.waiting += 1
        try:
            await self._seats.acquire()
        finally:
            self.waiting -= 1
        try:
            return await self._seated(items, sample_rate)
        except BaseException:
            self._seats.release()
            raise

    async def _seated(self, items: Sequence[MediaItem], sample_rate: int) -> Decoded:
        await self._room.acquire()
        descriptor = -1
        try:
            descriptor = os.memfd_create("corral-media", os.MFD_CLOEXEC)
            found = await self._ask(items, sample_rate, f"/proc/{os.getpid()}/fd/{descriptor}")
        except BaseException:
            self._room.release()
            if descriptor >= 0:
                os.close(descriptor)
            raise
        return Decoded(descriptor, found, self._room, self._seats)

    async def _ask(self, items: Sequence[MediaItem], sample_rate: int, path: str) -> list[dict[str, Any]]:
        child = await self._nursery.fork("decoder")
        try:
            child.channel.send({"path": path, "sampleRate": sample_rate, "parts": [{"kind": i.kind, "data": i.data} for i in items]})
            answer = await asyncio.wait_for(_answer(child), TIME_LIMIT)
        except TimeoutError:
            raise MediaError(_all(items), f"took longer than {TIME_LIMIT:.0f} s to decode") from None
        finally:
            child.kill()
            child.channel.close()
        if answer is None:
            raise MediaError(_all(items), "could not be decoded: it ended the process that read it")
        if "error" in answer:
            raise MediaError(items[answer["index"]].where, answer["error"])
        found: list[dict[str, Any]] = answer["media"]
        return found


async def _answer(child: Child) -> dict[str, Any] | None:
    async for message in child.channel.messages():
        return message
    return None


def _all(items: Sequence[MediaItem]) -> str:
    return items[0].where if len(items) == 1 else f"one of {', '.join(i.where for i in items)}"
