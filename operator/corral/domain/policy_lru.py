"""Least recently used: the worth of a replica is the time of its last use."""

from __future__ import annotations

from collections.abc import Sequence

from corral.domain.model import Model, Replica


def last_use(replica: Replica) -> float:
    """Of a replica that nobody used since its load: the load."""
    return max(replica.last_used, replica.loaded_at or 0.0)


class LeastRecentlyUsed:
    def worth(self, replica: Replica, model: Model | None, now: float) -> float:  # noqa: ARG002
        return last_use(replica)

    def price(self, worths: Sequence[float], waits: float, now: float) -> float:  # noqa: ARG002
        """The most recent use of the set; a second that the newcomer waits for its file weighs as much as a second of recency."""
        return max(worths, default=0.0) + waits

    def least_price(self, last_use: float) -> float:
        return last_use
