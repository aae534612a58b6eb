"""Calls that a mark announces, in the middle of words: Hermes, Mistral, DeepSeek and their like; and gpt-oss's channels."""

import re
from collections.abc import Collection, Mapping

from corral_server.dialects.braced import braced_call
from corral_server.dialects.formats import DEEPSEEK_ALL_END, DEEPSEEK_CALL, DEEPSEEK_CALL_END, DEEPSEEK_SEP, Dialect, Shape
from corral_server.dialects.growing import NAME, GrowingText, NotACallError, Steps
from corral_server.dialects.objects import listed_objects, one_object
from corral_server.dialects.parameters import Signature
from corral_server.dialects.pythonic import pythonic_calls
from corral_server.dialects.sections import section
from corral_server.dialects.tagged import tagged_calls

_ADDRESS = " to="
_TARGET = re.compile(r"to=(?:functions\.)?([\w.-]+)")


def marked(text: GrowingText, dialect: Dialect, functions: Mapping[str, Signature]) -> Steps:
    """Words and calls, to the end; `functions` are those that may be called."""
    while mark := (yield from text.until(dialect.marks, "text")):
        before, text.whole = text.calls, ""
        if mark == dialect.short:
            # The call itself begins with it.
            text.buffer = mark + text.buffer
        try:
            yield from _calls(text, dialect, functions)
        except NotACallError:
            if text.calls == before:
                if mark == dialect.short:
                    text.take(len(mark))
                text.emit("text", mark + text.whole)
                continue
        yield from _end_of_calls(text, dialect)


def _end_of_calls(text: GrowingText, dialect: Dialect) -> Steps:
    """After calls, blanks before the next mark are not words."""
    if text.calls:
        yield from text.spaces()
        if dialect.closing and (yield from text.next_is(dialect.closing)):
            yield from text.spaces()


def _calls(text: GrowingText, dialect: Dialect, functions: Mapping[str, Signature]) -> Steps:
    if dialect.tags is not None:
        return (yield from tagged_calls(text, dialect, dialect.tags, functions))
    if dialect.shape is Shape.BRACED:
        return (yield from braced_call(text, dialect.quote, functions))
    if dialect.shape is Shape.PYTHON:
        return (yield from pythonic_calls(text, functions))
    if dialect.shape is Shape.SECTION:
        return (yield from section(text, functions))
    yield from text.spaces()
    if dialect.name == "deepseek":
        yield from _deepseek(text)
    elif dialect.shape is Shape.NAMED and text.buffer[:1] not in "[{":
        name = yield from _name_before(text, dialect.separator)
        yield from _named(text, name.split("[CALL_ID]")[0].strip())
    elif text.buffer.startswith("["):
        text.take(1)
        yield from listed_objects(text)
    else:
        yield from one_object(text)
        yield from text.spaces()
        if dialect.closing:
            yield from text.next_is(dialect.closing)
    return None


def _deepseek(text: GrowingText) -> Steps:
    while (yield from text.next_is(DEEPSEEK_CALL)):
        name, _ = yield from text.text_to([DEEPSEEK_SEP])
        if name.strip() == "function":
            name = yield from _name_before(text, "```json")
        yield from _named(text, name.strip())
        yield from text.until([DEEPSEEK_CALL_END], None)
        yield from text.spaces()
    yield from text.next_is(DEEPSEEK_ALL_END)


def _name_before(text: GrowingText, separator: str) -> Steps:
    """What stands before the separator, or before the arguments where the separator was left out."""
    name, mark = yield from text.text_to([separator, "{"])
    if mark == "{":
        text.buffer = "{" + text.buffer
    return name


def _named(text: GrowingText, name: str) -> Steps:
    if not NAME.fullmatch(name):
        raise NotACallError
    yield from text.spaces()
    yield from text.value(text.begin_call(name))


def channels(text: GrowingText, *, names: Collection[str], thoughts: bool) -> Steps:
    """gpt-oss: every message names its channel, and perhaps whom it is to, before or after that; `names` are the functions that may be called."""
    while True:
        while _ADDRESS.startswith(text.buffer) and not text.closed:
            yield
        mark = "" if text.buffer.startswith(_ADDRESS) else (yield from text.until(["<|channel|>", "<|start|>", "<|end|>"], "text"))
        if not mark and not text.buffer:
            return
        role = ""
        if mark != "<|channel|>":
            while "<|channel|>" not in text.buffer and not text.closed:
                yield
            if not mark and "<|channel|>" not in text.buffer:
                return
            role, _, text.buffer = text.buffer.partition("<|channel|>")
        while "<|message|>" not in text.buffer and not text.closed:
            yield
        if "<|message|>" not in text.buffer:
            text.buffer = ""
            return
        header, _, text.buffer = text.buffer.partition("<|message|>")
        target = _TARGET.search(f"{role} {header}")
        if target and target.group(1) in names:
            yield from text.value(text.begin_call(target.group(1)))
            continue
        kind = "thought" if "analysis" in header and thoughts else "text"
        text.in_thought = kind == "thought"
        found = yield from text.until(["<|end|>", "<|start|>", "<|call|>", "<|return|>"], kind)
        text.in_thought = False
        if found == "<|start|>":
            text.buffer = "<|start|>" + text.buffer
