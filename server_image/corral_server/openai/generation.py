"""Running one or more answers in the engine for a request, whatever shape they are then given."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from corral_server.channel import Message
from corral_server.engine_client import EngineClient, Stream
from corral_server.openai.answers import quiet_seconds, unless_gone
from corral_server.openai.sampling import leaves_nothing_to_chance


@dataclass
class Finished:
    """One whole answer."""

    text: str = ""
    reason: str = "stop"
    usage: dict[str, Any] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    pieces: list[tuple[str, int]] = field(default_factory=list)
    """The text as it came, each piece with the number of its tokens."""
    stopped_by: str | None = None
    events: list[Message] = field(default_factory=list)
    """All that was told of it."""


@dataclass
class Begun:
    """Events that have come, or will soon, and those after them."""

    first: "asyncio.Task[list[tuple[int, Message]]]"
    rest: AsyncIterator[list[tuple[int, Message]]]

    async def batches(self) -> AsyncIterator[list[tuple[int, Message]]]:
        yield await self.first
        async for batch in self.rest:
            yield batch


@dataclass(frozen=True)
class _Told:
    """An engine's stream, and the indexes of the answers that are told by it."""

    stream: Stream
    indexes: list[int]

    def to_each(self, batch: list[Message]) -> list[tuple[int, Message]]:
        first, *others = self.indexes
        if not others:
            return [(first, event) for event in batch]
        told = []
        for event in batch:
            # What was asked about the prompt is the first one's.
            rest = {k: v for k, v in event.items() if k != "pl"} if "pl" in event else event
            told += [(first, event), *((index, rest) for index in others)]
        return told


class Generation:
    """The answers of one request, index by index; closing cancels whatever still runs. Its jobs differ in nothing but prompt, seed and who asked
    about the prompt.
    """

    def __init__(self, engine: EngineClient, jobs: Sequence[dict[str, Any]]) -> None:
        self.count = len(jobs)
        self._told: list[_Told] = []
        leaders: dict[str, _Told] = {}
        try:
            for index, job in enumerate(jobs):
                # Answers to one prompt: the first evaluates it for all.
                key = f"{id(job.get('media'))} {job['prompt']!r}"
                leader = leaders.get(key)
                if leader is not None and leaves_nothing_to_chance(job["sampling"]):
                    # Evaluated beside each other they might part, where two tokens are nearly as good: sums of another order.
                    leader.indexes.append(index)
                    continue
                self._told.append(_Told(engine.submit("new", job if leader is None else {**job, "leader": leader.stream.id}), [index]))
                leaders.setdefault(key, self._told[-1])
        except BaseException:
            self.close()
            raise

    @property
    def streams(self) -> list[Stream]:
        return [told.stream for told in self._told]

    def close(self) -> None:
        for stream in self.streams:
            stream.close()

    async def collect(self) -> list[Finished]:
        tasks = [asyncio.create_task(_collect(told.stream)) for told in self._told]
        try:
            finished = dict[int, Finished]()
            for told, answer in zip(self._told, await asyncio.gather(*tasks), strict=True):
                finished.update(dict.fromkeys(told.indexes, answer))
            return [finished[index] for index in range(self.count)]
        finally:
            # When one failed, the others would wait for events that never come.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.close()

    async def events(self) -> AsyncIterator[list[tuple[int, Message]]]:
        """Events of all answers as they come, each with its index; EngineError when one fails."""
        if len(self._told) == 1:
            async for batch in self._told[0].stream.batches():
                yield self._told[0].to_each(batch)
            return
        merged: asyncio.Queue[list[tuple[int, Message]] | BaseException | None] = asyncio.Queue()

        async def pump(told: _Told) -> None:
            try:
                async for batch in told.stream.batches():
                    merged.put_nowait(told.to_each(batch))
            except Exception as error:
                merged.put_nowait(error)
            else:
                merged.put_nowait(None)

        pumps = [asyncio.create_task(pump(told)) for told in self._told]
        try:
            left = len(pumps)
            while left:
                item = await merged.get()
                if item is None:
                    left -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


async def _collect(stream: Stream) -> Finished:
    finished = Finished()
    async for batch in stream.batches():
        finished.events += batch
        for event in batch:
            if text := event.get("d"):
                finished.pieces.append((text, event.get("n", 1)))
            if "pl" in event:
                finished.prompt_logprobs = event["pl"]
            if "lp" in event:
                finished.logprobs.append(event["lp"])
            if "f" in event:
                finished.reason = event["f"]
                finished.usage = event["u"]
                finished.stopped_by = event.get("stop")
    finished.text = "".join(text for text, _ in finished.pieces)
    return finished


async def begin(request: Request, generation: Generation) -> Begun:
    """The stream of a generation once it has begun, so that an early failure still gets its real status.

    A prompt that takes long to read is waited for as long as a stream may say nothing; then its answer begins, and comments tell that it lives.
    """
    events = generation.events()
    first = asyncio.create_task(_first_of(events))
    try:
        await unless_gone(request, asyncio.wait({first}, timeout=quiet_seconds(request)))
        if first.done():
            first.result()
    except BaseException:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        generation.close()
        raise
    return Begun(first, events)


async def _first_of(events: AsyncIterator[list[tuple[int, Message]]]) -> list[tuple[int, Message]]:
    async for batch in events:
        return batch
    return []
