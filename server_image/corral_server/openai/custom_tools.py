"""Custom tools: those that are called with free text instead of JSON. The model is shown a function with one text; here it becomes one and is read
back as it grows. Pure.

A grammar of syntax `regex` holds the text as any schema's pattern would. One of syntax `lark` holds it too, and is told to the model.
"""

import json
import re
from typing import Any

import orjson

from corral_server.openai import fields
from corral_server.openai.errors import invalid
from corral_server.schema_merging import LARK

INPUT = "input"
"""The one argument of such a function."""
_BEGINNING = re.compile(r'\s*\{\s*"' + INPUT + r'"\s*:\s*"')
_WHOLE = re.compile(
    r"""(?: [^"\\] | \\[^u] | \\u(?![dD][89abAB])[0-9a-fA-F]{4}
        | \\u[dD][89abAB][0-9a-fA-F]{2} (?: \\u[dD][c-fC-F][0-9a-fA-F]{2} | (?=[^\\] | \\[^u] | \\u[0-9a-fA-F]{4}) ) )*""",
    re.DOTALL | re.VERBOSE,
)
"""Characters and escapes that are all there, halves of a pair together."""
_LONGEST_GRAMMAR = 1 << 16


def as_function(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The function that the model is shown for a custom tool of chat completions."""
    form = fields.mapping(raw, "format")
    kind = fields.choice(form, "type", ("text", "grammar"), "text", within=f"{where}.format")
    schema: dict[str, Any] = {"type": "string"}
    description = raw.get("description") or ""
    if kind == "grammar":
        at = f"{where}.format.grammar"
        grammar = form.get("grammar")
        if not isinstance(grammar, dict):
            raise invalid(at, f"{at} is {fields.shown(grammar)}; it has to be an object with syntax and definition")
        syntax = fields.choice(grammar, "syntax", ("lark", "regex"), "", within=at)
        definition = grammar.get("definition")
        if not syntax or not isinstance(definition, str) or not definition or len(definition) > _LONGEST_GRAMMAR:
            raise invalid(at, f"{at} is {fields.shown(grammar)}; it has to have a syntax, lark or regex, and a definition")
        if syntax == "regex":
            schema["pattern"] = f"^(?:{definition})$"
        else:
            description = f"{description}\nThe input has to follow this Lark grammar:\n{definition}".strip()
    parameters = {"type": "object", "properties": {INPUT: schema}, "required": [INPUT], "additionalProperties": False}
    return {"name": raw.get("name"), "description": description, "parameters": parameters}


def held(parameters: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    """The schema that holds a call to the tool's grammar: the one that the model is shown, with a Lark grammar where the tool has one."""
    grammar = (raw.get("format") or {}).get("grammar") or {}
    if grammar.get("syntax") != "lark":
        return parameters
    return {**parameters, "properties": {INPUT: {"type": "string", LARK: grammar["definition"]}}}


def as_arguments(text: str) -> dict[str, str]:
    """What a call with this text looks like as a function's."""
    return {INPUT: text}


class FreeText:
    """The text of one call, out of arguments that grow."""

    def __init__(self) -> None:
        self._raw = ""
        self._begun = False
        self._over = False

    def feed(self, arguments: str) -> str:
        """What the arguments add to the text, as far as it is certain."""
        if self._over:
            return ""
        self._raw += arguments
        if not self._begun:
            found = _BEGINNING.match(self._raw)
            if found is None:
                return ""
            self._begun, self._raw = True, self._raw[found.end() :]
        certain = _WHOLE.match(self._raw)
        text = certain.group() if certain is not None else ""
        self._raw = self._raw[len(text) :]
        self._over = self._raw.startswith('"')
        return _unescaped(text)

    def finish(self) -> str:
        """What is left: arguments of any other form are the text, as they are."""
        if self._begun:
            return ""
        try:
            found = orjson.loads(self._raw)
        except orjson.JSONDecodeError:
            return self._raw
        return found if isinstance(found, str) else "" if found == {} else self._raw


def _unescaped(text: str) -> str:
    try:
        # Not strict, and with halves of pairs: no grammar may have held the model to JSON.
        return str(json.loads(f'"{text}"', strict=False)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    except json.JSONDecodeError:
        return text
