"""The text of an answer as it grows, and the small steps in which it is read.

Whoever reads is a generator over the text so far: it stops where the meaning of what comes next is not certain yet, and goes on when there is more.
Knows JSON's syntax, but no dialect.
"""

import re
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import orjson

NAME = re.compile(r"[\w.-]{1,128}")
SPACE = " \t\r\n"
Steps = Generator[None, None, Any]


class Part(NamedTuple):
    """A piece of an answer: `kind` is text, thought, call (a name) or arguments; calls are numbered."""

    kind: str
    text: str
    call: int = 0


class NotACallError(Exception):
    """What looked like a call is none: it has to come out as words."""


class GrowingText:
    """What came and was not taken yet, and the parts that became certain."""

    def __init__(self) -> None:
        self.buffer = ""
        self.closed = False
        """Nothing more will come."""
        self.calls = 0
        self.in_thought = False
        self.whole = ""
        """What was taken for a call so far, to be said if it is none."""
        self._parts: list[Part] = []

    def drain(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    def take(self, count: int) -> str:
        text, self.buffer = self.buffer[:count], self.buffer[count:]
        return text

    def rest(self) -> str:
        return self.take(len(self.buffer))

    def emit(self, kind: str, text: str, call: int = 0) -> None:
        if not text:
            return
        last = self._parts[-1] if self._parts else None
        if last is not None and last.kind == kind and last.call == call and kind != "call":
            self._parts[-1] = last._replace(text=last.text + text)
        else:
            self._parts.append(Part(kind, text, call))

    def begin_call(self, name: str) -> int:
        index, self.calls = self.calls, self.calls + 1
        self.emit("call", name, index)
        return index

    def end_arguments(self, call: int, *, empty: bool) -> None:
        """Close the object of a call's arguments; `empty`: nothing of it was said yet."""
        self.emit("arguments", "{}" if empty else "}", call)

    # --- up to something

    def until(self, marks: Sequence[str], kind: str | None) -> Steps:
        """Pass text on (as `kind`; None drops it) up to the first of the marks; returns it, or nothing at the end."""
        while True:
            found = self._first(marks)
            if found is not None:
                before = self.take(found[0])
                if kind:
                    self.emit(kind, before)
                self.take(len(found[1]))
                return found[1]
            held = 0 if self.closed else max((overlap(self.buffer, m) for m in marks), default=0)
            passed = self.take(len(self.buffer) - held)
            if kind:
                self.emit(kind, passed)
            if self.closed:
                return ""
            yield

    def text_to(self, marks: Sequence[str]) -> Steps:
        """The text before a mark, kept back until the mark is there; (text, mark)."""
        while True:
            found = self._first(marks)
            if found is not None:
                text = self.take(found[0])
                self.take(len(found[1]))
                return text, found[1]
            if self.closed:
                raise NotACallError
            yield

    def _first(self, marks: Sequence[str]) -> tuple[int, str] | None:
        return min(((at, m) for m in marks if (at := self.buffer.find(m)) >= 0), default=None)

    def spaces(self) -> Steps:
        """Drop blanks; whether anything follows them."""
        while True:
            self.buffer = self.buffer.lstrip(SPACE)
            if self.buffer or self.closed:
                return bool(self.buffer)
            yield

    def next_is(self, mark: str) -> Steps:
        """Whether the text goes on with a mark; it is taken when it does."""
        while len(self.buffer) < len(mark) and mark.startswith(self.buffer) and not self.closed:
            yield
        if self.buffer.startswith(mark):
            self.take(len(mark))
            return True
        return False

    def settled(self, mark: str) -> Steps:
        """Wait until it is certain whether the text, blanks aside, begins with a mark. Takes nothing."""
        while not self.closed:
            seen = self.buffer.lstrip(SPACE)
            if seen and not (mark.startswith(seen) and seen != mark):
                return
            yield

    # --- JSON, remembered in `whole`

    def eat(self, character: str) -> Steps:
        """One character that has to be next."""
        while not self.buffer and not self.closed:
            yield
        if self.buffer.startswith(character):
            self.whole += self.take(1)
            return True
        return False

    def eat_spaces(self) -> Steps:
        while True:
            self.whole += self.take(len(self.buffer) - len(self.buffer.lstrip(SPACE)))
            if self.buffer:
                return
            if self.closed:
                raise NotACallError
            yield

    def string(self) -> Steps:
        if self.buffer[:1] != '"':
            raise NotACallError
        at = 1
        while True:
            while at < len(self.buffer):
                if self.buffer[at] == "\\":
                    at += 2
                    continue
                if self.buffer[at] == '"':
                    raw = self.take(at + 1)
                    self.whole += raw
                    try:
                        return orjson.loads(raw)
                    except orjson.JSONDecodeError:
                        raise NotACallError from None
                at += 1
            if self.closed:
                raise NotACallError
            yield

    def value(self, index: int | None) -> Steps:
        """One JSON value, passed on as the arguments of a call as it comes; returns its text."""
        depth, quoted, escaped, text = 0, False, False, ""
        while True:
            end, done = 0, False
            for at, character in enumerate(self.buffer):
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
            taken = self.take(end if done else len(self.buffer))
            self.whole += taken
            text += taken
            if index is not None:
                self.emit("arguments", taken, index)
            if done or self.closed:
                return text
            yield

    def spoken(self) -> Steps:
        """The inside of a JSON string, as words, as it comes."""
        if not (yield from self.next_is('"')):
            raise NotACallError
        while True:
            at = 0
            while at < len(self.buffer) and self.buffer[at] not in '"\\':
                at += 1
            self.emit("text", self.take(at))
            if self.buffer[:1] == '"':
                self.take(1)
                return
            if self.buffer and (self.closed or len(self.buffer) >= _escape_length(self.buffer)):
                self.emit("text", _unescaped(self.take(_escape_length(self.buffer))))
            elif self.closed:
                return
            else:
                yield


def _escape_length(text: str) -> int:
    """How long the escape is with which a text begins, as far as can be told; a high surrogate comes with its low one."""
    if text[1:2] != "u":
        return 2
    if text[2:4].lower() not in ("d8", "d9", "da", "db") or (len(text) > 6 and not "\\u".startswith(text[6:8])):
        return 6
    return 12


def _unescaped(raw: str) -> str:
    """The character of an escape; what is none stays as it is, and half a surrogate pair is a character that could not be read."""
    try:
        return str(orjson.loads(b'"' + raw.encode("utf-8", "replace") + b'"'))
    except orjson.JSONDecodeError:
        halves = [raw[i : i + 6] for i in range(0, len(raw), 6)]
        if all(half[:2] == "\\u" and len(half) == 6 for half in halves):
            return "".join(_unescaped(half) for half in halves) if len(halves) > 1 else "\ufffd"
        return raw


def overlap(text: str, mark: str) -> int:
    """How many characters at a text's end may be the beginning of a mark."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0
