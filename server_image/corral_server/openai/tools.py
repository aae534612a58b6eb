"""The tools of a request: checked, and what the model may, must or must not do with them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corral_server.openai import custom_tools, fields
from corral_server.openai.errors import invalid

_NAME = re.compile(r"[\w.-]{1,128}")
_MOST_TOOLS = 128
_ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class Toolbox:
    tools: tuple[dict[str, Any], ...] = ()
    """As templates want them: `{"type": "function", "function": {...}}`."""
    choice: str = "none"
    """`none`, `auto` or `required`."""
    allowed: tuple[str, ...] = ()
    """The functions that may be called."""
    parallel: bool | None = None
    named: bool = False
    """The request names the one function that has to be called."""
    customs: Mapping[str, Any] = field(default_factory=dict)
    """Those that are called with free text, with the schemas that hold their calls."""
    legacy: bool = False
    """They came as `functions`, and a call goes back as `function_call`."""

    @property
    def callable(self) -> bool:
        return bool(self.allowed) and self.choice != "none"

    @property
    def strict(self) -> bool:
        """Whether arguments have to fit their schemas to the letter; else one tool's odd pattern is no reason to refuse all of a request."""
        return bool(self.customs) or any(t["function"].get("strict") is True for t in self.tools)

    def schemas(self) -> list[Any]:
        by_name = {t["function"]["name"]: t["function"].get("parameters") or _ANY_OBJECT for t in self.tools}
        return [self.customs.get(name, by_name[name]) for name in self.allowed]


def parse_tools(body: dict[str, Any]) -> Toolbox:
    legacy = body.get("tools") is None and body.get("functions") is not None
    field = "functions" if legacy else "tools"
    raw = body.get(field)
    if raw is None:
        raw = []
    if not isinstance(raw, list) or len(raw) > _MOST_TOOLS:
        raise invalid(field, f"{field} is {fields.shown(raw)}; it has to be a list of at most {_MOST_TOOLS} tools")
    tools = tuple(_function(item, f"functions[{i}]") if legacy else _tool(item, f"tools[{i}]") for i, item in enumerate(raw))
    names = tuple(t["function"]["name"] for t in tools)
    if len(set(names)) != len(names):
        raise invalid(field, f"{field} names a function twice")
    asked = "function_call" if legacy else "tool_choice"
    choice, allowed = _choice(body.get(asked), names, asked)
    parallel = fields.flag(body, "parallel_tool_calls") if body.get("parallel_tool_calls") is not None else None
    customs = {} if legacy else {
        tool["function"]["name"]: custom_tools.held(tool["function"]["parameters"], item["custom"])
        for tool, item in zip(tools, raw, strict=True) if item.get("type") == "custom"
    }  # fmt: skip
    named = isinstance(body.get(asked), dict) and choice == "required" and len(allowed) == 1
    # The one field of an answer of that time has room for one call.
    return Toolbox(tools, choice, allowed, False if legacy else parallel, named, customs, legacy)


def _tool(raw: Any, where: str) -> dict[str, Any]:
    kind = raw.get("type", "function") if isinstance(raw, dict) else None
    inner = raw.get(kind) if kind in ("function", "custom") else None
    if not isinstance(inner, dict):
        raise invalid(where, f"{where} is {fields.shown(raw)}; it has to be a tool such as {{type: function, function: {{name: ...}}}}")
    where = f"{where}.{kind}"
    return _function(custom_tools.as_function(inner, where) if kind == "custom" else inner, where)


def _function(function: Any, where: str) -> dict[str, Any]:
    if not isinstance(function, dict):
        raise invalid(where, f"{where} is {fields.shown(function)}; it has to be a function such as {{name: ..., parameters: ...}}")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid(f"{where}.name", f"{where}.name is {fields.shown(name)}; it has to be a name of letters, digits, _, - and .")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise invalid(f"{where}.parameters", f"{where}.parameters is {fields.shown(parameters)}; it has to be a JSON schema")
    if function.get("description") is not None and not isinstance(function["description"], str):
        raise invalid(f"{where}.description", f"{where}.description has to be a string")
    # Templates reach into these without asking whether they are there, and write them in this order.
    described = {"name": name, "description": function.get("description") or "", "parameters": parameters or {**_ANY_OBJECT, "properties": {}}}
    return {"type": "function", "function": described}


def _choice(raw: Any, names: tuple[str, ...], field: str) -> tuple[str, tuple[str, ...]]:
    allowed = "none, auto, required, or an object that names a function"
    if raw is None:
        return ("auto" if names else "none"), names
    if raw in ("none", "auto"):
        return str(raw) if names else "none", names
    if raw == "required":
        if not names:
            raise invalid(field, f"{field} is required, but there are no tools")
        return "required", names
    if isinstance(raw, dict):
        if raw.get("type") == "allowed_tools":
            inner = raw.get("allowed_tools", raw)
            listed = inner.get("tools") if isinstance(inner, dict) else None
            chosen = tuple(_named(item) for item in listed) if isinstance(listed, list) else ()
            mode = inner.get("mode", "auto") if isinstance(inner, dict) else ""
            if not chosen or mode not in ("auto", "required") or not set(chosen) <= set(names):
                raise invalid(field, f"{field} is {fields.shown(raw)}; its tools have to be among those given, its mode auto or required")
            return mode, chosen
        name = _named(raw)
        if name in names:
            return "required", (name,)
        if name:
            raise invalid(field, f"{field} names {name!r}, which is not among the tools")
    raise invalid(field, f"{field} is {fields.shown(raw)}; it has to be {allowed}")


def _named(raw: Any) -> str:
    function = raw.get("function", raw.get("custom", raw)) if isinstance(raw, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""
