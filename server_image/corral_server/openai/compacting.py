"""`/v1/responses/compact`: a long conversation as its user's latest messages and a summary, which the model itself writes.

The summary goes through the client in an item that is opaque by the API's rules and holds nothing secret: whoever has it had the conversation.
"""

import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from corral_server.kept_responses import item_id
from corral_server.openai import fields
from corral_server.openai.answers import Usage, counted_response, unless_gone
from corral_server.openai.conversation import prepare
from corral_server.openai.errors import ApiError, invalid
from corral_server.openai.response_object import usage_of
from corral_server.openai.service import Service

TAKEN = ("model", "input", "instructions", "prompt_cache_key")
_LONGEST = 1024
"""Tokens of a summary."""
_ASK = (
    "Summarize this conversation for yourself, so that it can go on without its text: what was asked, what was found out and decided, names, "
    "numbers, places in files, and what is still to be done. Write the summary only."
)
_BEFORE = "The conversation so far, in short:\n"


def seal(summary: str) -> str:
    return base64.b64encode(orjson.dumps({"summary": summary})).decode()


def unseal(item: Mapping[str, Any], where: str) -> str:
    """What an earlier part of the conversation came to, as its assistant says it."""
    sealed = item.get("encrypted_content")
    try:
        if isinstance(sealed, str):
            return _BEFORE + str(orjson.loads(base64.b64decode(sealed, validate=True))["summary"])
    except (binascii.Error, ValueError, KeyError, TypeError):
        pass
    at = f"{where}.encrypted_content"
    raise invalid(at, f"{at} is {fields.shown(sealed)}; it has to be that of a compaction item of this server")


def asking(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with the request for a summary at its end. Templates often want turns to alternate."""
    last = messages[-1]
    if last.get("role") == "user" and isinstance(last.get("content"), str):
        return [*messages[:-1], {**last, "content": f"{last['content']}\n\n{_ASK}"}]
    return [*messages, {"role": "user", "content": _ASK}]


def latest_words(items: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """The user's last messages, as many as have together that many characters at most."""
    found: list[dict[str, Any]] = []
    for item in reversed(items):
        if (item.get("type") or "message") != "message" or item.get("role") != "user":
            continue
        most -= len(orjson.dumps(item.get("content")))
        if most < 0:
            break
        found.append(item)
    return found[::-1]


async def summary_of(service: Service, request: Request, body: dict[str, Any], named: list[str]) -> tuple[str, Usage]:
    """What the model makes of a chat body's conversation."""
    whole = {**body, "messages": asking(body["messages"]), "max_tokens": _LONGEST, "temperature": 0, "reasoning_effort": "none"}
    conversation = await prepare(service, request, whole, [*named, "input"])
    (finished,) = await unless_gone(request, conversation.start(service).collect())
    said = conversation.said(finished)
    usage = Usage()
    usage.add(finished.usage, first=True, reasoning=said.thought_tokens)
    summary = (said.text or said.thought).strip()
    if not summary:
        raise ApiError(500, "compaction_failed", "the model wrote no summary; send the conversation as it is", headers={"x-should-retry": "false"})
    return summary, usage


def compacted(request: Request, name: str, words: list[dict[str, Any]], summary: str, usage: Usage) -> Response:
    item = {"id": item_id("cmp", name, len(words)), "type": "compaction", "encrypted_content": seal(summary)}
    whole = {"id": name, "object": "response.compaction", "created_at": int(time.time()), "output": [*words, item], "usage": usage_of(usage)}
    return counted_response(request, whole, usage)
