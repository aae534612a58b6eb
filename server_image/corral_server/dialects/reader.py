"""Reads an answer as it grows: tells thoughts, words and tool calls apart, in any of the dialects.

What looked like a call and is none comes out as words: nothing that the model wrote is lost.
"""

from collections.abc import Collection, Sequence
from typing import Any

from corral_server.dialects.formats import Dialect, Shape, Thinking
from corral_server.dialects.growing import SPACE, GrowingText, Part, Steps
from corral_server.dialects.marked import channels, marked
from corral_server.dialects.objects import bare, generic
from corral_server.dialects.parameters import Signature, signature_of

__all__ = ["Part", "Reader"]


class Reader:
    """One answer. `feed` what came, `finish` at its end; both give the parts that became certain.

    `names` are the functions that may be called, `schemas` those of their arguments; where they are left out, nothing is known of any argument.
    """

    def __init__(
        self,
        dialect: Dialect | None,
        names: Collection[str] = (),
        schemas: Sequence[Any] = (),
        *,
        thinking: Thinking | None = None,
        open_thought: bool = False,
        harmony: bool = False,
    ) -> None:
        self.plain = False
        """Whatever comes now is words: the caller may stop asking."""
        self._dialect = dialect
        self._names = names
        self._schemas = schemas
        self._thinking = thinking
        self._text = GrowingText()
        self._over = False
        self._steps = (
            channels(self._text, names=names if dialect is not None else (), thoughts=thinking is not None)
            if harmony
            else self._answer(open_thought=open_thought)
        )
        self._advance()

    @property
    def calls(self) -> int:
        return self._text.calls

    @property
    def in_thought(self) -> bool:
        return self._text.in_thought

    def feed(self, text: str) -> list[Part]:
        if self.plain:
            return [Part("text", text)] if text else []
        self._text.buffer += text
        return self._advance()

    def finish(self) -> list[Part]:
        if self.plain or self._over:
            return []
        self._text.closed = True
        parts = self._advance()
        if self._text.buffer:
            parts.append(Part("text", self._text.rest()))
        return parts

    def _advance(self) -> list[Part]:
        if not self._over:
            try:
                next(self._steps)
            except StopIteration:
                self._over = self.plain = True
        if self._over:
            self._text.emit("text", self._text.rest())
        return self._text.drain()

    def _answer(self, *, open_thought: bool) -> Steps:
        text, thinking, dialect = self._text, self._thinking, self._dialect
        if thinking is not None and (open_thought or (yield from self._thought_begins(thinking))):
            text.in_thought = True
            yield from text.spaces()
            forgotten = dialect.marks if dialect is not None and dialect.ends_thought else []
            mark = yield from text.until([thinking.closing, *forgotten], "thought")
            if mark in forgotten:
                text.buffer = mark + text.buffer
            text.in_thought = False
            yield from text.spaces()
        if dialect is None:
            return
        if dialect.shape is Shape.GENERIC:
            yield from generic(text)
        elif dialect.shape is Shape.BARE:
            yield from bare(text, self._names)
        else:
            yield from marked(text, dialect, self._functions())

    def _functions(self) -> dict[str, Signature]:
        known = dict(zip(self._names, self._schemas, strict=False))
        return {name: signature_of(known.get(name)) for name in self._names}

    def _thought_begins(self, thinking: Thinking) -> Steps:
        """Whether the answer begins with a thought; its mark is taken, and what is none is left with its blanks."""
        text = self._text
        while not text.buffer.strip() and not text.closed:
            yield
        lead = text.take(len(text.buffer) - len(text.buffer.lstrip(SPACE)))
        begins = yield from text.next_is(thinking.opening)
        if not begins:
            text.buffer = lead + text.buffer
        return begins
