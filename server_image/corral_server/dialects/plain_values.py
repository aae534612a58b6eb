"""Values of arguments that stand alone, as text, into JSON. Pure.

A model may write what its schema does not say, and Python's words for JSON's: some templates show earlier calls to it that way.
"""

import json
import re

import orjson

from corral_server.dialects.growing import SPACE
from corral_server.dialects.parameters import ANYTHING, STRING, kind_of

_PYTHON = {"True": "true", "False": "false", "None": "null"}
_PIECE = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|\b(?:True|False|None)\b""", re.DOTALL)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""}
_FIRST = {"object": "{", "array": "[", "number": "-0123456789", "integer": "-0123456789"}
_WORDS = {"boolean": ("true", "false", "True", "False"), "null": ("null", "None")}


def quoted(text: str) -> str:
    """Text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def json_value(raw: str, kinds: frozenset[str]) -> str:
    """A whole value as JSON. Where strings may come, it is one unless it is JSON of another of the types; else only when it is no JSON at all."""
    text = raw.strip(SPACE)
    for attempt in dict.fromkeys((text, from_python(text))):
        try:
            kind = kind_of(orjson.loads(attempt))
        except orjson.JSONDecodeError:
            continue
        if kind == "string" and attempt is not text:
            continue
        # A number without a fraction is one too. A string in quotes is one where nothing is said of the type, else its quotes belong to it.
        allowed = kinds if kinds == ANYTHING else kinds - STRING
        if "string" not in kinds or kind in allowed or (kind == "integer" and "number" in allowed):
            return attempt
    return quoted(raw)


def may_be_json(begun: str, kinds: frozenset[str]) -> bool:
    """Whether what has come of a value may become JSON of one of the types; when not, it is a string already."""
    text = begun.lstrip(SPACE)
    if not text or (kinds == ANYTHING and text[0] == '"'):
        return True
    if any(text[0] in _FIRST.get(kind, "") for kind in kinds):
        return True
    word = text.rstrip(SPACE)
    return any(w.startswith(word) for kind in kinds for w in _WORDS.get(kind, ()))


def from_python(text: str) -> str:
    """The same value as JSON, where it was written as Python does it."""
    return _PIECE.sub(lambda m: _PYTHON.get(m[0]) or quoted(unescaped(m[0][1:-1])), text)


def unescaped(text: str) -> str:
    """What the inside of a Python string says."""
    return _ESCAPE.sub(lambda m: _character(m[1]), text)


def _character(code: str) -> str:
    if code[0] in "xuU" and len(code) > 1:
        number = int(code[1:], 16)
        # Half of a pair, or beyond the last character.
        return chr(number) if number < 0xD800 or 0xDFFF < number < 0x110000 else "\ufffd"
    return _ESCAPES.get(code, code if code in "\\'\"" else "\\" + code)
