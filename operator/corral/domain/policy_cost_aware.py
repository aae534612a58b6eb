"""Greedy-dual by the clock: evict what has paid the most rent, in bytes held x seconds unused, for each second that loading it again would take.

Landlord charges every cached file rent by size until one has paid its cost. Here the rent runs with real time instead of with a counter, so that
nothing needs to be remembered between decisions: the worth is load seconds / (bytes x seconds unused).
"""

from __future__ import annotations

from collections.abc import Sequence

from corral.domain.model import Model, Replica
from corral.domain.policy_lru import last_use

START_SECONDS = 1.0  # a load costs this even of a tiny file
LOAD_RATE = 1 << 30  # bytes per second, until a load of this model was measured


def load_seconds(replica: Replica, model: Model | None) -> float:
    if model is not None and model.load_seconds > 0:
        return model.load_seconds
    return START_SECONDS + size(replica) / LOAD_RATE


def size(replica: Replica) -> int:
    return sum(replica.committed.values())


class CostAware:
    def worth(self, replica: Replica, model: Model | None, now: float) -> float:
        """Load seconds lost per second, for each byte won."""
        unused = max(now - last_use(replica), 1.0)
        return load_seconds(replica, model) / (max(size(replica), 1) * unused)

    def price(self, worths: Sequence[float], waits: float, now: float) -> float:  # noqa: ARG002
        return max(worths, default=0.0) * (1.0 + waits)

    def least_price(self, last_use: float) -> float:  # noqa: ARG002
        """Recency alone tells nothing: the search goes on to its end."""
        return float("-inf")
