"""The tools of the responses API as those of chat completions, and back: namespaces, custom tools, those that only OpenAI itself runs. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corral_server.openai import fields
from corral_server.openai.errors import ApiError, invalid

_NEVER_CALLED = (
    "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11", "image_generation", "tool_search",
    "programmatic_tool_calling",
)  # fmt: skip
"""What agents bring along with every request. The model may do without, so it does; the answer's own list of tools leaves them out."""


@dataclass
class Offered:
    """The tools of a request, as chat completions have them."""

    tools: list[dict[str, Any]] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    """As the client wrote them, for the answer."""


def offered(body: Mapping[str, Any]) -> Offered:
    raw = body.get("tools")
    found = Offered()
    if raw is None:
        return found
    if not isinstance(raw, list):
        raise invalid("tools", f"tools is {fields.shown(raw)}; it has to be a list")
    for index, item in enumerate(raw):
        where = f"tools[{index}]"
        kind = item.get("type") if isinstance(item, dict) else None
        if kind in _NEVER_CALLED:
            continue
        if kind == "namespace":
            found.tools += _namespace(item, where)
        else:
            found.tools.append(_tool(item, where))
        found.shown.append(item)
    return found


def choice_of(body: Mapping[str, Any]) -> Any:
    """`tool_choice` as chat completions write it."""
    raw = body.get("tool_choice")
    if isinstance(raw, dict) and raw.get("type") in ("function", "custom"):
        return {"type": raw["type"], raw["type"]: {"name": raw.get("name")}}
    return raw


def joined_name(name: str, namespace: str | None) -> str:
    """What the model calls a tool of a namespace."""
    return f"{namespace}__{name}" if namespace else name


def named(tools: list[dict[str, Any]], joined: str) -> dict[str, str]:
    """`name` and, where it has one, `namespace` of what the model called; `tools` are those that the answer shows."""
    for tool in tools:
        if tool["type"] == "namespace":
            for inner in tool["tools"]:
                if joined_name(inner["name"], tool["name"]) == joined:
                    return {"name": inner["name"], "namespace": tool["name"]}
    return {"name": joined}


def _namespace(raw: dict[str, Any], where: str) -> list[dict[str, Any]]:
    name, inner = raw.get("name"), raw.get("tools")
    if not isinstance(name, str) or not name:
        raise invalid(f"{where}.name", f"{where}.name is {fields.shown(name)}; it has to name the namespace")
    if not isinstance(inner, list):
        raise invalid(f"{where}.tools", f"{where}.tools is {fields.shown(inner)}; it has to be a list of functions and custom tools")
    return [_tool(item, f"{where}.tools[{index}]", name) for index, item in enumerate(inner)]


def _tool(raw: Any, where: str, namespace: str | None = None) -> dict[str, Any]:
    kind = raw.get("type") if isinstance(raw, dict) else None
    if kind not in ("function", "custom"):
        shown = fields.shown(raw)
        raise ApiError(400, "unsupported_tool", f"{where} is {shown}; tools of type function, custom and namespace can be called here", where)
    fields.flag(raw, "strict", within=where)
    if not isinstance(raw.get("name"), str):
        raise invalid(f"{where}.name", f"{where}.name is {fields.shown(raw.get('name'))}; it has to name the {kind}")
    kept = ("description", "parameters", "strict") if kind == "function" else ("description",)
    inner = {"name": joined_name(raw["name"], namespace), **{k: raw[k] for k in kept if raw.get(k) is not None}}
    form = fields.mapping(raw, "format")
    if kind == "custom" and form:
        grammar = {k: v for k, v in form.items() if k != "type"}
        inner["format"] = {"type": form.get("type"), **({"grammar": grammar} if grammar else {})}
    return {"type": kind, kind: inner}
