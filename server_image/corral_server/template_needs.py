"""What a chat template can take, found by rendering probes, and messages brought to that. Runs in the renderer's process.

Templates differ in whether they know system messages, whether content is text or a list of parts, and whether the arguments of a call are an object.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Render = Callable[[list[dict[str, Any]]], str]
_SYSTEM, _USER, _KEY = "corral-system-probe", "corral-user-probe", "corral-argument-probe"


@dataclass(frozen=True)
class Needs:
    parts: bool = False
    """Content has to be a list of parts."""
    takes_parts: bool = False
    """Content may be a list of parts."""
    no_system: bool = False
    text_arguments: bool = False


def needs_of(render: Render, *, calls: bool) -> Needs:
    """`calls`: the template mentions tool calls at all."""

    def says(words: str, messages: list[dict[str, Any]]) -> bool:
        try:
            return words in render(messages)
        except Exception:
            return False

    user: dict[str, Any] = {"role": "user", "content": _USER}
    listed = {"role": "user", "content": [{"type": "text", "text": _USER}]}
    parts = not says(_USER, [user]) and says(_USER, [listed])
    known = listed if parts else user
    system = {"role": "system", "content": [{"type": "text", "text": _SYSTEM}] if parts else _SYSTEM}
    no_system = says(_USER, [known]) and not says(_SYSTEM, [system, known])
    takes_parts = parts or (says(_USER, [listed]) and not says("'type'", [listed]) and not says('"type"', [listed]))
    return Needs(parts=parts, takes_parts=takes_parts, no_system=no_system, text_arguments=calls and _wants_text(render, known))


def _wants_text(render: Render, user: dict[str, Any]) -> bool:
    """Whether arguments as an object come out wrong: refused, left out, or as Python writes a dictionary."""

    def probe(arguments: Any) -> str:
        function = {"name": "probe", "arguments": arguments}
        call = {"id": "call00001", "type": "function", "function": function}
        result = {"role": "tool", "tool_call_id": "call00001", "name": "probe", "content": "1"}
        try:
            return render([user, {"role": "assistant", "content": "", "tool_calls": [call]}, result])
        except Exception:
            return ""

    as_object = probe({_KEY: "x"})
    if _KEY in as_object and "{'" + _KEY not in as_object:
        return False
    return _KEY in probe(json.dumps({_KEY: "x"}))


def joined(content: Any) -> str:
    """Content as one text."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""


def fitted(messages: list[dict[str, Any]], needs: Needs) -> list[dict[str, Any]]:
    """The messages as a template with these needs can take them."""
    found = [dict(m) if needs.takes_parts else {**m, "content": joined(m.get("content"))} for m in messages]
    if needs.no_system and found and found[0].get("role") == "system":
        if len(found) > 1:
            found[1]["content"] = f"{joined(found[0]['content'])}\n{joined(found[1]['content'])}"
            found = found[1:]
        else:
            found[0]["role"] = "user"
    for message in found:
        if message.get("content") is None:
            message["content"] = ""
        if needs.parts and isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
        if needs.text_arguments and message.get("tool_calls"):
            message["tool_calls"] = [_with_text(c) for c in message["tool_calls"]]
    return found


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"].get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": text}}
