"""`/v1/rerank`: documents ordered by their relevance to a query, for models with pooling Rank, or by likeness for those that embed."""

import math
import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from corral_server.openai import fields
from corral_server.openai.answers import json_response, unless_gone
from corral_server.openai.errors import ApiError, invalid
from corral_server.openai.service import Service

_MAX_DOCUMENTS = 2048


async def rerank(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    query = fields.text(body, "query")
    # The form of Text Embeddings Inference differs in the names of its fields and answers with the list alone.
    inference = "texts" in body and "documents" not in body
    name = "texts" if inference else "documents"
    raw = body.get(name)
    if not query:
        raise invalid("query", f"query is {fields.shown(body.get('query'))}; it has to be a string")
    if not isinstance(raw, list) or not raw or len(raw) > _MAX_DOCUMENTS:
        raise invalid(name, f"{name} is {fields.shown(raw)}; it has to be a list of 1 to {_MAX_DOCUMENTS} texts")
    documents = [_text(item, f"{name}[{index}]") for index, item in enumerate(raw)]
    count = fields.whole(body, "top_n", 1, _MAX_DOCUMENTS, len(documents)) or len(documents)
    engine = service.engine()
    if not service.pooling:
        raise ApiError(400, "not_supported", "this model is not served for ranking; set spec.engine.pooling to Rank to make it one")
    ranks = service.pooling == "Rank"
    inputs: list[Any] = [pair_of(service.model, query, d) for d in documents] if ranks else [query, *documents]
    stream = engine.submit("embed", {"inputs": inputs})
    try:
        final = await unless_gone(request, stream.last())
    finally:
        stream.close()
    vectors = final["vectors"]
    scores = [v[0] for v in vectors] if ranks else [math.fsum(a * b for a, b in zip(vectors[0], v, strict=True)) for v in vectors[1:]]
    if inference:
        shown = fields.flag(body, "return_text")
        ordered = sorted(range(len(documents)), key=lambda i: -scores[i])[:count]
        return json_response([{"index": i, "score": scores[i], **({"text": documents[i]} if shown else {})} for i in ordered])
    order = sorted(range(len(documents)), key=lambda i: -scores[i])[:count]
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in order]
    if fields.flag(body, "return_documents"):
        for result in results:
            result["document"] = {"text": documents[result["index"]]}
    used = final["u"]["prompt"]
    return json_response(
        {"object": "list", "model": service.served_name(request, body), "results": results, "usage": {"prompt_tokens": used, "total_tokens": used}}
    )


def pair_of(model: Mapping[str, Any], query: str, document: str) -> dict[str, str]:
    """What is evaluated for one document; some models bring a template for it."""
    template = str((model.get("templates") or {}).get("rerank") or "")
    if template:
        given = {"query": query, "document": document}
        return {"prompt": re.sub(r"\{(query|document)\}", lambda found: given[found[1]], template)}
    return {"query": query, "document": document}


def _text(item: Any, where: str) -> str:
    text = item.get("text") if isinstance(item, dict) else item
    if not isinstance(text, str) or not text:
        raise invalid(where, f"{where} is {fields.shown(item)}; it has to be a text")
    return text
