"""`/v1/responses` and `/v1/responses/input_tokens`: the responses API's objects and its stream of events."""

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from corral_server.channel import Message
from corral_server.dialects.reader import Part
from corral_server.engine_client import EngineError
from corral_server.openai import fields
from corral_server.openai.answers import EventStream, Head, Usage, counted_response, json_response, timings, unless_gone
from corral_server.openai.chat import count_tokens
from corral_server.openai.compacting import TAKEN, compacted, latest_words, summary_of
from corral_server.openai.conversation import Conversation, prepare
from corral_server.openai.errors import invalid
from corral_server.openai.generation import Begun, Generation, begin
from corral_server.openai.response_items import Output
from corral_server.openai.response_object import begun, ended, failed
from corral_server.openai.responses_request import to_chat
from corral_server.openai.service import Service
from corral_server.openai.stored_responses import built_on, listed, store, with_ids

_GROWING = ("response.output_text.delta", "response.reasoning_text.delta", "response.reasoning_summary_text.delta")
_MEASURED = (*_GROWING, "response.completed", "response.incomplete")
"""Events that have llama.cpp's figures, where they were asked for."""


async def responses(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    streaming = fields.flag(body, "stream")
    body, before = await built_on(service, body)
    chat = to_chat(body, before)
    conversation = await prepare(service, request, chat.body, chat.named)
    head = Head(service.kept.new_id(), service.served_name(request, body))
    base = begun(head, body, conversation.jobs[0]["sampling"], chat.tools, parallel=conversation.toolbox.parallel is not False)
    generation = conversation.start(service)
    usage, keep = Usage(), functools.partial(store, service, body)
    if not streaming:
        (finished,) = await unless_gone(request, generation.collect())
        output, reading = Output(base, conversation.top), conversation.reading()
        parts = [part for text, tokens in finished.pieces for part in reading.feed(text, tokens)] + reading.finish()
        for part in parts:
            output.part(part)
        usage.add(finished.usage, first=True, reasoning=reading.thought_tokens)
        output.logprobs += finished.logprobs
        output.end(cut=finished.reason == "length")
        return counted_response(request, await keep(ended(base, finished.reason, output.items, usage)), usage)
    return EventStream(_events(base, conversation, generation, await begin(request, generation), usage, keep), request, usage)


async def count_input(service: Service, request: Request) -> Response:
    chat = to_chat(*await built_on(service, fields.parse_body(await service.body(request))))
    return json_response({"object": "response.input_tokens", "input_tokens": await count_tokens(service, request, chat.body, chat.named)})


async def compact(service: Service, request: Request) -> Response:
    """`/v1/responses/compact`."""
    body, before = await built_on(service, fields.parse_body(await service.body(request)))
    if not fields.text(body, "model"):
        raise invalid("model", "model is missing; it names the model that is to go on with the conversation")
    if body.get("input") is None and before:
        before, body = before[:-1], {**body, "input": before[-1:]}
    chat = to_chat({name: body[name] for name in TAKEN if name in body}, before)
    summary, usage = await summary_of(service, request, chat.body, chat.named)
    name = service.kept.new_id()
    # Words are shorter than tokens seldom: no more than a quarter of the context is taken by what is repeated.
    words = latest_words([*before, *with_ids(body["input"], name)], int(service.model.get("contextLength", 0)))
    return compacted(request, name, [listed(item) for item in words], summary, usage)


async def _events(
    base: dict[str, Any],
    conversation: Conversation,
    generation: Generation,
    begun: Begun,
    usage: Usage,
    keep: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
) -> AsyncIterator[bytes]:
    out: list[bytes] = []
    number = 0
    figures: dict[str, Any] = {}

    def tell(kind: str, **more: Any) -> None:
        nonlocal number
        told = {"type": kind, "sequence_number": number, **more, **(figures if kind in _MEASURED else {})}
        out.append(b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(told) + b"\n\n")
        number += 1

    def taken() -> bytes:
        block = b"".join(out)
        out.clear()
        return block

    output, reading = Output(base, conversation.top, tell), conversation.reading()
    own = conversation.own

    async def render(event: Message) -> None:
        nonlocal figures
        if "pp" in event and own.progress:
            tell("response.in_progress", response=base, prompt_progress=event["pp"])
        figures = {"timings": timings(event["u"])} if own.timings and "u" in event else {}
        parts = reading.take(event)
        entries = [event["lp"]] if "lp" in event else []
        if entries and not parts:
            parts = [Part("text", "")]
        for index, part in enumerate(parts):
            output.part(part, entries if index == 0 else None)
        if "f" in event:
            usage.add(event["u"], first=True, reasoning=reading.thought_tokens)
            for part in reading.finish():
                output.part(part)
            output.end(cut=event["f"] == "length")
            whole = await keep(ended(base, event["f"], output.items, usage))
            tell(f"response.{whole['status']}", response=whole)

    tell("response.created", response=base)
    tell("response.in_progress", response=base)
    try:
        async for batch in begun.batches():
            for _, event in batch:
                await render(event)
            if block := taken():
                yield block
    except EngineError as error:
        tell("response.failed", response=failed(base, str(error), output.items))
        yield taken()
    finally:
        generation.close()
