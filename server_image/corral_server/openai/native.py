"""llama.cpp's own endpoints, in its shapes."""

import math
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from corral_server.dialects.formats import dialect_of
from corral_server.lifecycle import State
from corral_server.openai import fields
from corral_server.openai.answers import json_response, unless_gone
from corral_server.openai.chat import FINGERPRINT
from corral_server.openai.embeddings import parse_input
from corral_server.openai.errors import ApiError, invalid
from corral_server.openai.native_settings import settings
from corral_server.openai.prompting import render_prompt
from corral_server.openai.sampling import sampling_of
from corral_server.openai.service import Service


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
    found = await service.ask(request, "tokenize", order)
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
    tokens = body.get("tokens", [])
    if not isinstance(tokens, list) or not all(isinstance(t, int) and not isinstance(t, bool) and 0 <= t < 1 << 31 for t in tokens):
        raise invalid("tokens", f"tokens is {fields.shown(tokens)}; it has to be a list of token numbers")
    return json_response({"content": (await service.ask(request, "detokenize", {"tokens": tokens}))["text"]})


async def apply_template(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    return json_response({"prompt": (await unless_gone(request, render_prompt(service, request, body))).text})


async def embedding(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    if not service.pooling:
        raise ApiError(400, "not_supported", "this model is not served for embeddings; set spec.engine.pooling to make it one")
    inputs = parse_input(body.get("content", body.get("input")))
    wanted = fields.whole(body, "embd_normalize", -1, 64, 2)
    found = await service.ask(request, "embed", {"inputs": inputs, "normalise": wanted == 2})
    return json_response([{"index": i, "embedding": [_normalised(v, -1 if wanted in (None, 2) else wanted)]} for i, v in enumerate(found["vectors"])])


def _normalised(vector: list[float], kind: int) -> list[float]:
    """By llama.cpp's number of the norm: -1 not at all, 0 the greatest to 32760, 1 the sum of absolutes, p the p-norm."""
    if kind < 0:
        return vector
    size = [abs(x) for x in vector]
    norm = max(size) / 32760.0 if kind == 0 else math.fsum(x**kind for x in size) ** (1.0 / kind)
    return [x / norm for x in vector] if norm else vector


def properties(service: Service, request: Request) -> dict[str, Any]:
    model = service.model
    template, with_tools = service.template(with_tools=False), service.template(with_tools=True)
    return {
        "default_generation_settings": {
            "id": 0,
            "id_task": -1,
            "n_ctx": model.get("contextLength", 0),
            "speculative": bool(model.get("drafts")),
            "is_processing": False,
            "params": settings(
                sampling_of({}, service.defaults()), limit=service.defaults().get("max_tokens"), drafts=model.get("drafts", "")
            ),
        },
        "total_slots": model.get("slots", 0),
        "model_alias": service.served_name(request),
        "model_path": service.path,
        "model_ftype": model.get("format", ""),
        "chat_template": template,
        **({"chat_template_tool_use": with_tools} if with_tools != template else {}),
        "bos_token": model.get("bos", ""),
        "eos_token": model.get("eos", ""),
        "build_info": FINGERPRINT,
        "modalities": {"vision": bool(service.able.get("vision")), "video": False, "audio": bool(service.able.get("audio"))},
        **({"media_marker": service.able["marker"]} if service.able else {}),
        "chat_template_caps": {
            "supports_tools": "tools" in with_tools, "supports_tool_calls": "tool_calls" in with_tools,
            "supports_parallel_tool_calls": dialect_of(with_tools).parallel, "supports_reasoning_effort": "reasoning_effort" in template,
            "supports_preserve_reasoning": "reasoning_content" in template,
        },
        "endpoint_slots": True, "endpoint_props": False, "endpoint_metrics": True, "ui": False, "cors_proxy_enabled": False,
        "is_sleeping": service.life.state is State.SLEEPING,
    }  # fmt: skip


async def adapters(service: Service, _: Request) -> Response:
    """`/lora-adapters`: the model's adapters and the scales at which they act where a request says nothing."""
    return json_response(service.lora.shown())


async def set_adapters(service: Service, request: Request) -> Response:
    try:
        wanted = orjson.loads(await request.body() or b"null")
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None
    service.lora.set(wanted)
    return json_response({"success": True})
