"""The tools of the messages API as those of chat completions. Pure; errors name Anthropic's own fields.

Anthropic's own types of tools are of two kinds: the client runs them (bash, text editor, memory), then the model is shown their known arguments; or
Anthropic runs them (searches), then nobody here could, and the model does without.
"""

from typing import Any

from corral_server.openai import fields
from corral_server.openai.errors import ApiError, invalid

_NEVER_CALLED = ("web_search_", "web_fetch_", "tool_search_tool_")
_TEXT, _WHOLE, _FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
_LINES = {"type": "array", "items": _WHOLE, "minItems": 2, "maxItems": 2}
_EDITS = {"path": _TEXT, "file_text": _TEXT, "old_str": _TEXT, "new_str": _TEXT, "insert_line": _WHOLE, "insert_text": _TEXT, "view_range": _LINES}


def _edits(*commands: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"command": {"enum": list(commands)}, **_EDITS, **more}, "required": ["command"]}


_RUN_BY_CLIENTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("bash_", "Run a command in a shell that stays open; restart begins a new one.",
     {"type": "object", "properties": {"command": _TEXT, "restart": _FLAG}}),
    ("text_editor_20241022", "View, create and edit text files.", _edits("view", "create", "str_replace", "insert", "undo_edit")),
    ("text_editor_20250124", "View, create and edit text files.", _edits("view", "create", "str_replace", "insert", "undo_edit")),
    ("text_editor_", "View, create and edit text files.", _edits("view", "create", "str_replace", "insert")),
    ("memory_", "View, create, edit, delete and rename the files of your memory, below /memories.",
     _edits("view", "create", "str_replace", "insert", "delete", "rename", old_path=_TEXT, new_path=_TEXT)),
)  # fmt: skip
"""How a type begins, what it is for, and its arguments, by Anthropic's documentation of each."""


def offered(raw: Any) -> list[dict[str, Any]]:
    if not isinstance(raw, list):
        raise invalid("tools", f"tools is {fields.shown(raw)}; it has to be a list")
    found = [_tool(item, f"tools[{index}]") for index, item in enumerate(raw)]
    return [tool for tool in found if tool is not None]


def _tool(raw: Any, where: str) -> dict[str, Any] | None:
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise invalid(where, f"{where} is {fields.shown(raw)}; it has to have a name and an input_schema")
    kind, description, schema = raw.get("type"), raw.get("description"), raw.get("input_schema")
    if kind not in (None, "custom"):
        if isinstance(kind, str) and kind.startswith(_NEVER_CALLED):
            return None
        known = next((k for k in _RUN_BY_CLIENTS if isinstance(kind, str) and kind.startswith(k[0])), None)
        if known is None:
            allowed = "tools of your own and those of type bash, text_editor and memory can be called here"
            raise ApiError(400, "unsupported_tool", f"{where} is of type {fields.shown(kind)}; {allowed}", where)
        _, description, schema = known
    if not isinstance(schema, dict):
        at = f"{where}.input_schema"
        raise invalid(at, f"{at} is {fields.shown(schema)}; it has to be a JSON schema")
    function = {"name": raw["name"], "description": description, "parameters": schema}
    return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}
