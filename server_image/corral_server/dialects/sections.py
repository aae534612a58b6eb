"""Calls in a section of their own, each with its name and number: Kimi K2."""

import re
from collections.abc import Collection

from corral_server.dialects.growing import SPACE, GrowingText, NotACallError, Steps
from corral_server.dialects.tagged_formats import KIMI_ARGUMENTS, KIMI_CALL, KIMI_CALL_END

_HEAD = re.compile(r"\s*(?:functions\.)?([\w.-]{1,128}?)(?::\d+)?\s*")
_LONGEST = 256


def section(text: GrowingText, names: Collection[str]) -> Steps:
    """The calls of a section, up to its end; NotACallError where there is none, or no more. Nothing is taken of what is none."""
    before = text.calls
    while (yield from _another(text)):
        yield from _call(text, names)
        yield from text.spaces()
        yield from text.next_is(KIMI_CALL_END)
    if text.calls == before:
        raise NotACallError


def _another(text: GrowingText) -> Steps:
    yield from text.settled(KIMI_CALL)
    return text.buffer.lstrip(SPACE).startswith(KIMI_CALL)


def _call(text: GrowingText, names: Collection[str]) -> Steps:
    at = text.buffer.index(KIMI_CALL) + len(KIMI_CALL)
    while (end := text.buffer.find(KIMI_ARGUMENTS, at)) < 0:
        if text.closed or len(text.buffer) > at + _LONGEST + len(KIMI_ARGUMENTS):
            raise NotACallError
        yield
    head = _HEAD.fullmatch(text.buffer, at, end)
    start = end + len(KIMI_ARGUMENTS)
    while not text.buffer[start:].strip(SPACE) and not text.closed:
        yield
    if end > at + _LONGEST or head is None or head[1] not in names or text.buffer[start:].lstrip(SPACE)[:1] not in ("", "{"):
        raise NotACallError
    text.take(start)
    index = text.begin_call(head[1])
    yield from text.spaces()
    if text.buffer:
        yield from text.value(index)
