"""Chat messages: checked, and brought into the form that templates expect."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from corral_server.openai import fields
from corral_server.openai.attachments import attached_text
from corral_server.openai.custom_tools import as_arguments
from corral_server.openai.errors import invalid
from corral_server.openai.media import AUDIO, IMAGES, OTHERS, MediaParts

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_SAME = {"developer": "system", "function": "tool"}
"""Roles that templates know by another name."""
_TEXTS = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class Placed:
    """A part of a message that came in by another API: `where` is what the client's own body calls it, for errors."""

    part: Any
    where: str


def parse_messages(body: dict[str, Any], named: Sequence[str] | None = None, media: MediaParts | None = None) -> list[dict[str, Any]]:
    """The messages of a chat body; `named` says how the client's own body calls each, for errors. `media` takes what they show."""
    raw = body.get("messages")
    if not isinstance(raw, list) or not raw:
        raise invalid("messages", f"messages is {fields.shown(raw)}; it has to be a list of at least one message")
    shown = MediaParts({}) if media is None else media
    return [_message(item, named[index] if named else f"messages[{index}]", shown) for index, item in enumerate(raw)]


def _message(raw: Any, where: str, media: MediaParts) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise invalid(where, f"{where} is {fields.shown(raw)}; it has to be an object")
    role = raw.get("role")
    if role not in ROLES:
        raise invalid(f"{where}.role", f"{where}.role is {fields.shown(role)}; it has to be one of {', '.join(ROLES)}")
    message: dict[str, Any] = {"role": _SAME.get(role, role), "content": _content(raw.get("content"), f"{where}.content", media)}
    calls = raw.get("tool_calls")
    if calls is None and role == "assistant" and raw.get("function_call") is not None:
        calls = [{"function": raw["function_call"]}]
    # What OpenAI refuses, but other servers answer and their clients send back.
    calls = None if calls == [] and role == "assistant" else calls
    if calls is not None:
        if role != "assistant":
            raise invalid(f"{where}.tool_calls", f"{where}.tool_calls is given for a message of role {role}; only the assistant calls tools")
        message["tool_calls"] = _tool_calls(calls, f"{where}.tool_calls")
    elif message["content"] is None:
        if role != "assistant":
            raise invalid(f"{where}.content", f"{where}.content is missing; it has to be a string or a list of parts")
        message["content"] = _text_of(raw, "refusal", where) or ""
    for key in ("name", "tool_call_id", "reasoning_content"):
        if (value := _text_of(raw, key, where)) is not None:
            message[key] = value
    if role == "assistant" and isinstance(raw.get("reasoning"), str):
        # The same by another name.
        message.setdefault("reasoning_content", raw["reasoning"])
    return message


def _text_of(raw: dict[str, Any], key: str, where: str) -> str | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise invalid(f"{where}.{key}", f"{where}.{key} is {fields.shown(value)}; it has to be a string")
    return value


def _content(raw: Any, where: str, media: MediaParts) -> str | list[dict[str, str]] | None:
    if raw is None or isinstance(raw, str):
        return raw
    if not isinstance(raw, list) or not raw:
        raise invalid(where, f"{where} is {fields.shown(raw)}; it has to be a string or a list of at least one part")
    texts: list[str] = []
    beside = False
    for index, part in enumerate(raw):
        count = len(media.items)
        placed = part if isinstance(part, Placed) else Placed(part, f"{where}[{index}]")
        text = _part(placed.part, placed.where, media)
        shown = len(media.items) > count
        # What is shown stands in the text: nothing comes between them.
        texts[-1:] = [texts[-1] + text] if texts and (shown or beside) else [*texts[-1:], text]
        beside = shown
    # Several stay apart: some templates were trained on parts. The renderer joins them for the others.
    return [{"type": "text", "text": text} for text in texts] if len(texts) > 1 else "".join(texts)


def _part(part: Any, where: str, media: MediaParts) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXTS and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return str(part["refusal"])
    if kind in ("file", "input_file"):
        return attached_text(part.get("file") if kind == "file" else part, where)
    if kind in (*IMAGES, *AUDIO, *OTHERS):
        return media.part(part, kind, where)
    raise invalid(where, f"{where} is {fields.shown(part)}; it has to be a part such as {{type: text, text: ...}}")


def _tool_calls(raw: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(raw, list) or not raw:
        raise invalid(where, f"{where} is {fields.shown(raw)}; it has to be a list of at least one call")
    calls = []
    for index, item in enumerate(raw):
        function = item.get("function") if isinstance(item, dict) else None
        custom = item.get("custom") if isinstance(item, dict) else None
        if function is None and isinstance(custom, dict) and isinstance(custom.get("input"), str):
            function = {**custom, "arguments": as_arguments(custom["input"])}
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid(f"{where}[{index}]", f"{where}[{index}] is {fields.shown(item)}; it has to name a function")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            # Templates write arguments with tojson: a string would come out quoted twice.
            with contextlib.suppress(orjson.JSONDecodeError):
                arguments = orjson.loads(arguments) if arguments.strip() else {}
        call_id = _text_of(item, "id", f"{where}[{index}]") or ""
        calls.append({"id": call_id, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls
