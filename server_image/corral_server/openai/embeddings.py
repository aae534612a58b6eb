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
    if isinstance(raw, str) and raw:
        return [raw]
    if isinstance(raw, list) and raw and len(raw) <= _MAX_INPUTS:
        if all(isinstance(i, str) and i for i in raw):
            return raw
        if all(_tokens([i]) for i in raw):
            return [raw]
        if all(isinstance(i, list) and i and _tokens(i) for i in raw):
            return raw
    raise invalid("input", f"input is {fields.shown(raw)}; it has to be a string, 1 to {_MAX_INPUTS} strings, or token numbers, none empty")


def _tokens(items: list[Any]) -> bool:
    return all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 31 for i in items)


async def embeddings(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    inputs = parse_input(body.get("input"))
    form = fields.choice(body, "encoding_format", ("float", "base64"), "float")
    size = fields.whole(body, "dimensions", 1, 1 << 20)
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
