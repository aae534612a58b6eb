"""Looking ahead in growing text, where nothing is taken before it is certain that a call has begun."""

import re
from collections.abc import Collection, Sequence

from corral_server.dialects.growing import NAME, SPACE, GrowingText, NotACallError, Steps

_NAME = re.compile(rf"[{SPACE}]*({NAME.pattern})")


def goes_on(text: GrowingText, at: int, marks: Sequence[str]) -> bool | None:
    """Whether one of the marks follows, blanks aside; None while that is not certain."""
    rest = text.buffer[at:].lstrip(SPACE)
    if rest.startswith(tuple(marks)):
        return True
    possible = any(mark.startswith(rest) for mark in marks)
    return possible if text.closed or not possible else None


def next_of(text: GrowingText, at: int, marks: Sequence[str]) -> Steps:
    """Which of the marks follows, blanks aside; nothing when the text ends where one could still come."""
    while (found := goes_on(text, at, marks)) is None:
        yield
    if not found:
        raise NotACallError
    rest = text.buffer[at:].lstrip(SPACE)
    return next((mark for mark in marks if rest.startswith(mark)), "")


def past(text: GrowingText, at: int, mark: str) -> Steps:
    """The place behind a mark that has to follow, blanks aside."""
    if (yield from next_of(text, at, (mark,))) != mark:
        raise NotACallError
    return text.buffer.index(mark, at) + len(mark)


def name_at(text: GrowingText, at: int, names: Collection[str]) -> Steps:
    """One of the names, which has to follow, and the place behind it."""
    while (found := _NAME.match(text.buffer, at)) is None or found.end() == len(text.buffer):
        if text.closed or (found is None and text.buffer[at:].strip(SPACE)):
            break
        yield
    if found is None or found[1] not in names:
        raise NotACallError
    return found[1], found.end()
