"""Calls as Python writes them, in a list: `[NAME(key="value", n=1)]`, by LFM2.

A string ends at the quote that another argument or the call's end follows: the model's own template shows it strings whose quotes are not escaped.
"""

import re
from collections.abc import Collection

from corral_server.dialects.growing import SPACE, GrowingText, NotACallError, Steps
from corral_server.dialects.peeking import name_at, past
from corral_server.dialects.plain_values import json_value, quoted, unescaped

_S = rf"[{SPACE}]*"
_KEY, _MAY_BE_KEY = re.compile(rf"{_S}(\w{{1,128}}){_S}="), re.compile(rf"{_S}\w{{0,128}}{_S}")
_NEXT = re.compile(rf"{_S}(?:,{_S}\w+{_S}=|\){_S}(?:\]|,{_S}[\w.-]+{_S}\())")
_MAY_BE_NEXT = re.compile(rf"{_S}(?:,{_S}(?:\w+{_S})?|\){_S}(?:,{_S}(?:[\w.-]+{_S})?)?)?")
_ESCAPE_LENGTHS = {"x": 4, "u": 6, "U": 10}
_JSON = frozenset({"object"})


def pythonic_calls(text: GrowingText, names: Collection[str]) -> Steps:
    """The calls of a list; NotACallError where there is none, or no more. Nothing is taken of what is none."""
    before = "["
    while True:
        at = yield from past(text, 0, before)
        name, at = yield from name_at(text, at, names)
        text.take((yield from past(text, at, "(")))
        index = text.begin_call(name)
        try:
            yield from _arguments(text, index)
        except NotACallError:
            if not text.closed:
                raise
            # Cut off.
            text.rest()
            return
        yield from text.spaces()
        if not text.buffer.startswith(","):
            yield from text.next_is("]")
            return
        before = ","


def _arguments(text: GrowingText, index: int) -> Steps:
    """Behind the opening parenthesis, up to and with the closing one."""
    between = "{"
    while True:
        if not (yield from text.spaces()):
            raise NotACallError
        if (yield from text.next_is(")")):
            text.end_arguments(index, empty=between == "{")
            return
        try:
            key = yield from _key(text)
        except NotACallError:
            if not text.closed:
                text.end_arguments(index, empty=between == "{")
            raise
        text.emit("arguments", f"{between}{quoted(key)}: ", index)
        between = ", "
        if not (yield from text.spaces()):
            raise NotACallError
        yield from _string(text, index) if text.buffer[0] in "\"'" else _value(text, index)
        yield from text.spaces()
        yield from text.next_is(",")


def _key(text: GrowingText) -> Steps:
    while (found := _KEY.match(text.buffer)) is None:
        if text.closed or not _MAY_BE_KEY.fullmatch(text.buffer):
            raise NotACallError
        yield
    text.take(found.end())
    return found[1]


def _string(text: GrowingText, index: int) -> Steps:
    quote = text.take(1)
    text.emit("arguments", '"', index)
    while True:
        at = next((i for i, c in enumerate(text.buffer) if c in ("\\", quote)), len(text.buffer))
        text.emit("arguments", quoted(text.take(at))[1:-1], index)
        if text.buffer.startswith(quote):
            ends = _ends(text)
            if ends:
                text.take(1)
                text.emit("arguments", '"', index)
                return
            if ends is False:
                text.emit("arguments", quoted(text.take(1))[1:-1], index)
                continue
        elif text.buffer:
            length = _ESCAPE_LENGTHS.get(text.buffer[1:2], 2)
            if len(text.buffer) >= length or text.closed:
                text.emit("arguments", quoted(unescaped(text.take(length)))[1:-1], index)
                continue
        if text.closed:
            raise NotACallError
        yield


def _ends(text: GrowingText) -> bool | None:
    """Whether the quote that is next ends its string; None while that is not certain."""
    if _NEXT.match(text.buffer, 1):
        return True
    possible = _MAY_BE_NEXT.fullmatch(text.buffer, 1) is not None
    return possible if text.closed or not possible else None


def _value(text: GrowingText, index: int) -> Steps:
    """Anything but a string, when it is whole."""
    at, depth, quote = 0, 0, ""
    while True:
        while at < len(text.buffer):
            character = text.buffer[at]
            if quote:
                # What is escaped ends no string, also where it has not come yet.
                at += character == "\\"
                quote = "" if character == quote else quote
            elif character in "\"'":
                quote = character
            elif depth == 0 and character in ",)]}":
                text.emit("arguments", json_value(text.take(at).strip(SPACE), _JSON), index)
                return
            else:
                depth += (character in "([{") - (character in ")]}")
            at += 1
        if text.closed:
            text.emit("arguments", text.rest(), index)
            raise NotACallError
        yield


def written(calls: list[tuple[str, dict[str, object]]]) -> str:
    """Calls as the model writes them, for templates that leave earlier ones out."""
    return ", ".join(f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})" for name, arguments in calls)
