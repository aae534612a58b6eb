"""Greedy-dual by the clock: evict what costs the least request-seconds of waiting for each byte that it gives back.

A file-caching policy of the greedy-dual family keeps what is worth most by (how often it is used) x (what a miss costs) / (size), and lets that worth
age. Here the worth is computed from what a replica shows, so that nothing needs to be remembered between decisions: how often it is used is guessed
between its requests per second since the load and the time since the last one; a miss costs the load itself, and what arrives meanwhile waits too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from corral.domain.model import Model, Replica
from corral.domain.policy_lru import last_use

START_SECONDS = 1.0  # a load costs this even of a tiny file
LOAD_RATE = 1 << 30  # bytes per second, until a load of this model was measured
# Chosen on a coarse model of the traces in docs/policies.md; what is measured there uses other seeds.
FREQUENCY = 0.7  # how much the requests since the load count, against the time since the last one
EARLY = 200.0  # seconds: a replica that was loaded just now does not count as busy for its first request
RECENT = 10.0  # seconds: nothing is more recent than this
WAITS = 60.0  # seconds that the newcomer waits for its file make a place twice as dear


def load_seconds(replica: Replica, model: Model | None) -> float:
    if model is not None and model.load_seconds > 0:
        return model.load_seconds
    return START_SECONDS + size(replica) / LOAD_RATE


def size(replica: Replica) -> int:
    return sum(replica.committed.values())


def rate(replica: Replica, now: float) -> float:
    """Requests per second that are to be expected."""
    often = (replica.served + 1) / (max(0.0, now - (replica.loaded_at or 0.0)) + EARLY)
    lately = 1 / max(now - last_use(replica), RECENT)
    return math.pow(often, FREQUENCY) * math.pow(lately, 1 - FREQUENCY)


class CostAware:
    def worth(self, replica: Replica, model: Model | None, now: float) -> float:
        """Request-seconds of waiting per second, for each byte: who asks first waits for the load, who comes meanwhile for half of it."""
        expected, load = rate(replica, now), load_seconds(replica, model)
        return expected * (load + expected * load * load / 2) / max(size(replica), 1)

    def price(self, worths: Sequence[float], waits: float, now: float) -> float:  # noqa: ARG002
        return max(worths, default=0.0) * (1.0 + waits / WAITS)

    def least_price(self, last_use: float) -> float:  # noqa: ARG002
        """Recency alone tells nothing: the search goes on to its end."""
        return float("-inf")
