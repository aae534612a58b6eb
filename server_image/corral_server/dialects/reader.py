"""Reads an answer as it grows: tells thoughts, words and tool calls apart, in any of the dialects.

A reader is a generator over the text so far: it stops where the meaning of what comes next is not certain yet, and goes on when there is more.
What looked like a call and is none comes out as words: nothing that the model wrote is lost.
"""

import re
from collections.abc import Collection, Generator, Sequence
from typing import Any, NamedTuple

import orjson

from corral_server.dialects.formats import DEEPSEEK_ALL_END, DEEPSEEK_CALL, DEEPSEEK_CALL_END, DEEPSEEK_SEP, Dialect, Shape, Thinking

_NAME = re.compile(r"[\w.-]{1,128}")
_SPACE = " \t\r\n"
Steps = Generator[None, None, Any]


class Part(NamedTuple):
    """A piece of an answer: `kind` is text, thought, call (a name) or arguments; calls are numbered."""

    kind: str
    text: str
    call: int = 0


class _NotACallError(Exception):
    pass


class Reader:
    """One answer. `feed` what came, `finish` at its end; both give the parts that became certain."""

    def __init__(
        self,
        dialect: Dialect | None,
        names: Collection[str] = (),
        *,
        thinking: Thinking | None = None,
        open_thought: bool = False,
        harmony: bool = False,
    ) -> None:
        self.calls = 0
        self.plain = False
        """Whatever comes now is words: the caller may stop asking."""
        self.in_thought = False
        self._dialect = dialect
        self._names = names
        self._thinking = thinking
        self._buffer = ""
        self._closed = False
        self._parts: list[Part] = []
        self._steps = self._harmony() if harmony else self._answer(open_thought=open_thought)
        self._over = False
        self._whole = ""
        """What was taken for a call so far, to be said if it is none."""
        self._advance()

    def feed(self, text: str) -> list[Part]:
        if self.plain:
            return [Part("text", text)] if text else []
        self._buffer += text
        return self._advance()

    def finish(self) -> list[Part]:
        if self.plain or self._over:
            return []
        self._closed = True
        parts = self._advance()
        if self._buffer:
            parts.append(Part("text", self._buffer))
            self._buffer = ""
        return parts

    def _advance(self) -> list[Part]:
        if not self._over:
            try:
                next(self._steps)
            except StopIteration:
                self._over = True
                if self._buffer:
                    self._emit("text", self._take(len(self._buffer)))
                self.plain = True
        elif self._buffer:
            self._emit("text", self._take(len(self._buffer)))
        parts, self._parts = self._parts, []
        return parts

    # --- the buffer

    def _take(self, count: int) -> str:
        text, self._buffer = self._buffer[:count], self._buffer[count:]
        return text

    def _emit(self, kind: str, text: str, call: int = 0) -> None:
        if not text:
            return
        last = self._parts[-1] if self._parts else None
        if last is not None and last.kind == kind and last.call == call and kind != "call":
            self._parts[-1] = last._replace(text=last.text + text)
        else:
            self._parts.append(Part(kind, text, call))

    def _until(self, marks: Sequence[str], kind: str | None) -> Steps:
        """Pass text on (as `kind`; None drops it) up to the first of the marks; returns it, or nothing at the end."""
        while True:
            found = min(((at, m) for m in marks if (at := self._buffer.find(m)) >= 0), default=None)
            if found is not None:
                before = self._take(found[0])
                if kind:
                    self._emit(kind, before)
                self._take(len(found[1]))
                return found[1]
            held = 0 if self._closed else max((_overlap(self._buffer, m) for m in marks), default=0)
            passed = self._take(len(self._buffer) - held)
            if kind:
                self._emit(kind, passed)
            if self._closed:
                return ""
            yield

    def _spaces(self) -> Steps:
        """Drop blanks; whether anything follows them."""
        while True:
            self._buffer = self._buffer.lstrip(_SPACE)
            if self._buffer or self._closed:
                return bool(self._buffer)
            yield

    def _next_is(self, mark: str) -> Steps:
        """Whether the text goes on with a mark; it is taken when it does."""
        while len(self._buffer) < len(mark) and mark.startswith(self._buffer) and not self._closed:
            yield
        if self._buffer.startswith(mark):
            self._take(len(mark))
            return True
        return False

    def _text_to(self, marks: Sequence[str]) -> Steps:
        """The text before a mark, kept back until the mark is there; (text, mark)."""
        while True:
            found = min(((at, m) for m in marks if (at := self._buffer.find(m)) >= 0), default=None)
            if found is not None:
                text = self._take(found[0])
                self._take(len(found[1]))
                return text, found[1]
            if self._closed:
                raise _NotACallError
            yield

    # --- thoughts and words

    def _answer(self, *, open_thought: bool) -> Steps:
        thinking = self._thinking
        if thinking is not None:
            if not open_thought:
                lead = ""
                while not self._buffer.strip() and not self._closed:
                    yield
                lead = self._buffer[: len(self._buffer) - len(self._buffer.lstrip(_SPACE))]
                self._take(len(lead))
                open_thought = yield from self._next_is(thinking.opening)
                if not open_thought:
                    self._buffer = lead + self._buffer
            if open_thought:
                yield from self._thought(thinking)
        dialect = self._dialect
        if dialect is None:
            return
        if dialect.shape is Shape.GENERIC:
            yield from self._generic()
        elif dialect.shape is Shape.BARE:
            yield from self._bare()
        else:
            yield from self._marked(dialect)

    def _thought(self, thinking: Thinking) -> Steps:
        self.in_thought = True
        yield from self._spaces()
        yield from self._until([thinking.closing], "thought")
        self.in_thought = False
        yield from self._spaces()

    def _marked(self, dialect: Dialect) -> Steps:
        while (yield from self._until([dialect.opening], "text")):
            before, self._whole = self.calls, ""
            try:
                yield from self._calls(dialect)
            except _NotACallError:
                if self.calls == before:
                    self._emit("text", dialect.opening + self._whole)
                    continue
            yield from self._end_of_calls(dialect)

    def _end_of_calls(self, dialect: Dialect) -> Steps:
        """After calls, blanks before the next mark are not words."""
        if self.calls:
            yield from self._spaces()
            if dialect.closing and (yield from self._next_is(dialect.closing)):
                yield from self._spaces()

    def _calls(self, dialect: Dialect) -> Steps:
        yield from self._spaces()
        if dialect.name == "deepseek":
            yield from self._deepseek()
        elif dialect.shape is Shape.NAMED and self._buffer[:1] not in "[{":
            name, _ = yield from self._text_to([dialect.separator, "{"])
            if _ == "{":
                self._buffer = "{" + self._buffer
            yield from self._named(name.split("[CALL_ID]")[0].strip())
        elif self._buffer.startswith("["):
            self._take(1)
            while True:
                yield from self._spaces()
                if (yield from self._next_is("]")):
                    break
                yield from self._object()
                yield from self._spaces()
                yield from self._next_is(",")
                if self._closed and not self._buffer:
                    break
        else:
            yield from self._object()
            yield from self._spaces()
            if dialect.closing:
                yield from self._next_is(dialect.closing)

    def _deepseek(self) -> Steps:
        while (yield from self._next_is(DEEPSEEK_CALL)):
            name, _ = yield from self._text_to([DEEPSEEK_SEP])
            if name.strip() == "function":
                name, _ = yield from self._text_to(["```json", "{"])
                if _ == "{":
                    self._buffer = "{" + self._buffer
            yield from self._named(name.strip())
            yield from self._until([DEEPSEEK_CALL_END], None)
            yield from self._spaces()
        yield from self._next_is(DEEPSEEK_ALL_END)

    def _named(self, name: str) -> Steps:
        if not _NAME.fullmatch(name):
            raise _NotACallError
        yield from self._spaces()
        index = self._begin(name)
        yield from self._value(index)

    def _begin(self, name: str) -> int:
        index, self.calls = self.calls, self.calls + 1
        self._emit("call", name, index)
        return index

    # --- calls as objects

    def _bare(self) -> Steps:
        """The whole answer is a call, or it is words."""
        while True:
            yield from self._keep_spaces()
            if self._buffer.lstrip(_SPACE).startswith("<|python_tag|>"):
                yield from self._until(["<|python_tag|>"], None)
                yield from self._spaces()
            if not self._buffer.lstrip(_SPACE).startswith("{"):
                return
            try:
                yield from self._spaces()
                yield from self._object(known=True)
            except _NotACallError:
                if not self.calls:
                    self._buffer = self._whole + self._buffer
                return
            yield from self._spaces()
            if not (yield from self._next_is(";")):
                return

    def _keep_spaces(self) -> Steps:
        mark = "<|python_tag|>"
        while not self._closed:
            seen = self._buffer.lstrip(_SPACE)
            if seen and not (mark.startswith(seen) and seen != mark):
                return
            yield

    def _object(self, *, known: bool = False) -> Steps:
        """An object with a name and its arguments, in any order, and whatever else."""
        self._whole = ""
        if not (yield from self._eat("{")):
            raise _NotACallError
        index: int | None = None
        early: str | None = None
        while True:
            yield from self._eat_spaces()
            if (yield from self._eat("}")):
                break
            yield from self._eat(",")
            yield from self._eat_spaces()
            key = yield from self._string()
            yield from self._eat_spaces()
            if not (yield from self._eat(":")):
                raise _NotACallError
            yield from self._eat_spaces()
            if key in ("name", "tool_name", "function") and index is None and self._buffer[:1] == '"':
                name = yield from self._string()
                if not _NAME.fullmatch(name) or (known and name not in self._names):
                    raise _NotACallError
                index = self._begin(name)
                if early is not None:
                    self._emit("arguments", early, index)
            elif key in ("arguments", "parameters"):
                early = yield from self._arguments(index)
            else:
                yield from self._value(None)
        if index is None:
            raise _NotACallError
        if early is None:
            self._emit("arguments", "{}", index)

    def _arguments(self, index: int | None) -> Steps:
        if self._buffer[:1] == '"':
            # Some write the arguments as JSON in a string.
            text = yield from self._string()
            if index is not None:
                self._emit("arguments", text, index)
            return text
        return (yield from self._value(index))

    def _eat(self, character: str) -> Steps:
        """One character that has to be next, remembered in case this is no call."""
        while not self._buffer and not self._closed:
            yield
        if self._buffer.startswith(character):
            self._whole += self._take(1)
            return True
        return False

    def _eat_spaces(self) -> Steps:
        while True:
            count = len(self._buffer) - len(self._buffer.lstrip(_SPACE))
            self._whole += self._take(count)
            if self._buffer:
                return
            if self._closed:
                raise _NotACallError
            yield

    def _string(self) -> Steps:
        if self._buffer[:1] != '"':
            self._whole += self._take(len(self._buffer))
            raise _NotACallError
        at = 1
        while True:
            while at < len(self._buffer):
                if self._buffer[at] == "\\":
                    at += 2
                    continue
                if self._buffer[at] == '"':
                    raw = self._take(at + 1)
                    self._whole += raw
                    try:
                        return orjson.loads(raw)
                    except orjson.JSONDecodeError:
                        raise _NotACallError from None
                at += 1
            if self._closed:
                raise _NotACallError
            yield

    def _value(self, index: int | None) -> Steps:
        """One JSON value, passed on as the arguments of a call as it comes; returns its text."""
        depth, quoted, escaped, text = 0, False, False, ""
        while True:
            end, done = 0, False
            for at, character in enumerate(self._buffer):
                end = at + 1
                if quoted:
                    if escaped:
                        escaped = False
                    elif character == "\\":
                        escaped = True
                    elif character == '"':
                        quoted = False
                        done = depth == 0
                elif character == '"':
                    quoted = True
                elif character in "{[":
                    depth += 1
                elif character in "}]":
                    if depth == 0:
                        # The end of what this value stands in.
                        end, done = at, True
                    else:
                        depth -= 1
                        done = depth == 0
                elif depth == 0 and character == ",":
                    end, done = at, True
                if done:
                    break
            taken = self._take(end if done else len(self._buffer))
            self._whole += taken
            text += taken
            if index is not None:
                self._emit("arguments", taken, index)
            if done or self._closed:
                return text
            yield

    # --- the form of our own

    def _generic(self) -> Steps:
        """`{"tool_call": …}`, `{"tool_calls": […]}` or `{"response": "…"}`; anything else is words."""
        yield from self._keep_spaces()
        if not self._buffer.lstrip(_SPACE).startswith("{"):
            return
        try:
            self._whole = ""
            yield from self._eat_spaces()
            yield from self._eat("{")
            yield from self._eat_spaces()
            key = yield from self._string()
            yield from self._eat_spaces()
            yield from self._eat(":")
            yield from self._eat_spaces()
            yield from self._generic_value(key)
        except _NotACallError:
            if not self.calls:
                self._buffer = self._whole + self._buffer
            return
        yield from self._until([], None)

    def _generic_value(self, key: str) -> Steps:
        if key == "response":
            yield from self._spoken()
        elif key == "tool_call":
            yield from self._object()
        elif key == "tool_calls" and (yield from self._eat("[")):
            while True:
                yield from self._spaces()
                yield from self._object()
                yield from self._spaces()
                if not (yield from self._next_is(",")):
                    break
        else:
            raise _NotACallError

    def _spoken(self) -> Steps:
        """The inside of a JSON string, as words, as it comes."""
        if not (yield from self._next_is('"')):
            raise _NotACallError
        while True:
            at, ended = 0, False
            while at < len(self._buffer):
                if self._buffer[at] == '"':
                    ended = True
                    break
                if self._buffer[at] == "\\":
                    length = _escape_length(self._buffer, at)
                    if at + length > len(self._buffer):
                        break
                    at += length
                else:
                    at += 1
            raw = self._take(at)
            if raw:
                try:
                    self._emit("text", orjson.loads(b'"' + raw.encode("utf-8", "replace") + b'"'))
                except orjson.JSONDecodeError:
                    self._emit("text", raw)
            if ended or self._closed:
                if ended:
                    self._take(1)
                return
            yield

    # --- channels

    def _harmony(self) -> Steps:
        """gpt-oss: every message names its channel, and perhaps whom it is to."""
        while True:
            mark = yield from self._until(["<|channel|>", "<|start|>", "<|end|>"], "text")
            if not mark:
                return
            if mark != "<|channel|>":
                yield from self._until(["<|channel|>"], None)
            header = ""
            while "<|message|>" not in self._buffer and not self._closed:
                yield
            if "<|message|>" in self._buffer:
                header, _, self._buffer = self._buffer.partition("<|message|>")
            else:
                self._buffer = ""
                return
            target = re.search(r"to=(?:functions\.)?([\w.-]+)", header)
            if target and self._dialect is not None:
                index = self._begin(target.group(1))
                yield from self._value(index)
            else:
                kind = "thought" if "analysis" in header and self._thinking is not None else "text"
                self.in_thought = kind == "thought"
                found = yield from self._until(["<|end|>", "<|start|>", "<|call|>", "<|return|>"], kind)
                self.in_thought = False
                if found == "<|start|>":
                    self._buffer = "<|start|>" + self._buffer


def _escape_length(text: str, at: int) -> int:
    """How long an escape is; a high surrogate comes with its low one."""
    if text[at + 1 : at + 2] != "u":
        return 2
    digits = text[at + 2 : at + 6].lower()
    return 12 if len(digits) == 4 and digits[:2] in ("d8", "d9", "da", "db") else 6


def _overlap(text: str, mark: str) -> int:
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0
