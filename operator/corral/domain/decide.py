"""`decide(snapshot, now) -> Plan`: the one decision. Pure; see the package."""

from __future__ import annotations

from corral.domain.plan import Plan
from corral.domain.snapshot import Snapshot


def decide(snapshot: Snapshot, now: float) -> Plan:  # noqa: ARG001
    """Say what to do next, in order, and why. `now`: seconds since the epoch."""
    return Plan()
