"""Which of several open replicas gets a request: the one that keeps what it refers to, else the one that knows the
conversation, unless it has more than its share. Pure.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

BOUND = 1.25
"""How far above the mean a replica's load may be before a conversation goes elsewhere."""


class Candidate(Protocol):
    @property
    def uid(self) -> str: ...

    @property
    def in_flight(self) -> int: ...


C = TypeVar("C", bound=Candidate)


def choose(candidates: Sequence[C], affinity: int = 0, home: str = "") -> C:
    """The replica for a request. Its home, however loaded: no other can answer it. Else without affinity the least loaded; with it the first below
    the bound in the conversation's own order."""
    if len(candidates) == 1:
        return candidates[0]
    if home:
        for candidate in candidates:
            if candidate.uid == home:
                return candidate
    if affinity:
        total = sum(candidate.in_flight for candidate in candidates) + 1
        bound = math.ceil(BOUND * total / len(candidates))
        for candidate in sorted(candidates, key=lambda one: _weight(affinity, one.uid), reverse=True):
            if candidate.in_flight < bound:
                return candidate
    return min(candidates, key=lambda one: (one.in_flight, one.uid))


def _weight(affinity: int, uid: str) -> bytes:
    """Rendezvous hashing: when a replica comes or goes, only the conversations of that replica move."""
    return hashlib.blake2b(uid.encode(), digest_size=8, salt=affinity.to_bytes(8, "little")).digest()
