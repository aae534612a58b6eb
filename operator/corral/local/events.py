"""What happened, in order: the events that the operator writes, kept for a while and handed to whoever follows.

It must never be a source of truth: an event is for people.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

KEPT = 2000


@dataclass(frozen=True, slots=True)
class Event:
    number: int
    at: float
    warning: bool
    kind: str
    object: str  # namespace/name, or the name of what has no namespace
    reason: str
    message: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class EventLog:
    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._numbers = itertools.count(1)
        self._listeners: list[Callable[[Event], None]] = []
        self._news = asyncio.Event()

    def subscribe(self, listener: Callable[[Event], None]) -> None:
        self._listeners.append(listener)

    def add(self, regarding: Mapping[str, Any], *, warning: bool, reason: str, message: str) -> None:
        metadata = regarding.get("metadata", {})
        name = "/".join(filter(None, [metadata.get("namespace", ""), metadata.get("name", "")]))
        event = Event(next(self._numbers), time.time(), warning, str(regarding.get("kind", "")), name, reason, message)
        self._events.append(event)
        for listener in tuple(self._listeners):
            listener(event)
        self._news.set()
        self._news = asyncio.Event()

    def after(self, number: int) -> Sequence[Event]:
        return [event for event in self._events if event.number > number]

    async def wait_after(self, number: int, seconds: float) -> Sequence[Event]:
        """Events after `number`: those there are, or the first to come within `seconds`."""
        found = self.after(number)
        if not found:
            try:
                await asyncio.wait_for(self._news.wait(), seconds)
            except TimeoutError:
                return []
            found = self.after(number)
        return found
