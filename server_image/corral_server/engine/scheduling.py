"""Which sequence a request gets, how much of it may be kept, who has to give way. Pure: numbers and token lists in, decisions out."""

from collections.abc import Sequence
from dataclasses import dataclass

from corral_server.engine import media_marks

MINIMUM = 64
"""Tokens under which evaluating is cheaper than keeping."""


@dataclass(frozen=True)
class Rewind:
    """What the model's memory can take back: windows and recurrent states forget."""

    window: int = 0
    recurrent: bool = False


@dataclass(frozen=True)
class IdleSlot:
    id: int
    tokens: Sequence[int]
    last_used: int
    oldest_position: int = 0
    checkpoints: Sequence[int] = ()
    """Lengths at which the parts of the memory that forget were kept aside."""
    foreign: bool = False
    """Evaluated with other adapters than the request's: nothing of it may be kept."""

    def keeps(self, wanted: Sequence[int], rewind: Rewind, *, shared: bool = False) -> int:
        """How much of a prompt it spares; a shared beginning cannot go back to a checkpoint."""
        if self.foreign:
            return 0
        return reusable(self.tokens, wanted, self.oldest_position, rewind, () if shared else self.checkpoints)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning; compares in blocks because prompts are long and mostly equal."""
    limit = min(len(a), len(b))
    at = 0
    while at + 256 <= limit and a[at : at + 256] == b[at : at + 256]:
        at += 256
    while at < limit and a[at] == b[at]:
        at += 1
    return at


def rewindable(held: int, length: int, oldest_position: int, rewind: Rewind) -> bool:
    """Whether cutting a sequence of `held` tokens down to `length` leaves what a fresh evaluation would have made.

    A sliding window that has moved on no longer holds what a shorter prefix would need, and a recurrent state is only right at its very end: the
    library accepts such a rewind and then answers wrongly.
    """
    if length in (0, held):
        return True
    if rewind.recurrent:
        return False
    return not rewind.window or oldest_position <= max(0, length - rewind.window)


def reusable(held: Sequence[int], wanted: Sequence[int], oldest_position: int, rewind: Rewind, checkpoints: Sequence[int] = ()) -> int:
    """How many held tokens are a prefix that may be kept, if need be by going back to a checkpoint; at least one token is always evaluated anew,
    for its logits.
    """
    length = media_marks.whole(wanted, min(common_prefix(held, wanted), len(wanted) - 1))
    if length <= 0:
        return 0
    if rewindable(len(held), length, oldest_position, rewind):
        return length
    return max((c for c in checkpoints if c <= length), default=0)


def checkpoint_positions(prompt: int, spacing: int, before_end: int) -> list[int]:
    """Where a prompt is interrupted to keep what the memory forgets: at even distances, and shortly before its end, where the next turn of a
    conversation departs from this one.
    """
    last = prompt - before_end
    if last < spacing // 2:
        return []
    return [*range(spacing, last - spacing // 4 + 1, spacing), last]


def choose_slot(idle: Sequence[IdleSlot], wanted: Sequence[int], rewind: Rewind) -> tuple[IdleSlot, int] | None:
    """The idle slot that keeps most of the prompt when that is more than a tenth of it, else the least recently used."""
    if not idle:
        return None
    kept = [(s.keeps(wanted, rewind), s) for s in idle]
    length, best = max(kept, key=lambda pair: (pair[0], -pair[1].last_used))
    if length * 10 > len(wanted):
        return best, length
    # Prefer an empty slot: nobody loses a conversation for it.
    oldest = min(idle, key=lambda s: (len(s.tokens) > 0, s.last_used))
    return oldest, oldest.keeps(wanted, rewind)


@dataclass(frozen=True)
class Source:
    """A sequence whose beginning may be shared: its cells are copied by reference."""

    id: int
    length: int


def choose_source(others: Sequence[IdleSlot], wanted: Sequence[int], rewind: Rewind, kept: int) -> Source | None:
    """The sequence that spares most of the prompt, when that is clearly more than the chosen slot keeps by itself."""
    if rewind.recurrent or not others:
        return None
    length, best = max(((s.keeps(wanted, rewind, shared=True), s) for s in others), key=lambda pair: pair[0])
    return Source(best.id, length) if length >= kept + 16 else None


def fits(cells: int, active: Sequence[int], wanted: int, headroom: int) -> bool:
    """Whether a request of `wanted` tokens may start beside the active ones: a lone request always may."""
    return not active or sum(active) + wanted + headroom <= cells


REST = 5.0
"""Seconds for which an idle sequence keeps its cells beside others: programs ask again within them, people take longer."""


def outstayed(held: int, rested: float, *, saved: bool) -> bool:
    """Whether an idle sequence gives its cells up when another request begins: whoever generates attends past them at every token. Only where
    bringing it back costs little, because it is saved or so short that it is not worth saving.
    """
    return held > 0 and rested >= REST and (saved or held < MINIMUM)
