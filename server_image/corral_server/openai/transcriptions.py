"""`/v1/audio/transcriptions`: a form with a recording, asked of the model as a chat, answered in OpenAI's shapes of a transcript."""

import base64
from collections.abc import AsyncIterator
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from corral_server.engine_client import EngineError
from corral_server.openai import fields
from corral_server.openai.answers import EventStream, Usage, counted_response, engine_error_event, sse, unless_gone
from corral_server.openai.conversation import Conversation, prepare
from corral_server.openai.errors import ApiError, invalid
from corral_server.openai.generation import Begun, Generation, begin
from corral_server.openai.service import Service

_FORMATS = ("json", "text", "verbose_json")
_ASKED = "Transcribe audio to text"
_SAMPLE = 4
"""Bytes of a decoded sample."""


async def transcriptions(service: Service, request: Request) -> Response:
    form = await _form(request, await service.body(request))
    body = _chat(form)
    kind = fields.choice(form, "response_format", _FORMATS, "json")
    streaming = form.get("stream") == "true"
    if service.pooling or not service.able.get("audio"):
        service.generator()
        raise ApiError(400, "not_supported", "this model takes no audio: it has no projector that hears", "file")
    conversation = await prepare(service, request, body, ["file"])
    seconds = sum(order["bytes"] for order in conversation.jobs[0]["media"].orders) / _SAMPLE / int(service.able["sampleRate"])
    generation = conversation.start(service)
    usage = Usage()
    if streaming:
        return EventStream(_events(conversation, generation, await begin(request, generation), usage), request, usage)
    (finished,) = await unless_gone(request, generation.collect())
    said = conversation.said(finished)
    usage.add(finished.usage, first=True)
    text = said.text.strip()
    if kind == "text":
        return PlainTextResponse(text + "\n")
    if kind == "verbose_json":
        named = form.get("language") or "unknown"
        return counted_response(
            request, {"task": "transcribe", "language": named, "duration": seconds, "text": text, "usage": _seconds(seconds)}, usage
        )
    return counted_response(request, {"text": text, "usage": _tokens(usage)}, usage)


async def _form(request: Request, raw: bytes) -> dict[str, Any]:
    """The form's fields; its file stays in memory: nothing that a client sends is written to a disk."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "invalid_form", "the body has to be a form (multipart/form-data) with a file")

    async def stream() -> AsyncIterator[bytes]:
        yield raw

    parser = MultiPartParser(request.headers, stream(), max_files=4, max_fields=64)  # type: ignore[arg-type]
    parser.spool_max_size = len(raw) + 1
    try:
        found = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise ApiError(400, "invalid_form", f"the body is not a form: {error}") from None
    form: dict[str, Any] = {}
    for name, value in found.multi_items():
        form[name] = await value.read() if isinstance(value, UploadFile) else value
    return form


def _chat(form: dict[str, Any]) -> dict[str, Any]:
    """The chat that asks for a transcript."""
    recording = form.get("file")
    if not isinstance(recording, bytes) or not recording:
        raise invalid("file", "file is missing; it has to be a recording: WAV, MP3 or FLAC")
    for name in ("timestamp_granularities[]", "timestamp_granularities"):
        if form.get(name) not in (None, "", "segment"):
            raise ApiError(400, "unsupported_parameter", f"{name} is {form[name]!r}; these models tell no times", name)
    asked = str(form.get("prompt") or _ASKED)
    if form.get("language"):
        asked += f" (language: {form['language']})"
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(recording).decode()}}
    body: dict[str, Any] = {"messages": [{"role": "user", "content": [{"type": "text", "text": asked}, sound]}]}
    body |= {name: form[name] for name in ("model",) if isinstance(form.get(name), str)}
    for name, kind in (("temperature", float), ("max_tokens", int), ("seed", int), ("top_p", float)):
        if form.get(name):
            try:
                body[name] = kind(form[name])
            except (TypeError, ValueError):
                raise invalid(name, f"{name} is {form[name]!r}; it has to be a number") from None
    return body


def _tokens(usage: Usage) -> dict[str, Any]:
    shape = usage.shape()
    told = {"input_tokens": shape["prompt_tokens"], "output_tokens": shape["completion_tokens"], "total_tokens": shape["total_tokens"]}
    return {"type": "tokens", **told, "input_token_details": None}


def _seconds(seconds: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": seconds}


async def _events(conversation: Conversation, generation: Generation, begun: Begun, usage: Usage) -> AsyncIterator[bytes]:
    reading, whole = conversation.reading(), ""
    try:
        async for batch in begun.batches():
            for _, event in batch:
                parts = reading.take(event)
                if "f" in event:
                    parts += reading.finish()
                    usage.add(event["u"], first=True)
                text = "".join(p.text for p in parts if p.kind == "text")
                whole += text
                if text:
                    yield sse({"type": "transcript.text.delta", "delta": text})
        yield sse({"type": "transcript.text.done", "text": whole.strip(), "usage": _tokens(usage)})
    except EngineError as error:
        yield engine_error_event(error)
    finally:
        generation.close()
