"""From a body of `/v1/responses` to one of chat completions. Pure; errors name the fields of the responses API."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from corral_server.openai import fields
from corral_server.openai.compacting import unseal
from corral_server.openai.errors import ApiError, invalid
from corral_server.openai.known_fields import check_shared, check_text
from corral_server.openai.messages import Placed
from corral_server.openai.native_fields import NAMES
from corral_server.openai.responses_tools import choice_of, joined_name, offered

_KEPT = (*NAMES, "model", "temperature", "top_p", "parallel_tool_calls", "stream")
_ELSEWHERE = ("conversation", "prompt")
"""Names of what OpenAI keeps apart from responses."""
_WITHOUT_WORDS = ("web_search_call", "image_generation_call", "tool_search_call", "tool_search_output", "additional_tools")
"""Items of earlier turns, at OpenAI, that say nothing to a model."""
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


class ChatBody(NamedTuple):
    """A body of chat completions, and what the client's own body calls each of its messages."""

    body: dict[str, Any]
    named: list[str]
    tools: Sequence[dict[str, Any]] = ()
    """Those that may be called, as the client wrote them."""


def to_chat(body: dict[str, Any], before: Sequence[dict[str, Any]] = ()) -> ChatBody:
    """`before` are the items of the responses that this one continues."""
    for name in _ELSEWHERE:
        if body.get(name) is not None:
            raise ApiError(400, "unsupported_parameter", f"{name} is not supported: this server keeps none; send the whole input", name)
    if fields.flag(body, "background"):
        raise ApiError(400, "unsupported_parameter", "background is not supported: an answer whose client is gone is ended", "background")
    check_shared(body)
    _check_echoed(body)
    chat: dict[str, Any] = {k: body[k] for k in _KEPT if body.get(k) is not None}
    instructions = fields.text(body, "instructions")
    found: list[tuple[dict[str, Any], str]] = [({"role": "system", "content": instructions}, "instructions")] if instructions else []
    for item in before:
        _item(found, item, "previous_response_id")
    _input(found, body.get("input"))
    chat["messages"] = [message for message, _ in found]
    chat["max_tokens"] = fields.whole(body, "max_output_tokens", 1, 1 << 31)
    top = fields.whole(body, "top_logprobs", 0, 20)
    if top or "message.output_text.logprobs" in fields.texts(body, "include"):
        chat["logprobs"], chat["top_logprobs"] = True, top
    effort = fields.choice(_reasoning(body), "effort", _EFFORTS, "", within="reasoning")
    if effort:
        chat["reasoning_effort"] = effort
    form = fields.mapping(check_text(body), "format")
    if form:
        chat["response_format"] = _format(form)
    tools = offered(body)
    if body.get("tools") is not None:
        chat["tools"] = tools.tools
    choice = choice_of(body)
    if choice is not None:
        chat["tool_choice"] = choice
    return ChatBody(chat, [name for _, name in found], tools.shown)


def _check_echoed(body: dict[str, Any]) -> None:
    """What changes nothing, but is repeated in the answer."""
    fields.whole(body, "max_tool_calls", 1, 1 << 31)
    fields.choice(body, "truncation", ("auto", "disabled"), "disabled")
    fields.choice(_reasoning(body), "summary", ("auto", "concise", "detailed"), "auto", within="reasoning")
    fields.mapping(body, "stream_options")


def _reasoning(body: dict[str, Any]) -> dict[str, Any]:
    return fields.mapping(body, "reasoning")


def _format(form: dict[str, Any]) -> dict[str, Any]:
    kind = fields.choice(form, "type", ("text", "json_object", "json_schema"), "text", within="text.format")
    if kind == "json_schema":
        if not isinstance(form.get("schema"), dict):
            raise invalid("text.format.schema", f"text.format.schema is {fields.shown(form.get('schema'))}; it has to be a JSON schema")
        if not isinstance(form.get("name"), str) or not form["name"]:
            raise invalid("text.format.name", f"text.format.name is {fields.shown(form.get('name'))}; it has to name the schema")
        fields.flag(form, "strict")
        fields.text(form, "description")
    return form


def _input(found: list[tuple[dict[str, Any], str]], raw: Any) -> None:
    if isinstance(raw, str):
        found.append(({"role": "user", "content": raw}, "input"))
        return
    if not isinstance(raw, list) or not raw:
        raise invalid("input", f"input is {fields.shown(raw)}; it has to be a string or a list of at least one item")
    before = len(found)
    for index, item in enumerate(raw):
        _item(found, item, f"input[{index}]")
    if len(found) == before:
        raise invalid("input", "input holds no message; it has to have at least one")


def _item(found: list[tuple[dict[str, Any], str]], item: Any, where: str) -> None:
    kind = item.get("type") or "message" if isinstance(item, dict) else None
    last = found[-1][0] if found else {}
    # A thought belongs to what follows it: it is the same turn.
    thinking = "reasoning_content" in last and last["content"] is None and "tool_calls" not in last
    if kind == "message":
        message = {"role": item.get("role"), "content": item.get("content")}
        if thinking and message["role"] == "assistant":
            message["reasoning_content"] = found.pop()[0]["reasoning_content"]
        found.append((message, where))
    elif kind in ("function_call", "custom_tool_call"):
        call = _call(item, where)
        # Calls of one turn belong to one message.
        if last.get("tool_calls"):
            last["tool_calls"].append(call)
        elif last.get("role") == "assistant":
            last["tool_calls"] = [call]
        else:
            found.append(({"role": "assistant", "content": None, "tool_calls": [call]}, where))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        if not isinstance(item.get("call_id"), str):
            raise invalid(f"{where}.call_id", f"{where}.call_id is {fields.shown(item.get('call_id'))}; it has to be that of the call")
        found.append(({"role": "tool", "tool_call_id": item.get("call_id") or "", "content": _output(item.get("output"), f"{where}.output")}, where))
    elif kind == "compaction":
        found.append(({"role": "assistant", "content": unseal(item, where)}, where))
    elif kind == "reasoning":
        thought = _thought(item, where)
        if thinking:
            last["reasoning_content"] += f"\n{thought}"
        else:
            found.append(({"role": "assistant", "content": None, "reasoning_content": thought}, where))
    elif kind in _WITHOUT_WORDS:
        pass
    else:
        raise invalid(
            where,
            f"{where} is {fields.shown(item)}; it has to be an item of type message, reasoning, function_call, function_call_output, "
            "custom_tool_call or custom_tool_call_output",
        )


def _call(item: dict[str, Any], where: str) -> dict[str, Any]:
    kind = "custom" if item["type"] == "custom_tool_call" else "function"
    if not isinstance(item.get("name"), str):
        raise invalid(f"{where}.name", f"{where}.name is {fields.shown(item.get('name'))}; it has to name the {kind}")
    namespace = item.get("namespace")
    if namespace is not None and not isinstance(namespace, str):
        raise invalid(f"{where}.namespace", f"{where}.namespace is {fields.shown(namespace)}; it has to be a string")
    name = joined_name(item["name"], namespace)
    if kind == "function":
        return {"id": item.get("call_id") or "", "type": kind, kind: {"name": name, "arguments": item.get("arguments") or "{}"}}
    if not isinstance(item.get("input"), str):
        raise invalid(f"{where}.input", f"{where}.input is {fields.shown(item.get('input'))}; it has to be a string")
    return {"id": item.get("call_id") or "", "type": kind, kind: {"name": name, "input": item["input"]}}


def _output(raw: Any, where: str) -> str | list[Placed]:
    """What a function gave back."""
    if isinstance(raw, str):
        return raw
    if not isinstance(raw, list) or not raw:
        raise invalid(where, f"{where} is {fields.shown(raw)}; it has to be a string or a list of at least one part")
    return [Placed(part, f"{where}[{index}]") for index, part in enumerate(raw)]


def _thought(item: dict[str, Any], where: str) -> str:
    """The text of a thought of an earlier turn; only its summary, where the rest is not told."""
    for name in ("content", "summary"):
        parts = item.get(name)
        if parts is None:
            continue
        if not isinstance(parts, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
            raise invalid(f"{where}.{name}", f"{where}.{name} is {fields.shown(parts)}; it has to be a list of parts with a text")
        if parts:
            return "\n".join(p["text"] for p in parts)
    return ""
