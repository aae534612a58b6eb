"""Everything that was told, as it was told, and what of it has not been taken into the decision's State yet. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corral.api import ModelPool
from corral.control.demand import DemandBook
from corral.control.pods import Pod
from corral.control.translate import Deployment, Unreadable


@dataclass(slots=True)
class Dirty:
    """What changed since the last refresh, by key."""

    models: set[str] = field(default_factory=set)
    pods: set[str] = field(default_factory=set)
    demand: set[str] = field(default_factory=set)
    status: set[str] = field(default_factory=set)  # models whose status is to be rendered again
    pools: set[str] = field(default_factory=set)  # pools whose status is


@dataclass(slots=True)
class Records:
    demand: DemandBook
    deployments: dict[str, Deployment | Unreadable] = field(default_factory=dict)
    pools: dict[str, ModelPool] = field(default_factory=dict)
    pool_objects: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # as read, with their status
    pods: dict[str, Pod] = field(default_factory=dict)
    going: dict[str, float] = field(default_factory=dict)  # pods whose deletion was ordered and not seen: until when it is believed
    overlaps: dict[str, dict[str, str]] = field(default_factory=dict)  # pool -> nodes that it selects too -> the pool that has them
    dirty: Dirty = field(default_factory=Dirty)
