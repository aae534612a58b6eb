"""What an eviction policy is, and which there are. A policy ranks idle replicas; whether one may be a victim at all is not its business.

Adding one: a file with a `Policy` beside `policy_lru.py`, and one line in `POLICIES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from corral.domain.model import Model, Policy, Replica
from corral.domain.policy_cost_aware import CostAware
from corral.domain.policy_lru import LeastRecentlyUsed


class EvictionPolicy(Protocol):
    def worth(self, replica: Replica, model: Model | None, now: float) -> float:
        """How much it is worth to keep this replica: the least is evicted first."""

    def price(self, worths: Sequence[float], waits: float, now: float) -> float:
        """What it costs to lose replicas of these worths together and let the newcomer wait `waits` seconds for its file: the least is taken."""

    def least_price(self, last_use: float) -> float:
        """No set of replicas that were all used at `last_use` or later is cheaper: where a search by last use may stop."""


POLICIES: Mapping[str, EvictionPolicy] = {Policy.LRU: LeastRecentlyUsed(), Policy.COST_AWARE: CostAware()}


def policy_of(name: str) -> EvictionPolicy:
    """An unknown name is the default: the API refuses it long before."""
    return POLICIES.get(name, POLICIES[Policy.LRU])
