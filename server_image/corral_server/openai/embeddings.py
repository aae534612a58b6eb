"""`/v1/embeddings`."""

import base64
import math
import struct
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from corral_server.openai import fields
from corral_server.openai.answers import json_response, unless_gone
from corral_server.openai.errors import ApiError, invalid
from corral_server.openai.service import Service

_MAX_INPUTS = 2048


def parse_input(raw: Any) -> list[Any]:
    """The inputs of a request: texts, token numbers, both mixed, or llama.cpp's objects; alone or in a list."""
    single = isinstance(raw, (str, dict)) or (isinstance(raw, list) and any(_is_token(i) for i in raw))
    items = [raw] if single else raw
    if not isinstance(items, list) or not 0 < len(items) <= _MAX_INPUTS:
        raise invalid("input", f"input is {fields.shown(raw)}; it has to be a string, 1 to {_MAX_INPUTS} strings, or token numbers")
    return [_input(item, "input" if single else f"input[{index}]") for index, item in enumerate(items)]


def _input(item: Any, where: str) -> Any:
    if isinstance(item, dict):
        return _said(item, where)
    if isinstance(item, str) or (isinstance(item, list) and item and all(isinstance(i, str) or _is_token(i) for i in item)):
        return item
    raise invalid(where, f"{where} is {fields.shown(item)}; it has to be a string, or a list of token numbers and strings")


def _said(item: dict[str, Any], where: str) -> str:
    """`{"prompt_string": ...}`, or `{"content": [{"type": "text", "text": ...}]}`."""
    if isinstance(item.get("prompt_string"), str) and not item.get("multimodal_data"):
        return str(item["prompt_string"])
    parts = item.get("content")
    if isinstance(parts, list) and parts and all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts):
        return "".join(p["text"] for p in parts)
    raise invalid(where, f"{where} is {fields.shown(item)}; it has to have a prompt_string, or content in parts of type text")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


async def embeddings(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    inputs = parse_input(body.get("input"))
    form = fields.choice(body, "encoding_format", ("float", "base64"), "float")
    size = fields.whole(body, "dimensions", 1, 1 << 20)
    fields.text(body, "model")
    fields.text(body, "user")
    engine = service.engine()
    if not service.pooling:
        raise ApiError(
            400, "unsupported_endpoint", "this model is not served for embeddings; set spec.engine.pooling (Mean, CLS or Last) to make it one"
        )
    if service.pooling == "Rank":
        raise ApiError(400, "unsupported_endpoint", "this model ranks documents (pooling Rank); use /v1/rerank")
    full = int(service.model.get("embeddingLength", 0))
    if size is not None and size > full:
        raise invalid("dimensions", f"dimensions is {size}; this model has {full}")
    stream = engine.submit("embed", {"inputs": inputs})
    try:
        final = await unless_gone(request, stream.last())
    finally:
        stream.close()
    vectors = [_shortened(v, size) for v in final["vectors"]]
    data = [{"object": "embedding", "index": i, "embedding": v if form == "float" else _packed(v)} for i, v in enumerate(vectors)]
    count = final["u"]["prompt"]
    return json_response(
        {"object": "list", "data": data, "model": service.served_name(request, body), "usage": {"prompt_tokens": count, "total_tokens": count}}
    )


def _shortened(vector: list[float], size: int | None) -> list[float]:
    """The first dimensions, of unit length again."""
    if size is None or size >= len(vector):
        return vector
    part = vector[:size]
    norm = math.sqrt(math.fsum(x * x for x in part))
    return [x / norm for x in part] if norm else part


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
