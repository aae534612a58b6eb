"""`/v1/responses/{id}` and what is below it, and what a request says that builds on a stored response.

Answered by the supervisor alone, whatever its engine does. A response is found where it was made and as long as its pod keeps it.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from corral_server.kept_responses import KeptResponses, item_id, response_of
from corral_server.openai import fields
from corral_server.openai.answers import json_response
from corral_server.openai.errors import ApiError, invalid
from corral_server.openai.service import Service

_ASKED = 0x8000
"""The number of the first item of an input."""
_LONGEST_CHAIN = 1000
_GONE = "it is kept by the server that made it, until others need the room, it is deleted, or that server goes"


class Built(NamedTuple):
    """A request that stands on its own."""

    body: dict[str, Any]
    """As the client wrote it, with the items themselves in the place of references."""
    before: list[dict[str, Any]]
    """The items of the responses that it continues, the oldest first."""


async def built_on(service: Service, body: dict[str, Any]) -> Built:
    """The request with what it refers to; an ApiError that names what is not there."""
    previous = fields.text(body, "previous_response_id")
    asked = body.get("input")
    references = (
        [i for i, item in enumerate(asked) if isinstance(item, dict) and item.get("type") == "item_reference"] if isinstance(asked, list) else []
    )
    if previous is None and not references:
        return Built(body, [])
    return await asyncio.to_thread(_built_on, service.kept, body, previous, references)


def _built_on(kept: KeptResponses, body: dict[str, Any], previous: str | None, references: list[int]) -> Built:
    before: list[dict[str, Any]] = []
    at = previous
    for _ in range(_LONGEST_CHAIN):
        if at is None:
            break
        record = kept.get(at)
        if record is None:
            text = f"previous_response_id: there is no response {fields.shown(at)} here; {_GONE}: send the whole input"
            raise ApiError(400, "previous_response_not_found", text, "previous_response_id")
        before = [*record["input"], *record["response"]["output"], *before]
        at = record["previous"]
    if not references:
        return Built(body, before)
    items = list(body["input"])
    for index in references:
        items[index] = _referred(kept, items[index], f"input[{index}]")
    return Built({**body, "input": items}, before)


def _referred(kept: KeptResponses, item: dict[str, Any], where: str) -> dict[str, Any]:
    name = item.get("id")
    if not isinstance(name, str) or not name:
        raise invalid(f"{where}.id", f"{where}.id is {fields.shown(name)}; it has to be the id of a stored item")
    holder = response_of(name)
    record = kept.get(holder) if holder else None
    for found in (*record["response"]["output"], *record["input"]) if record else ():
        if found.get("id") == name:
            return dict(found)
    raise ApiError(404, "item_not_found", f"{where}: there is no item {fields.shown(name)} here; {_GONE}: send the item itself", f"{where}.id")


async def store(service: Service, body: Mapping[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    """The response as it is answered: stored, unless the client does not want that or there is no room."""
    if not response["store"]:
        return response
    record = {"response": response, "input": with_ids(body.get("input"), response["id"]), "previous": body.get("previous_response_id")}
    return response if await asyncio.to_thread(service.kept.put, response["id"], record) else {**response, "store": False}


def with_ids(asked: Any, response: str) -> list[dict[str, Any]]:
    """The items of an input, each with an id."""
    items = [{"type": "message", "role": "user", "content": asked}] if isinstance(asked, str) else asked
    return [
        {**item, "id": item["id"] if isinstance(item.get("id"), str) else item_id(_prefix(item), response, _ASKED + n)}
        for n, item in enumerate(items)
    ]


def _prefix(item: Mapping[str, Any]) -> str:
    kinds = {"function_call": "fc", "function_call_output": "fco", "custom_tool_call": "ctc", "custom_tool_call_output": "ctco", "reasoning": "rs"}
    return kinds.get(item.get("type") or "message", "msg")


async def retrieve(service: Service, request: Request, name: str) -> Response:
    if request.query_params.get("stream") in ("true", "1"):
        raise invalid("stream", "stream is true; only responses that run in the background can be streamed again, and none does here")
    return json_response((await _record(service, name))["response"])


async def delete(service: Service, _: Request, name: str) -> Response:
    if not await asyncio.to_thread(service.kept.remove, name):
        raise _not_found(name)
    return json_response({"id": name, "object": "response", "deleted": True})


async def cancel(service: Service, _: Request, name: str) -> Response:
    await _record(service, name)
    raise ApiError(
        400, "invalid_value", "only a response that runs in the background can be cancelled; close the request of any other", "response_id"
    )


async def input_items(service: Service, request: Request, name: str) -> Response:
    query = request.query_params
    limit, order, after = query.get("limit", "20"), query.get("order", "desc"), query.get("after")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit) <= 100):
        raise invalid("limit", f"limit is {fields.shown(limit)}; it has to be a whole number from 1 to 100")
    if order not in ("asc", "desc"):
        raise invalid("order", f"order is {fields.shown(order)}; it has to be asc or desc")
    items = [listed(item) for item in (await _record(service, name))["input"]]
    if order == "desc":
        items.reverse()
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise invalid("after", f"after is {fields.shown(after)}; it has to be the id of an item in this list")
        items = items[places[0] + 1 :]
    page = items[: int(limit)]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return json_response({"object": "list", "data": page, **ends, "has_more": len(items) > len(page)})


def listed(item: dict[str, Any]) -> dict[str, Any]:
    """An item with the fields that OpenAI's types require of it."""
    kind = item.get("type") or "message"
    whole = {**item, "type": kind, "status": item.get("status") or "completed"}
    if kind != "message" or not isinstance(item.get("content"), str):
        return whole
    said = {"type": "output_text", "annotations": [], "logprobs": []} if item.get("role") == "assistant" else {"type": "input_text"}
    return {**whole, "content": [{**said, "text": item["content"]}]}


async def _record(service: Service, name: str) -> dict[str, Any]:
    record = await asyncio.to_thread(service.kept.get, name)
    if record is None:
        raise _not_found(name)
    return record


def _not_found(name: str) -> ApiError:
    return ApiError(404, "response_not_found", f"there is no response {fields.shown(name)} here; {_GONE}", "response_id")
