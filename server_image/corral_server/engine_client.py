"""The supervisor's side of a running engine: requests out, one stream of events per request back.

A client that reads slowly holds up nobody: events wait in its own stream, whose length the answer's length bounds.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from corral_server.channel import Message
from corral_server.decoding import Media
from corral_server.metrics import Totals
from corral_server.nursery import Child


class EngineError(Exception):
    """What the engine, or its death, answered to a request."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, *, retry: bool = True, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry = retry
        self.details = details or {}


class Stream:
    """The events of one request, in order; ends after the one that has `f`."""

    def __init__(self, client: "EngineClient", request_id: int) -> None:
        self.id = request_id
        self._client = client
        self._events: deque[Message] = deque()
        self._wake = asyncio.Event()
        self.ended = False
        self._error: EngineError | None = None
        self._media: Media | None = None
        self._taken = True

    def hold(self, media: Media | None) -> None:
        """Keep what the request shows until the engine has it."""
        self._media = media
        self._taken = media is None
        if media is not None:
            media.whole.hold()

    def _take(self) -> None:
        if self._media is not None and not self._taken:
            self._media.whole.taken()
        self._taken = True

    def over(self) -> None:
        """Nothing more comes of it: what it shows is not needed any more."""
        self._take()
        media, self._media = self._media, None
        if media is not None:
            media.whole.over()

    def put(self, event: Message) -> None:
        self._take()
        if "taken" in event:
            return
        self._events.append(event)
        if "f" in event or "err" in event:
            self.ended = True
            self.over()
        self._wake.set()

    def fail(self, error: EngineError) -> None:
        self.over()
        if not self.ended:
            self._error = error
            self.ended = True
            self._wake.set()

    def take(self) -> list[Message]:
        """What has arrived and was not taken yet."""
        events = list(self._events)
        self._events.clear()
        return events

    async def batches(self) -> AsyncIterator[list[Message]]:
        """Whatever has arrived, each time something has; EngineError when the request failed."""
        while True:
            if self._events:
                events = self.take()
                bad = next((e["err"] for e in events if "err" in e), None)
                if bad is not None:
                    details = {k: v for k, v in bad.items() if k not in ("status", "code", "message", "param", "retry")}
                    raise EngineError(bad["status"], bad["code"], bad["message"], bad.get("param"), retry=bad.get("retry", True), details=details)
                yield events
                if "f" in events[-1]:
                    return
                continue
            if self._error is not None:
                raise self._error
            self._wake.clear()
            await self._wake.wait()

    async def last(self) -> Message:
        """The final event of a request that answers with one."""
        async for events in self.batches():
            if "f" in events[-1]:
                return events[-1]
        raise EngineError(500, "engine_failed", "the engine gave no answer", retry=False)

    def close(self) -> None:
        """The caller is done; an unfinished request is cancelled in the engine at its next step."""
        self._client.forget(self)


class EngineClient:
    def __init__(self, child: Child, totals: Totals) -> None:
        self.child = child
        self._totals = totals
        self.queued = 0
        self.active = 0
        self.refusal: EngineError | None = None
        self._streams: dict[int, Stream] = {}
        self._next = 0

    def submit(self, kind: str, body: dict[str, Any]) -> Stream:
        if self.refusal is not None:
            raise self.refusal
        self._next += 1
        media = body.get("media")
        if media is not None:
            body = {**body, "media": media.orders}
        stream = Stream(self, self._next)
        stream.hold(media)
        self._streams[stream.id] = stream
        self.child.channel.send({**body, "t": kind, "id": stream.id})
        return stream

    def forget(self, stream: Stream) -> None:
        stream.over()
        if self._streams.pop(stream.id, None) is not None and not stream.ended:
            stream.ended = True
            self.child.channel.send({"t": "cancel", "id": stream.id})

    def dispatch(self, message: Message) -> None:
        """Hand a step's events to their streams."""
        self.queued, self.active = message["queued"], message["active"]
        self._totals.stepped(message["figures"])
        for event in message["e"]:
            if "u" in event:
                self._totals.finished(event["u"])
            stream = self._streams.get(event["i"])
            if stream is not None:
                stream.put(event)

    def fail_all(self, error: EngineError) -> None:
        for stream in list(self._streams.values()):
            stream.fail(error)
        self._streams.clear()

    def end_all(self, error: EngineError) -> None:
        """End every answer with an error, and take no more until `refusal` is cleared."""
        self.refusal = error
        for stream in list(self._streams.values()):
            self.child.channel.send({"t": "cancel", "id": stream.id})
            stream.fail(error)
        self._streams.clear()

    @property
    def waiting(self) -> int:
        return len(self._streams)
