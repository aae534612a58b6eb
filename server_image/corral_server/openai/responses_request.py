"""From a body of `/v1/responses` to one of chat completions. Pure; errors name the fields of the responses API."""

from typing import Any

from corral_server.openai import fields
from corral_server.openai.errors import ApiError, invalid

_KEPT = (
    "model", "temperature", "top_p", "top_k", "min_p", "seed", "parallel_tool_calls", "chat_template_kwargs", "cache_prompt", "lora",
    "frequency_penalty", "presence_penalty", "repeat_penalty", "stop", "reasoning_format", "stream",
)  # fmt: skip
_STORED = ("previous_response_id", "conversation", "prompt")


def to_chat(body: dict[str, Any]) -> dict[str, Any]:
    for name in _STORED:
        if body.get(name) is not None:
            raise ApiError(400, "unsupported_parameter", f"{name} is not supported: this server stores no responses; send the whole input", name)
    if fields.flag(body, "background"):
        raise ApiError(400, "unsupported_parameter", "background is not supported: this server stores no responses", "background")
    chat: dict[str, Any] = {k: body[k] for k in _KEPT if body.get(k) is not None}
    instructions = fields.text(body, "instructions")
    chat["messages"] = ([{"role": "system", "content": instructions}] if instructions else []) + _input(body.get("input"))
    chat["max_tokens"] = fields.whole(body, "max_output_tokens", 1, 1 << 31)
    top = fields.whole(body, "top_logprobs", 0, 20)
    if top:
        chat["logprobs"], chat["top_logprobs"] = True, top
    effort = fields.text(fields.mapping(body, "reasoning"), "effort")
    if effort is not None:
        chat["reasoning_effort"] = effort
    form = fields.mapping(fields.mapping(body, "text"), "format")
    if form:
        if form.get("type") == "json_schema" and not isinstance(form.get("schema"), dict):
            raise invalid("text.format.schema", f"text.format.schema is {fields.shown(form.get('schema'))}; it has to be a JSON schema")
        chat["response_format"] = form
    tools = body.get("tools")
    if tools is not None:
        if not isinstance(tools, list):
            raise invalid("tools", f"tools is {fields.shown(tools)}; it has to be a list")
        chat["tools"] = [_tool(item, f"tools[{index}]") for index, item in enumerate(tools)]
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    if choice is not None:
        chat["tool_choice"] = choice
    return chat


def _tool(raw: Any, where: str) -> dict[str, Any]:
    kind = raw.get("type") if isinstance(raw, dict) else None
    if kind != "function":
        raise ApiError(400, "unsupported_tool", f"{where} is {fields.shown(raw)}; only tools of type function are supported", where)
    return {"type": "function", "function": {k: v for k, v in raw.items() if k in ("name", "description", "parameters", "strict") and v is not None}}


def _input(raw: Any) -> list[dict[str, Any]]:
    if isinstance(raw, str):
        return [{"role": "user", "content": raw}]
    if not isinstance(raw, list) or not raw:
        raise invalid("input", f"input is {fields.shown(raw)}; it has to be a string or a list of at least one item")
    found: list[dict[str, Any]] = []
    for index, item in enumerate(raw):
        _item(found, item, f"input[{index}]")
    return found


def _item(found: list[dict[str, Any]], item: Any, where: str) -> None:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "message":
        found.append({"role": item.get("role"), "content": item.get("content")})
    elif kind == "function_call":
        call = {
            "id": item.get("call_id") or "",
            "type": "function",
            "function": {"name": item.get("name"), "arguments": item.get("arguments") or "{}"},
        }
        # Calls of one turn belong to one message.
        if found and found[-1].get("tool_calls"):
            found[-1]["tool_calls"].append(call)
        elif found and found[-1]["role"] == "assistant":
            found[-1]["tool_calls"] = [call]
        else:
            found.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        found.append({"role": "tool", "tool_call_id": item.get("call_id") or "", "content": item.get("output")})
    elif kind == "reasoning":
        # A thought of an earlier turn: templates leave those out.
        return
    else:
        raise invalid(where, f"{where} is {fields.shown(item)}; it has to be an item of type message, function_call or function_call_output")
