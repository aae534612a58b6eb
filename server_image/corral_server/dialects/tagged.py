"""Calls with tagged arguments: Qwen3-Coder, Seed-OSS, GLM, MiniMax-M2, DeepSeek's DSML and their like.

Nothing is taken of what might be no call: a call begins when its name is known and what follows is an argument or its end. Strings are passed on as
they come; any other value when it is whole, since only then it is certain to be JSON.
"""

import re
from collections.abc import Mapping, Sequence

from corral_server.dialects.formats import Dialect, Tags
from corral_server.dialects.growing import SPACE, GrowingText, NotACallError, Steps, overlap
from corral_server.dialects.parameters import STRING, Signature
from corral_server.dialects.peeking import goes_on, name_at, next_of, past
from corral_server.dialects.plain_values import json_value, may_be_json, quoted

_KEY = re.compile(r'[^<>"\r\n]{1,256}')


def tagged_calls(text: GrowingText, dialect: Dialect, tags: Tags, functions: Mapping[str, Signature]) -> Steps:
    """The calls behind an opening mark; NotACallError where there is none, or no more."""
    while True:
        name = yield from _name(text, dialect, tags, functions)
        end = yield from _arguments(text, dialect, tags, functions[name])
        if not tags.nested or end != tags.called:
            return
        # Another call in the same opening, or its end, which the caller takes.
        if (yield from next_of(text, 0, (tags.call, dialect.closing))) != tags.call:
            return


def _name(text: GrowingText, dialect: Dialect, tags: Tags, functions: Mapping[str, Signature]) -> Steps:
    """The name of a call that surely is one; its head is taken."""
    at = yield from past(text, 0, tags.call)
    name, at = yield from name_at(text, at, functions)
    at = yield from past(text, at, tags.named)
    yield from next_of(text, at, (tags.key, *_ends(dialect, tags)))
    text.take(at)
    text.begin_call(name)
    return name


def _arguments(text: GrowingText, dialect: Dialect, tags: Tags, signature: Signature) -> Steps:
    """The arguments of the call that has just begun; returns the tag that ended it, or nothing when the text ended first."""
    index, between = text.calls - 1, "{"
    ends = _ends(dialect, tags)
    while True:
        mark = yield from next_of(text, 0, (tags.key, *ends))
        if mark in ends:
            text.take(text.buffer.index(mark) + len(mark))
            text.end_arguments(index, empty=between == "{")
            return mark
        try:
            key, kinds = (yield from _key(text, tags)) if mark else ("", STRING)
        except NotACallError:
            if not text.closed:
                text.end_arguments(index, empty=between == "{")
                raise
            key = ""
        if not key:
            # Cut off.
            text.rest()
            return ""
        text.emit("arguments", f"{between}{quoted(key)}: ", index)
        between = ", "
        yield from _value(text, tags, kinds or signature.named(key).kinds, (tags.key, *ends), index)


def _key(text: GrowingText, tags: Tags) -> Steps:
    """The name of an argument, and its type where the tag says it; everything up to the value is taken."""
    at = yield from past(text, 0, tags.key)
    while (found := _KEY.match(text.buffer, at)) is None or found.end() == len(text.buffer):
        if text.closed or len(text.buffer) > at + 256 or (found is None and len(text.buffer) > at):
            raise NotACallError
        yield
    if not found[0].strip():
        raise NotACallError
    at = found.end()
    for tag in tags.keyed:
        at = yield from past(text, at, tag)
    kinds = None
    if tags.typed:
        said = yield from next_of(text, at, ('true">', 'false">'))
        if not said:
            raise NotACallError
        at = yield from past(text, at, said)
        kinds = STRING if said == 'true">' else frozenset({"object"})
    if tags.padded:
        while len(text.buffer) == at and not text.closed:
            yield
        at += text.buffer.startswith("\n", at)
    text.take(at)
    return found[0].strip(), kinds


def _value(text: GrowingText, tags: Tags, kinds: frozenset[str], following: Sequence[str], index: int) -> Steps:
    begun = False
    while True:
        sure, end = _extent(text, tags, following)
        if not begun and (kinds == STRING or ("string" in kinds and not may_be_json(text.buffer[:sure], kinds))):
            begun = True
            text.emit("arguments", '"', index)
        if begun:
            text.emit("arguments", quoted(text.take(sure))[1:-1] + ('"' if end >= 0 else ""), index)
            end -= sure
        elif end >= 0:
            text.emit("arguments", json_value(text.take(sure), kinds), index)
            end -= sure
        elif text.closed:
            text.emit("arguments", text.rest().lstrip(SPACE), index)
        if end >= 0:
            text.take(end + len(tags.valued))
        if end >= 0 or text.closed:
            return
        yield


def _extent(text: GrowingText, tags: Tags, following: Sequence[str]) -> tuple[int, int]:
    """How much of the text is surely of a value, and where its closing tag is; -1 while that is not there.

    The tag ends the value when an argument or the call's end follows it: what is written about such tags may hold one.
    """
    buffer, start = text.buffer, 0
    while (at := buffer.find(tags.valued, start)) >= 0:
        ends = goes_on(text, at + len(tags.valued), following)
        if ends is not False:
            return at - (tags.padded and buffer[at - 1 : at] == "\n"), at if ends else -1
        start = at + len(tags.valued)
    held = 0 if text.closed else max(overlap(buffer, tags.valued), overlap(buffer, "\n" + tags.valued) if tags.padded else 0)
    return len(buffer) - held, -1


def _ends(dialect: Dialect, tags: Tags) -> tuple[str, ...]:
    """What ends a call: some leave the inner tag out."""
    return (tags.called, dialect.closing) if tags.called else (dialect.closing,)
