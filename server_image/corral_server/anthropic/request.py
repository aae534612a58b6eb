"""From a body of the messages API to one of chat completions. Pure; errors name Anthropic's own fields."""

from typing import Any

import orjson

from corral_server.anthropic.tools import offered
from corral_server.openai import fields
from corral_server.openai.errors import ApiError, invalid
from corral_server.openai.messages import Placed
from corral_server.openai.native_fields import NAMES
from corral_server.openai.responses_request import ChatBody

_KEPT = (*(name for name in NAMES if name not in ("return_progress", "timings_per_token", "stop")), "temperature", "top_p", "model")
_RUN_ELSEWHERE = ("server_tool_use", "web_search_tool_result", "web_fetch_tool_result", "tool_search_tool_result")
"""What Anthropic's own searches left in earlier turns; most of it is encrypted."""
_WRITTEN = ("document", "search_result")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def to_chat(body: dict[str, Any], *, counting: bool = False) -> ChatBody:
    limit = fields.whole(body, "max_tokens", 1, 1 << 31)
    if limit is None and not counting:
        raise invalid("max_tokens", "max_tokens is missing; it has to be a whole number of at least 1")
    chat: dict[str, Any] = {k: body[k] for k in _KEPT if body.get(k) is not None}
    temperature = body.get("temperature")
    if temperature is not None:
        fields.number(body, "temperature", 0.0, 2.0)
    chat["max_tokens"] = limit
    chat["stop"] = fields.stops(body, "stop_sequences")
    found = [(message, "system") for message in _system(body.get("system"))]
    _messages(found, body.get("messages"))
    chat["messages"] = [message for message, _ in found]
    if body.get("tools") is not None:
        chat["tools"] = offered(body["tools"])
    choice = fields.mapping(body, "tool_choice")
    if choice:
        kind = choice.get("type")
        if kind == "tool":
            chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
        elif isinstance(kind, str) and kind in _CHOICES:
            chat["tool_choice"] = _CHOICES[kind]
        else:
            raise invalid("tool_choice.type", f"tool_choice.type is {fields.shown(kind)}; it has to be one of auto, any, tool, none")
        if choice.get("disable_parallel_tool_use") is not None:
            chat["parallel_tool_calls"] = not fields.flag(choice, "disable_parallel_tool_use")
    thinking = fields.mapping(body, "thinking")
    if thinking:
        kind = fields.choice(thinking, "type", ("enabled", "adaptive", "disabled"), "enabled", within="thinking")
        chat["chat_template_kwargs"] = {"enable_thinking": kind != "disabled", **fields.mapping(body, "chat_template_kwargs")}
        if kind == "enabled":
            chat["thinking_budget_tokens"] = _budget(thinking)
    _output_format(chat, body)
    fields.text(body, "model")
    fields.mapping(body, "metadata")
    fields.choice(body, "service_tier", ("auto", "standard_only"), "auto")
    return ChatBody(chat, [name for _, name in found])


def _budget(thinking: dict[str, Any]) -> int | None:
    try:
        return fields.whole(thinking, "budget_tokens", 0, 1 << 31)
    except ApiError as error:
        raise invalid("thinking.budget_tokens", f"thinking.{error}") from None


def _output_format(chat: dict[str, Any], body: dict[str, Any]) -> None:
    """`output_config.format`: a schema that the answer has to follow."""
    config = fields.mapping(body, "output_config")
    form = fields.mapping(config, "format") or fields.mapping(body, "output_format")
    if not form:
        return
    if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise invalid("output_config.format", f"output_config.format is {fields.shown(form)}; it has to be of type json_schema with a schema")
    chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "output", "schema": form["schema"]}}


def _system(raw: Any) -> list[dict[str, Any]]:
    if not raw and (raw is None or isinstance(raw, (str, list))):
        return []
    return [{"role": "system", "content": _text(raw, "system")}]


def _messages(found: list[tuple[dict[str, Any], str]], raw: Any) -> None:
    if not isinstance(raw, list):
        raise invalid("messages", f"messages is {fields.shown(raw)}; it has to be a list of messages")
    if not raw:
        # Anthropic refuses this, llama.cpp has the model begin.
        found.append(({"role": "user", "content": ""}, "messages"))
    for index, item in enumerate(raw):
        where = f"messages[{index}]"
        if not isinstance(item, dict) or item.get("role") not in ("user", "assistant", "system"):
            raise invalid(f"{where}.role", f"{where} is {fields.shown(item)}; it has to have a role, user or assistant, and content")
        content = item.get("content")
        if isinstance(content, str):
            found.append(({"role": item["role"], "content": content}, where))
        elif isinstance(content, list):
            found += [(message, where) for message in _blocks(item["role"], content, f"{where}.content")]
        else:
            raise invalid(f"{where}.content", f"{where}.content is {fields.shown(content)}; it has to be a string or a list of blocks")


def _blocks(role: str, content: list[Any], where: str) -> list[dict[str, Any]]:
    """One message may become several: results of tools come before what the user says."""
    results: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    texts: list[str] = []
    thoughts: list[str] = []
    images: list[tuple[int, Placed]] = []
    for index, block in enumerate(content):
        at = f"{where}[{index}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            texts.append(_text([block], at))
        elif kind == "tool_use" and role == "assistant":
            arguments = orjson.dumps(fields.mapping(block, "input")).decode()
            calls.append({"id": block.get("id") or "", "type": "function", "function": {"name": block.get("name"), "arguments": arguments}})
        elif kind == "tool_result" and role == "user":
            results.append(
                {"role": "tool", "tool_call_id": block.get("tool_use_id") or "", "content": _result(block.get("content"), f"{at}.content")}
            )
        elif kind == "thinking":
            thoughts.append(fields.text(block, "thinking") or "")
        elif kind == "redacted_thinking" or kind in _RUN_ELSEWHERE:
            continue
        elif kind in _WRITTEN and role == "user":
            texts.append(_written(block, at))
        elif kind == "image" and role == "user":
            images.append((len(texts), _image(block, at)))
        else:
            raise invalid(at, f"{at} is {fields.shown(block)}; it has to be a block of type text, tool_use or tool_result")
    message: dict[str, Any] = {"role": role, "content": _with_images(texts, images)}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return results + ([message] if texts or images or calls or not results else [])


def _result(raw: Any, where: str) -> str | list[Any]:
    """What a tool gave back: words, images, documents and what it found in a search."""
    if not isinstance(raw, list):
        return _text(raw or "", where)
    texts: list[str] = []
    images: list[tuple[int, Placed]] = []
    for index, block in enumerate(raw):
        at = f"{where}[{index}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            texts.append(_text([block], at))
        elif kind in _WRITTEN:
            texts.append(_written(block, at))
        elif kind == "image":
            images.append((len(texts), _image(block, at)))
        else:
            raise invalid(at, f"{at} is {fields.shown(block)}; it has to be a block of type text, image, document or search_result")
    return _with_images(texts, images)


def _with_images(texts: list[str], images: list[tuple[int, Placed]]) -> str | list[Any]:
    """What is said, with the images where they stood."""
    if not images:
        return "\n".join(texts)
    parts: list[Any] = [{"type": "text", "text": text} for text in texts]
    for shift, (at, image) in enumerate(images):
        parts.insert(at + shift, image)
    return parts


def _image(block: dict[str, Any], where: str) -> Placed:
    source = fields.mapping(block, "source", within=where)
    kind, data = source.get("type"), source.get("data")
    if kind == "url":
        return Placed({"type": "image_url", "image_url": {"url": source.get("url")}}, where)
    if kind != "base64" or not isinstance(data, str):
        raise ApiError(400, "unsupported_content", f"{where} is an image of type {fields.shown(kind)}; its source has to be of type base64", where)
    return Placed({"type": "image_url", "image_url": {"url": data}}, where)


def _written(block: dict[str, Any], where: str) -> str:
    return _document(block, where) if block["type"] == "document" else _search_result(block, where)


def _document(block: dict[str, Any], where: str) -> str:
    source = fields.mapping(block, "source", within=where)
    kind, data = source.get("type"), source.get("data")
    if kind == "text" and isinstance(data, str):
        text = data
    elif kind == "content":
        text = _text(source.get("content") or "", f"{where}.source.content")
    else:
        raise ApiError(400, "unsupported_content", f"{where} is a document of type {fields.shown(kind)}; this model takes text only", where)
    title = fields.text(block, "title", within=where)
    return f"{title}:\n{text}" if title else text


def _search_result(block: dict[str, Any], where: str) -> str:
    named = [value for name in ("title", "source") if (value := fields.text(block, name, within=where))]
    return "\n".join([*named, _text(block.get("content") or "", f"{where}.content")])


def _text(raw: Any, where: str) -> str:
    if isinstance(raw, str):
        return raw
    if isinstance(raw, list) and all(isinstance(b, dict) and b.get("type") == "text" and isinstance(b.get("text"), str) for b in raw):
        return "\n".join(b["text"] for b in raw)
    raise invalid(where, f"{where} is {fields.shown(raw)}; it has to be a string or a list of blocks of type text")
