"""How images and audio stand in a prompt's token list: each as a run of one negative number that no other picture, place or length has. Pure.

The number is made of a digest of what is shown, so token lists can be compared as ever: a prefix is only the same when its pictures are.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_BITS = 24
_MASK = (1 << _BITS) - 1


@dataclass(eq=False)
class Span:
    """One picture or stretch of audio in a prompt: `count` cells from `start` on, which take `positions` of the sequence."""

    start: int
    count: int
    positions: int
    mark: int
    chunk: Any
    image: int = -1
    """The image that it shows, all or a part of it; -1 for audio, which is ready to be encoded as it is."""
    part: int = 0
    embedding: Any = None
    """What the projector made of it, as long as it waits to be decoded."""


@dataclass(eq=False)
class MediaPrompt:
    """A prompt with its pictures; `owners` free what the spans point to when nobody holds them any more."""

    tokens: list[int]
    text: str = ""
    add_special: bool = True
    parse_special: bool = True
    spans: list[Span] = field(default_factory=list)
    owners: list[Any] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    """The pixels of what it shows, in order; audio has its place too."""
    ready: tuple[int, Any, list[Any]] | None = None
    """The image that is being encoded, made ready: its number, who owns the chunks, the chunks."""

    def starting(self, at: int) -> Span | None:
        """The span that begins there."""
        return next((s for s in self.spans if s.start == at), None)

    def text_until(self, at: int, end: int) -> int:
        """Where the next span begins, or `end`."""
        return next((s.start for s in self.spans if s.start > at), end)

    def position(self, at: int) -> int:
        """The sequence's position after `at` cells."""
        return at - sum(s.count - s.positions for s in self.spans if s.start < at)


def make_mark(digest: str, ordinal: int, start: int, count: int, positions: int) -> int:
    """The number that stands for a span: what it shows, which part of it, where it begins, how long it is."""
    named = hashlib.sha256(f"{digest} {ordinal} {start}".encode()).digest()
    return -1 - (int.from_bytes(named[:16], "little") << 2 * _BITS | count << _BITS | positions)


def shows(tokens: Sequence[int]) -> bool:
    """Whether there is any picture among them."""
    return len(tokens) > 0 and min(tokens) < 0


def words(tokens: Sequence[int]) -> list[int]:
    """The tokens that are text."""
    return [t for t in tokens if t >= 0] if shows(tokens) else list(tokens)


def position(tokens: Sequence[int], count: int) -> int:
    """The sequence's position after the first `count` tokens, none of which cut a span in two."""
    head = tokens[:count]
    if not shows(head):
        return count
    at, found = 0, 0
    while at < count:
        if head[at] >= 0:
            at, found = at + 1, found + 1
        else:
            value = -1 - head[at]
            at, found = at + (value >> _BITS & _MASK), found + (value & _MASK)
    return found


def whole(tokens: Sequence[int], count: int) -> int:
    """The largest number of tokens up to `count` that cuts no span in two."""
    while 0 < count < len(tokens) and tokens[count] < 0 and tokens[count - 1] == tokens[count]:
        count -= 1
    return count


def stretched(tokens: Sequence[int]) -> bool:
    """Whether cells and positions differ."""
    return shows(tokens) and position(tokens, len(tokens)) != len(tokens)
