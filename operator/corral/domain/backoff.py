"""How long a model is not tried again where it failed. The owner of the status keeps the entries; this module owns their arithmetic."""

from __future__ import annotations

from collections.abc import Iterable

from corral.domain import reasons
from corral.domain.model import Backoff, Model

FIRST = 10.0
LONGEST = 600.0
FORGOTTEN_AFTER = 3600.0  # a failure this long ago says nothing any more
# What the next try cannot change: somebody has to change the model or its source first.
LASTING = frozenset(
    {
        reasons.SOURCE_NOT_FOUND,
        reasons.SOURCE_UNAUTHORIZED,
        reasons.SOURCE_REFUSED,
        reasons.UNSUPPORTED_SOURCE,
        reasons.NOT_A_GGUF,
        reasons.UNSUPPORTED_MODEL,
        reasons.CHECKSUM_MISMATCH,
        reasons.INVALID_ENGINE_SETTINGS,
        reasons.SECRET_NOT_FOUND,
    }
)


def delay(failures: int, first: float = FIRST, longest: float = LONGEST) -> float:
    """10 s, 20 s, 40 s ... at most 10 minutes."""
    return min(longest, first * 2.0 ** min(max(0, failures - 1), 20))


def one_more(old: Backoff | None, node: str, reason: str, message: str, now: float, first: float = FIRST, longest: float = LONGEST) -> Backoff:
    """The entry after one more failure there.

    The first time that a load runs out of memory it is tried again at once: its footprint was raised, so the next try makes more room.
    """
    failures = 1 if old is None or now - old.until > FORGOTTEN_AFTER else old.failures + 1
    pause = 0.0 if reason == reasons.OUT_OF_MEMORY and failures == 1 else delay(failures, first, longest)
    return Backoff(node, failures, now + pause, reason, message)


def after_failure(model: Model, node: str, reason: str, message: str, now: float) -> tuple[Backoff, ...]:
    """The model's entries after one more failure on this node; `node` empty: a failure that every node would see."""
    old = next((each for each in model.backoff if each.node == node), None)
    return (*(each for each in model.backoff if each.node != node), one_more(old, node, reason, message, now))


def after_success(entries: Iterable[Backoff], node: str) -> tuple[Backoff, ...]:
    """A load that worked clears its node, and what was said of all nodes."""
    return tuple(each for each in entries if each.node not in ("", node))
