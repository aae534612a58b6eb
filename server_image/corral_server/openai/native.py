"""llama.cpp's own endpoints, in its shapes."""

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from corral_server import __version__
from corral_server.channel import Message
from corral_server.engine_client import EngineError
from corral_server.lifecycle import State
from corral_server.openai import fields
from corral_server.openai.answers import EventStream, engine_error_event, json_response, sse, timings, unless_gone
from corral_server.openai.embeddings import parse_input
from corral_server.openai.errors import ApiError, invalid
from corral_server.openai.generation import Finished, Generation, first_of
from corral_server.openai.messages import parse_messages
from corral_server.openai.sampling import sampling_of
from corral_server.openai.service import Service


async def _ask(service: Service, request: Request, kind: str, order: dict[str, Any]) -> Message:
    stream = service.engine().submit(kind, order)
    try:
        return await unless_gone(request, stream.last())
    finally:
        stream.close()


async def tokenize(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    content = body.get("content", "")
    mixed = isinstance(content, list) and all(isinstance(p, str) or (isinstance(p, int) and not isinstance(p, bool)) for p in content)
    if not isinstance(content, str) and not mixed:
        raise invalid("content", f"content is {fields.shown(content)}; it has to be a string")
    pieces = fields.flag(body, "with_pieces")
    order = {
        "content": content,
        "with_pieces": pieces,
        "add_special": fields.flag(body, "add_special"),
        "parse_special": fields.flag(body, "parse_special", default=True),
    }
    found = await _ask(service, request, "tokenize", order)
    if not pieces:
        return json_response({"tokens": found["tokens"]})
    return json_response({"tokens": [{"id": t, "piece": _piece(p)} for t, p in zip(found["tokens"], found["pieces"], strict=True)]})


def _piece(raw: list[int]) -> str | list[int]:
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError:
        return raw


async def detokenize(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    tokens = body.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(t, int) and not isinstance(t, bool) and 0 <= t < 1 << 31 for t in tokens):
        raise invalid("tokens", f"tokens is {fields.shown(tokens)}; it has to be a list of token numbers")
    return json_response({"content": (await _ask(service, request, "detokenize", {"tokens": tokens}))["text"]})


async def apply_template(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    messages = parse_messages(body)
    prompt = await unless_gone(request, service.render(messages, body.get("tools") or None, fields.mapping(body, "chat_template_kwargs")))
    return json_response({"prompt": prompt})


async def embedding(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    if not service.pooling:
        raise ApiError(400, "unsupported_endpoint", "this model is not served for embeddings; set spec.engine.pooling to make it one")
    inputs = parse_input(body.get("content", body.get("input")))
    found = await _ask(service, request, "embed", {"inputs": inputs, "normalise": (fields.whole(body, "embd_normalize", -1, 2, 2) or 0) == 2})
    return json_response([{"index": i, "embedding": [v]} for i, v in enumerate(found["vectors"])])


def properties(service: Service, request: Request) -> dict[str, Any]:
    model = service.model
    return {
        "default_generation_settings": {"n_ctx": model.get("contextLength", 0), "params": dict(service.defaults)},
        "total_slots": model.get("slots", 0),
        "model_alias": service.served_name(request),
        "chat_template": (model.get("templates") or {}).get("", ""),
        "bos_token": model.get("bos", ""),
        "eos_token": model.get("eos", ""),
        "build_info": f"corral-{__version__}",
        "modalities": {"vision": False, "audio": False},
        "is_sleeping": service.life.state is State.SLEEPING,
    }


async def slot_list(service: Service) -> list[dict[str, Any]]:
    if service.life.state not in (State.LOADED, State.DRAINING):
        return []
    stream = service.engine().submit("slots", {})
    try:
        found = await stream.last()
    finally:
        stream.close()
    context = service.model.get("contextLength", 0)
    return [
        {"id": s["id"], "n_ctx": context, "is_processing": s["processing"], "n_past": s["tokens"], "next_token": {"n_decoded": s["generated"]}}
        for s in found["slots"]
    ]


async def completion(service: Service, request: Request) -> Response:
    """`/completion`: llama.cpp's own fields and answer."""
    body = fields.parse_body(await service.body(request))
    prompt = body.get("prompt")
    mixed = (
        isinstance(prompt, list) and prompt and all(isinstance(p, str) or (isinstance(p, int) and not isinstance(p, bool) and p >= 0) for p in prompt)
    )
    if not isinstance(prompt, str) and not mixed:
        raise invalid("prompt", f"prompt is {fields.shown(prompt)}; it has to be a string, or a list of strings and token numbers")
    limit = fields.whole(body, "n_predict", -1, 1 << 31)
    if limit is None:
        limit = fields.whole(body, "max_tokens", -1, 1 << 31)
    sampling = sampling_of(body, service.defaults)
    engine = service.generator()
    job = {
        **await unless_gone(request, service.constraint(body)),
        "prompt": prompt,
        "prompt_param": "prompt",
        "max_tokens": limit,
        "sampling": sampling,
        "stop": fields.stops(body),
        "cache_prompt": fields.flag(body, "cache_prompt", default=True),
    }
    generation = Generation(engine, [job])
    name = service.served_name(request, body)
    if not fields.flag(body, "stream"):
        (finished,) = await unless_gone(request, generation.collect())
        return json_response({**_final(finished, name), "content": finished.text, "generation_settings": sampling})
    events = generation.events()
    try:
        first = await unless_gone(request, first_of(events))
    except BaseException:
        generation.close()
        raise
    return EventStream(_blocks(generation, events, first, name))


def _final(finished: Finished, name: str) -> dict[str, Any]:
    kinds = {"length": "limit", "stop": "word" if finished.stopped_by else "eos"}
    return {
        "index": 0, "content": "", "id_slot": 0, "stop": True, "model": name, "tokens": [],
        "tokens_predicted": finished.usage["completion"], "tokens_evaluated": finished.usage["prompt"], "tokens_cached": finished.usage["cached"],
        "has_new_line": "\n" in finished.text, "truncated": False, "stop_type": kinds.get(finished.reason, "none"),
        "stopping_word": finished.stopped_by or "", "timings": timings(finished.usage),
    }  # fmt: skip


async def _blocks(
    generation: Generation, events: AsyncIterator[list[tuple[int, Message]]], first: list[tuple[int, Message]], name: str
) -> AsyncIterator[bytes]:
    finished = Finished()

    def render(batch: list[tuple[int, Message]]) -> bytes:
        out = b""
        for _, event in batch:
            if text := event.get("d", ""):
                finished.text += text
                out += sse({"index": 0, "content": text, "stop": False, "id_slot": 0, "tokens": []})
            if "f" in event:
                finished.reason, finished.usage, finished.stopped_by = event["f"], event["u"], event.get("stop")
                out += sse(_final(finished, name))
        return out

    try:
        if block := render(first):
            yield block
        async for batch in events:
            if block := render(batch):
                yield block
    except EngineError as error:
        yield engine_error_event(error)
    finally:
        generation.close()
