"""`/v1/chat/completions`, and the count of its input."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from corral_server import __version__
from corral_server.channel import Message
from corral_server.dialects.reader import Part
from corral_server.engine_client import EngineError
from corral_server.openai import fields
from corral_server.openai.answers import (
    DONE,
    EventStream,
    Head,
    Usage,
    counted_response,
    engine_error_event,
    json_response,
    sse,
    timings,
    unless_gone,
)
from corral_server.openai.conversation import Call, Conversation, Said, call_id, prepare, shown
from corral_server.openai.generation import Begun, Generation, begin
from corral_server.openai.logprobs import chat_logprobs
from corral_server.openai.native_answer import timings_of, verbose
from corral_server.openai.prompting import render_prompt
from corral_server.openai.service import Service

FINGERPRINT = f"b0-corral-{__version__}"
"""In llama.cpp's form: `b`, the number of a build, its name."""


async def chat_completions(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    streaming, usage_chunk = fields.flag(body, "stream"), fields.stream_usage(body)
    conversation = await prepare(service, request, body)
    head = Head.make("chatcmpl-", service.served_name(request, body))
    generation = conversation.start(service)
    usage = Usage()
    if not streaming:
        finished = await unless_gone(request, generation.collect())
        answers = [conversation.said(f) for f in finished]
        return counted_response(request, _whole(head, answers, conversation, usage), usage)
    begun = await begin(request, generation)
    return EventStream(_chunks(head, conversation, generation, begun, usage, usage_chunk=usage_chunk), request, usage)


async def count_input(service: Service, request: Request) -> Response:
    """`/v1/chat/completions/input_tokens`."""
    body = fields.parse_body(await service.body(request))
    return json_response({"object": "response.input_tokens", "input_tokens": await count_tokens(service, request, body)})


async def count_tokens(service: Service, request: Request, body: dict[str, Any], named: Sequence[str] | None = None) -> int:
    """How many tokens the prompt of a chat body has."""
    service.engine()
    prompt = await unless_gone(request, render_prompt(service, request, body, named))
    found = await service.ask(
        request, "tokenize", {"content": prompt.text, "add_special": True, "parse_special": True, **await shown(service, request, prompt)}
    )
    return len(found["tokens"])


def call_shape(call: Call) -> dict[str, Any]:
    if call.custom:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _whole(head: Head, answers: list[Said], conversation: Conversation, usage: Usage) -> dict[str, Any]:
    choices, top = [], conversation.top
    for index, said in enumerate(answers):
        usage.add(said.finished.usage, first=index == 0, reasoning=said.thought_tokens)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": said.text if said.text or not said.calls else None,
            "refusal": None,
            "annotations": [],
        }
        if said.thought:
            message["reasoning_content"] = said.thought
        if said.calls and conversation.toolbox.legacy:
            message["function_call"] = {"name": said.calls[0].name, "arguments": said.calls[0].arguments}
        elif said.calls:
            message["tool_calls"] = [call_shape(c) for c in said.calls]
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": chat_logprobs(said.finished.logprobs, top) if top is not None else None,
                "finish_reason": _reason(conversation, said.finished.reason, called=bool(said.calls)),
            }
        )
    shape = {
        "id": head.id, "object": "chat.completion", "created": head.created, "model": head.model, "system_fingerprint": FINGERPRINT,
        "choices": choices, "usage": usage.shape(), "service_tier": "default", "timings": timings(answers[0].finished.usage),
    }  # fmt: skip
    if conversation.own.verbose:
        shape["__verbose"] = verbose(conversation.jobs[0], 0, head.model, answers[0].finished.events)
    return shape


async def _chunks(
    head: Head, conversation: Conversation, generation: Generation, begun: Begun, usage: Usage, *, usage_chunk: bool
) -> AsyncIterator[bytes]:
    base = {"id": head.id, "object": "chat.completion.chunk", "created": head.created, "model": head.model, "system_fingerprint": FINGERPRINT}
    tail = {"usage": None} if usage_chunk else {}
    # The hot path splices the text between two constant pieces instead of encoding the whole document per token.
    prefix = b"data: " + orjson.dumps(base)[:-1] + b',"choices":[{"index":'
    suffix = b'},"logprobs":null,"finish_reason":null}]' + (b',"usage":null' if usage_chunk else b"") + b"}\n\n"
    last: dict[str, Any] = {}
    top, own = conversation.top, conversation.own
    told: list[list[Message]] = [[] for _ in range(generation.count)]
    legacy = conversation.toolbox.legacy
    delta = _legacy_delta if legacy else _delta
    readers = [conversation.reading() for _ in range(generation.count)]

    def chunk(index: int, new: dict[str, Any], reason: str | None = None, logprobs: Any = None, **more: Any) -> bytes:
        return sse({**base, "choices": [{"index": index, "delta": new, "logprobs": logprobs, "finish_reason": reason}], **tail, **more})

    def said(index: int, parts: list[Part], **more: Any) -> bytes:
        # A legacy answer has room for one call.
        return b"".join(chunk(index, delta(part), **more) for part in parts if not (part.call and legacy))

    def per_token(event: Message) -> dict[str, Any]:
        return {"timings": timings(event["u"])} if own.timings else {}

    def render(batch: list[tuple[int, Message]]) -> bytes:
        out = b""
        for index, event in batch:
            if "start" in event:
                continue
            text, reader = event.get("d", ""), readers[index]
            if own.verbose:
                told[index].append(event)
            if "pp" in event:
                if own.progress:
                    share = event["pp"]
                    figures: dict[str, Any] = {"timings": timings_of(share)} if own.timings else {}
                    out += chunk(index, {"role": "assistant", "content": None}, prompt_progress=share, **figures)
                continue
            if top is not None and "lp" in event:
                logprobs = chat_logprobs([event["lp"]], top)
                parts = reader.take(event) or [Part("text", "")]
                out += chunk(index, delta(parts[0]), logprobs=logprobs, **per_token(event)) + said(index, parts[1:])
            elif text and own.timings:
                out += said(index, reader.take(event), **per_token(event))
            elif text and reader.plain:
                out += prefix + b"%d" % index + b',"delta":{"content":' + orjson.dumps(text) + suffix
            elif text:
                out += said(index, reader.take(event))
            if "f" in event:
                usage.add(event["u"], first=index == 0, reasoning=reader.thought_tokens)
                last.update(event["u"])
                out += said(index, reader.finish())
                reason = _reason(conversation, event["f"], called=bool(reader.calls))
                more: dict[str, Any] = {} if usage_chunk else {"timings": timings(event["u"])}
                if own.verbose:
                    more["__verbose"] = verbose(conversation.jobs[index], index, head.model, told[index], stream=True)
                out += chunk(index, {}, reason, **more)
        return out

    try:
        opening = b"".join(chunk(i, {"role": "assistant", "content": None, "refusal": None}) for i in range(generation.count))
        async for batch in begun.batches():
            if block := opening + render(batch):
                yield block
            opening = b""
        if usage_chunk:
            yield sse({**base, "choices": [], "usage": usage.shape(), "timings": timings(last)})
        yield DONE
    except EngineError as error:
        yield engine_error_event(error)
    finally:
        generation.close()


def _reason(conversation: Conversation, reason: str, *, called: bool) -> str:
    if not called or reason != "stop":
        return reason
    return "function_call" if conversation.toolbox.legacy else "tool_calls"


def _delta(part: Part) -> dict[str, Any]:
    if part.kind == "call":
        return {"tool_calls": [{"index": part.call, "id": call_id(), "type": "function", "function": {"name": part.text, "arguments": ""}}]}
    if part.kind == "arguments":
        return {"tool_calls": [{"index": part.call, "function": {"arguments": part.text}}]}
    if part.kind == "custom":
        return {"tool_calls": [{"index": part.call, "id": call_id(), "type": "custom", "custom": {"name": part.text, "input": ""}}]}
    if part.kind == "input":
        return {"tool_calls": [{"index": part.call, "custom": {"input": part.text}}]}
    return {"reasoning_content" if part.kind == "thought" else "content": part.text}


def _legacy_delta(part: Part) -> dict[str, Any]:
    """For who asked with `functions`, before there were tools."""
    if part.kind == "call":
        return {"function_call": {"name": part.text, "arguments": ""}}
    return {"function_call": {"arguments": part.text}} if part.kind == "arguments" else _delta(part)
