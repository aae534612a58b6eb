"""Chat messages: checked, and brought into the form that templates expect."""

import contextlib
from typing import Any

import orjson

from corral_server.openai import fields
from corral_server.openai.errors import ApiError, invalid

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def parse_messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    raw = body.get("messages")
    if not isinstance(raw, list) or not raw:
        raise invalid("messages", f"messages is {fields.shown(raw)}; it has to be a list of at least one message")
    return [_message(item, f"messages[{index}]") for index, item in enumerate(raw)]


def _message(raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise invalid(where, f"{where} is {fields.shown(raw)}; it has to be an object")
    role = raw.get("role")
    if role not in ROLES:
        raise invalid(f"{where}.role", f"{where}.role is {fields.shown(role)}; it has to be one of {', '.join(ROLES)}")
    message: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": _content(raw.get("content"), f"{where}.content")}
    if raw.get("tool_calls") is not None:
        message["tool_calls"] = _tool_calls(raw["tool_calls"], f"{where}.tool_calls")
    elif message["content"] is None:
        if role != "assistant":
            raise invalid(f"{where}.content", f"{where}.content is missing; it has to be a string or a list of parts")
        message["content"] = ""
    for key in ("name", "tool_call_id", "reasoning_content"):
        if isinstance(raw.get(key), str):
            message[key] = raw[key]
    return message


def _content(raw: Any, where: str) -> str | list[dict[str, str]] | None:
    if raw is None or isinstance(raw, str):
        return raw
    if not isinstance(raw, list):
        raise invalid(where, f"{where} is {fields.shown(raw)}; it has to be a string or a list of parts")
    texts = []
    for index, part in enumerate(raw):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "refusal" and isinstance(part.get("refusal"), str):
            texts.append(part["refusal"])
        elif kind in ("image_url", "input_audio", "input_image", "file"):
            raise ApiError(400, "unsupported_content", f"{where}[{index}] is of type {kind}; this model takes text only", where)
        else:
            raise invalid(f"{where}[{index}]", f"{where}[{index}] is {fields.shown(part)}; it has to be a part such as {{type: text, text: ...}}")
    # Several stay apart: some templates were trained on parts. The renderer joins them for the others.
    return [{"type": "text", "text": text} for text in texts] if len(texts) > 1 else "".join(texts)


def _tool_calls(raw: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(raw, list):
        raise invalid(where, f"{where} is {fields.shown(raw)}; it has to be a list")
    calls = []
    for index, item in enumerate(raw):
        function = item.get("function") if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid(f"{where}[{index}]", f"{where}[{index}] is {fields.shown(item)}; it has to name a function")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            # Templates write arguments with tojson: a string would come out quoted twice.
            with contextlib.suppress(orjson.JSONDecodeError):
                arguments = orjson.loads(arguments) if arguments.strip() else {}
        calls.append({"id": item.get("id", ""), "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls
