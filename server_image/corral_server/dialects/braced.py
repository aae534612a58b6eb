"""Calls as `call:NAME{key:value,...}`, with strings between marks of their own: Gemma 4 and FunctionGemma.

The values are those of JSON, keys stand without quotes. They are passed on as they come; a number or a word when it is whole.
"""

import re
from collections.abc import Collection

from corral_server.dialects.growing import SPACE, GrowingText, NotACallError, Steps, overlap
from corral_server.dialects.peeking import name_at, past
from corral_server.dialects.plain_values import json_value, quoted

_KEY = re.compile(r"[^:{}\[\],]{1,256}")
_WORD = re.compile(r"[^,{}\[\]]*")
_JSON = frozenset({"number", "boolean", "null"})
_DEEPEST = 64


def braced_call(text: GrowingText, quote: str, names: Collection[str]) -> Steps:
    """The call behind an opening mark; NotACallError where there is none. Nothing is taken of what is none."""
    at = yield from past(text, 0, "call:")
    name, at = yield from name_at(text, at, names)
    text.take((yield from past(text, at, "{")))
    index = text.begin_call(name)
    try:
        yield from _items(text, index, quote, "}", 0)
    except NotACallError:
        if not text.closed:
            raise
        # Cut off.
        text.rest()


def _items(text: GrowingText, index: int, quote: str, closing: str, depth: int) -> Steps:
    """What stands in braces or brackets, behind the opening one. Where it breaks off before the text ends, it is closed all the same."""
    text.emit("arguments", "{" if closing == "}" else "[", index)
    try:
        between = ""
        while not (yield from _closes(text, closing)):
            if between:
                yield from _comma(text)
            key = f"{quoted((yield from _key(text, quote)))}: " if closing == "}" else ""
            text.emit("arguments", between + key, index)
            between = ", "
            yield from _value(text, index, quote, depth)
    except NotACallError:
        if not text.closed:
            text.emit("arguments", closing, index)
        raise
    text.emit("arguments", closing, index)


def _comma(text: GrowingText) -> Steps:
    if not (yield from text.next_is(",")):
        raise NotACallError
    yield from text.spaces()


def _closes(text: GrowingText, closing: str) -> Steps:
    if not (yield from text.spaces()):
        raise NotACallError
    return (yield from text.next_is(closing))


def _key(text: GrowingText, quote: str) -> Steps:
    while (found := _KEY.match(text.buffer)) is not None and found.end() == len(text.buffer) and not text.closed:
        yield
    if found is None or text.buffer[found.end() : found.end() + 1] != ":":
        raise NotACallError
    # Some quote it all the same.
    return text.take(found.end() + 1)[:-1].strip(SPACE).removeprefix(quote).removesuffix(quote).strip('"')


def _value(text: GrowingText, index: int, quote: str, depth: int) -> Steps:
    yield from text.spaces()
    if (yield from text.next_is(quote)):
        yield from _string(text, index, quote)
    elif text.buffer[:1] and text.buffer[0] in "{[" and depth < _DEEPEST:
        opening = text.take(1)
        yield from _items(text, index, quote, "}" if opening == "{" else "]", depth + 1)
    else:
        while (found := _WORD.match(text.buffer)) is not None and found.end() == len(text.buffer) and not text.closed:
            yield
        word = text.take(found.end() if found else 0)
        text.emit("arguments", word if text.closed and not text.buffer else json_value(word, _JSON), index)


def _string(text: GrowingText, index: int, quote: str) -> Steps:
    text.emit("arguments", '"', index)
    while (at := text.buffer.find(quote)) < 0:
        held = 0 if text.closed else overlap(text.buffer, quote)
        text.emit("arguments", quoted(text.take(len(text.buffer) - held))[1:-1], index)
        if text.closed:
            raise NotACallError
        yield
    text.emit("arguments", quoted(text.take(at))[1:-1] + '"', index)
    text.take(len(quote))
