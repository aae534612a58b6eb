"""What a chat template can take, found by rendering probes, and messages brought to that. Runs in the renderer's process.

Templates differ in whether they know system messages, whether content is text or a list of parts, and whether the arguments of a call are an object.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Render = Callable[[list[dict[str, Any]]], str]
_SYSTEM, _USER, _KEY, _RESULT = "corral-system-probe", "corral-user-probe", "corral-argument-probe", "corral-result-probe"
_LISTED_AS_IT_IS = re.compile(r"""['"]type['"]: ?['"]text['"]""")
_RESULTS = ("tool", "function")


@dataclass(frozen=True)
class Needs:
    parts: bool = False
    """Content has to be a list of parts."""
    takes_parts: bool = False
    """Content may be a list of parts."""
    result_parts: bool = False
    """The same two of what a tool answered: templates with parts for users often know only text there."""
    takes_result_parts: bool = False
    no_system: bool = False
    text_arguments: bool = False


def needs_of(render: Render, *, calls: bool) -> Needs:
    """`calls`: the template mentions tool calls at all."""

    def rendered(messages: list[dict[str, Any]]) -> str:
        try:
            return render(messages)
        except Exception:
            return ""

    def forms(words: str, around: Callable[[Any], list[dict[str, Any]]]) -> tuple[bool, bool] | None:
        """Whether content has to be parts, and whether it may be; None: it comes out in neither form."""
        as_text, listed = rendered(around(words)), rendered(around([{"type": "text", "text": words}]))
        if words not in as_text:
            return (True, True) if words in listed else None
        return False, words in listed and not _LISTED_AS_IT_IS.search(listed)

    found = forms(_USER, lambda content: [{"role": "user", "content": content}])
    parts, takes_parts = found or (False, False)
    known = {"role": "user", "content": [{"type": "text", "text": _USER}] if parts else _USER}
    system = {"role": "system", "content": [{"type": "text", "text": _SYSTEM}] if parts else _SYSTEM}
    no_system = found is not None and _SYSTEM not in rendered([system, known])
    text_arguments = calls and _wants_text(rendered, known)
    arguments: Any = json.dumps({_KEY: "x"}) if text_arguments else {_KEY: "x"}
    results = forms(_RESULT, lambda content: _called(known, arguments, content)) if calls else None
    result_parts, takes_result_parts = results or (parts, takes_parts)
    return Needs(parts, takes_parts, result_parts, takes_result_parts, no_system, text_arguments)


def _called(user: dict[str, Any], arguments: Any, content: Any) -> list[dict[str, Any]]:
    """A conversation in which a tool was called, and answered."""
    call = {"id": "call00001", "type": "function", "function": {"name": "probe", "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": "call00001", "name": "probe", "content": content}
    return [user, {"role": "assistant", "content": "", "tool_calls": [call]}, result]


def _wants_text(rendered: Render, user: dict[str, Any]) -> bool:
    """Whether arguments as an object come out wrong: refused, left out, or as Python writes a dictionary."""
    as_object = rendered(_called(user, {_KEY: "x"}, "1"))
    if _KEY in as_object and "{'" + _KEY not in as_object:
        return False
    return _KEY in rendered(_called(user, json.dumps({_KEY: "x"}), "1"))


def joined(content: Any) -> str:
    """Content as one text."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""


def fitted(messages: list[dict[str, Any]], needs: Needs) -> list[dict[str, Any]]:
    """The messages as a template with these needs can take them."""
    found = [dict(m) if _takes_parts(m, needs) else {**m, "content": joined(m.get("content"))} for m in messages]
    if needs.no_system and found and found[0].get("role") == "system":
        if len(found) > 1:
            found[1]["content"] = f"{joined(found[0]['content'])}\n{joined(found[1]['content'])}"
            found = found[1:]
        else:
            found[0]["role"] = "user"
    for message in found:
        if message.get("content") is None:
            message["content"] = ""
        parts = needs.result_parts if message.get("role") in _RESULTS else needs.parts
        if parts and isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
        if needs.text_arguments and message.get("tool_calls"):
            message["tool_calls"] = [_with_text(c) for c in message["tool_calls"]]
    return found


def _takes_parts(message: dict[str, Any], needs: Needs) -> bool:
    return needs.takes_result_parts if message.get("role") in _RESULTS else needs.takes_parts


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"].get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": text}}
