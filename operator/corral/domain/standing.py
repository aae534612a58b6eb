"""How a model stands: its replicas sorted by what they can do for it, and how many it should have. A reading of the snapshot, no decision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from corral.domain.explain import AT_REST, rest_of
from corral.domain.model import Demand, Device, Model, Node, Replica, ReplicaState
from corral.domain.plan import Explanation

if TYPE_CHECKING:
    from corral.domain.places import Place
    from corral.domain.snapshot import Snapshot

NOT_READY_GRACE = 60.0  # a node that is NotReady for longer has lost its replicas
VANISHED_GRACE = 600.0  # a device that is absent from its slice for longer has lost its replicas
BY_STATE = {
    ReplicaState.LOADING: "loading",
    ReplicaState.LOADED: "serving",
    ReplicaState.DRAINING: "serving",
    ReplicaState.SLEEPING: "asleep",
    ReplicaState.FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class Standing:
    serving: tuple[Replica, ...] = ()  # loaded, of the wanted revision
    loading: tuple[Replica, ...] = ()
    asleep: tuple[Replica, ...] = ()  # ready to be loaded
    coming: tuple[Replica, ...] = ()  # pods that start or download
    failed: tuple[Replica, ...] = ()
    leaving: tuple[Replica, ...] = ()  # being put to sleep or deleted
    lost: tuple[Replica, ...] = ()  # their node or device is gone, or they must move
    old: tuple[Replica, ...] = ()  # of another revision, loaded or loading
    outdated: tuple[Replica, ...] = ()  # of another revision, and holding nothing up
    have: int = 0  # replicas that serve, or will without a further decision
    floor: int = 0  # as many are kept loaded, whether somebody asks or not
    target: int = 0  # as many should be loaded now, for whatever reason
    rest: Explanation = AT_REST  # what the replicas alone tell
    places: dict[str, Place | None] = field(default_factory=dict, compare=False)  # of those asleep, kept by `places`
    since: float = float("-inf")  # it reads like this from then on,
    until: float = float("inf")  # and before then, as long as nothing changes

    def holds(self, now: float) -> bool:
        return self.since <= now < self.until


def floor_of(model: Model) -> int:
    return max(model.min_replicas, 1 if model.pinned else 0)


def lost_since(replica: Replica, snapshot: Snapshot) -> float | None:
    """Since when this replica is where nothing can be served from; minus infinity when for good. None: it is where it should be."""
    since: float | None = None
    for key in replica.devices:
        node: Node | None = snapshot.nodes.get(key.node)
        device: Device | None = snapshot.devices.get(key)
        if node is None or (device is not None and device.no_execute):
            return float("-inf")
        if not node.ready and node.not_ready_since is not None:
            since = min(since if since is not None else float("inf"), node.not_ready_since + NOT_READY_GRACE)
        if device is not None and device.vanished_since is not None:
            since = min(since if since is not None else float("inf"), device.vanished_since + VANISHED_GRACE)
    return since


def stand(snapshot: Snapshot, model: Model, now: float) -> Standing:
    """Depends on the model, its demand, its replicas, their nodes and devices, and on time only where `since` and `until` say so.

    The index is told when any of these changes, and forgets the reading.
    """
    found: dict[str, list[Replica]] = {}
    replicas = snapshot.replicas_of(model.key)
    since, until = float("-inf"), float("inf")
    for replica in replicas:
        lost = lost_since(replica, snapshot)
        if lost is not None:
            since, until = (max(since, lost), until) if lost <= now else (since, min(until, lost))
        found.setdefault(_place_of(replica, model, lost=lost is not None and lost <= now), []).append(replica)
    serving, loading, old = (tuple(found.get(name, ())) for name in ("serving", "loading", "old"))
    target = _target(model, snapshot.demand.get(model.key), [*serving, *(each for each in old if each.resident)])
    return Standing(
        serving=serving,
        loading=loading,
        asleep=tuple(found.get("asleep", ())),
        coming=tuple(found.get("coming", ())),
        failed=tuple(found.get("failed", ())),
        leaving=tuple(found.get("leaving", ())),
        lost=tuple(found.get("lost", ())),
        old=old,
        outdated=tuple(found.get("outdated", ())),
        have=len(serving) + len(loading),
        floor=floor_of(model),
        target=target,
        rest=rest_of(model, replicas),
        since=since,
        until=until,
    )


def _place_of(replica: Replica, model: Model, *, lost: bool) -> str:
    if replica.deleting or replica.ordered in ("Evict", "Delete"):
        return "leaving"
    if lost:
        return "lost"
    if model.revision and replica.revision != model.revision:
        return "old" if replica.resident or replica.ordered == "Load" else "outdated"
    if replica.ordered == "Load":
        return "loading"
    return BY_STATE.get(replica.state, "coming")


def _target(model: Model, demand: Demand | None, serving: Sequence[Replica]) -> int:
    waiting = demand.waiting if demand is not None else 0
    floor = floor_of(model)
    busy = sum(each.in_flight + each.queued for each in serving) + (waiting if serving else 0)
    wants = max(floor, math.ceil(busy / max(1, model.target_in_flight)))
    if demand is not None and (waiting or demand.wish == "Load"):
        wants = max(wants, 1)
    return min(wants, max(model.max_replicas, floor))
