"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's answers, streams and errors."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from corral_server.anthropic.request import to_chat
from corral_server.channel import Message
from corral_server.dialects.reader import Part
from corral_server.engine_client import EngineError
from corral_server.openai import fields
from corral_server.openai.answers import EventStream, Usage, counted_response, json_response, unless_gone
from corral_server.openai.chat import count_tokens as count_chat_tokens
from corral_server.openai.conversation import Call, Conversation, Said, prepare
from corral_server.openai.generation import Begun, Generation, begin
from corral_server.openai.service import Service

_ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error",
}  # fmt: skip


def error_shape(status: int, message: str) -> dict[str, Any]:
    kind = _ERRORS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}


async def messages(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    streaming = fields.flag(body, "stream")
    chat = to_chat(body)
    conversation = await prepare(service, request, chat.body, chat.named)
    generation = conversation.start(service)
    name = service.served_name(request, body)
    base = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": name, "stop_details": None, "container": None}
    usage = Usage()
    if not streaming:
        (finished,) = await unless_gone(request, generation.collect())
        said = conversation.said(finished)
        usage.add(finished.usage, first=True, reasoning=said.thought_tokens)
        reason, stopped_by = _stop(finished.reason, finished.stopped_by, calls=bool(said.calls), ours=body.get("stop_sequences"))
        shape = {**base, "content": _content(said), "stop_reason": reason, "stop_sequence": stopped_by, "usage": _usage(usage)}
        return counted_response(request, shape, usage)
    begun = await begin(request, generation)
    return EventStream(_events(base, conversation, generation, begun, usage, body.get("stop_sequences")), request, usage)


async def count_tokens(service: Service, request: Request) -> Response:
    chat = to_chat(fields.parse_body(await service.body(request)), counting=True)
    return json_response({"input_tokens": await count_chat_tokens(service, request, chat.body, chat.named)})


def _usage(usage: Usage) -> dict[str, Any]:
    return {**_last_usage(usage), "cache_creation": None, "inference_geo": None, "service_tier": "standard"}


def _last_usage(usage: Usage) -> dict[str, Any]:
    """What a stream's last counts hold."""
    return {
        "input_tokens": usage.prompt - usage.cached, "output_tokens": usage.completion, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached, "output_tokens_details": {"thinking_tokens": usage.reasoning}, "server_tool_use": None,
    }  # fmt: skip


def _stop(reason: str, stopped_by: str | None, *, calls: bool, ours: Any) -> tuple[str, str | None]:
    if reason == "length":
        return "max_tokens", None
    if calls:
        return "tool_use", None
    asked = [ours] if isinstance(ours, str) else ours or []
    return ("stop_sequence", stopped_by) if stopped_by in asked else ("end_turn", None)


def _content(said: Said) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if said.thought:
        blocks.append({"type": "thinking", "thinking": said.thought, "signature": ""})
    if said.text or not said.calls:
        blocks.append({"type": "text", "text": said.text, "citations": None})
    return blocks + [{**_tool_use(call), "input": _input(call.arguments)} for call in said.calls]


def _tool_use(call: Call) -> dict[str, Any]:
    return {"type": "tool_use", "id": _tool_id(call), "name": call.name, "input": {}, "caller": {"type": "direct"}}


def _tool_id(call: Call) -> str:
    return "toolu_" + call.id.removeprefix("call_")


def _input(arguments: str) -> dict[str, Any]:
    try:
        found = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        # Cut off in the middle; the stop reason says so.
        return {}
    return found if isinstance(found, dict) else {}


def _event(kind: str, **more: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **more}) + b"\n\n"


class _Blocks:
    """The content blocks of a stream: opened when their first part comes, closed when another kind does."""

    def __init__(self) -> None:
        self.index = -1
        self._open: tuple[str, int] | None = None

    def part(self, part: Part) -> bytes:
        kind = {"call": "tool", "arguments": "tool"}.get(part.kind, part.kind)
        out = b""
        if self._open != (kind, part.call):
            out += self.close()
            self.index += 1
            self._open = (kind, part.call)
            start: dict[str, Any] = {"type": "text", "text": "", "citations": None}
            if kind == "thought":
                start = {"type": "thinking", "thinking": "", "signature": ""}
            elif kind == "tool":
                start = _tool_use(Call(part.text))
            out += _event("content_block_start", index=self.index, content_block=start)
        if part.kind == "call":
            return out
        delta: dict[str, Any] = {"type": "text_delta", "text": part.text}
        if kind == "thought":
            delta = {"type": "thinking_delta", "thinking": part.text}
        elif kind == "tool":
            delta = {"type": "input_json_delta", "partial_json": part.text}
        return out + _event("content_block_delta", index=self.index, delta=delta)

    def close(self) -> bytes:
        if self._open is None:
            return b""
        kind, self._open = self._open[0], None
        signature = _event("content_block_delta", index=self.index, delta={"type": "signature_delta", "signature": ""}) if kind == "thought" else b""
        return signature + _event("content_block_stop", index=self.index)


async def _events(
    base: dict[str, Any], conversation: Conversation, generation: Generation, begun: Begun, usage: Usage, stops: Any
) -> AsyncIterator[bytes]:
    reading, blocks = conversation.reading(), _Blocks()
    started = False

    def render(event: Message) -> bytes:
        nonlocal started
        out = b""
        if not started:
            started = True
            counts = event.get("start") or event.get("u") or {}
            begun_usage = Usage(prompt=counts.get("prompt", 0), cached=counts.get("cached", 0), completion=1)
            out += _event("message_start", message={**base, "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(begun_usage)})
        for part in reading.take(event):
            out += blocks.part(part)
        if "f" in event:
            usage.add(event["u"], first=True, reasoning=reading.thought_tokens)
            for part in reading.finish():
                out += blocks.part(part)
            if blocks.index < 0:
                out += blocks.part(Part("text", ""))
            out += blocks.close()
            reason, stopped_by = _stop(event["f"], event.get("stop"), calls=bool(reading.calls), ours=stops)
            delta = {"stop_reason": reason, "stop_sequence": stopped_by, "stop_details": None, "container": None}
            out += _event("message_delta", delta=delta, usage=_last_usage(usage))
            out += _event("message_stop")
        return out

    try:
        async for batch in begun.batches():
            if block := b"".join(render(event) for _, event in batch):
                yield block
    except EngineError as error:
        yield b"event: error\ndata: " + orjson.dumps(error_shape(error.status, str(error))) + b"\n\n"
    finally:
        generation.close()
