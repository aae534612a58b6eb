"""How a model stands: its replicas sorted by what they can do for it. A reading of the snapshot, no decision."""

from __future__ import annotations

from dataclasses import dataclass, field

from corral.domain.model import Device, Model, Node, Replica, ReplicaState
from corral.domain.snapshot import Snapshot

NOT_READY_GRACE = 60.0  # a node that is NotReady for longer has lost its replicas
VANISHED_GRACE = 600.0  # a device that is absent from its slice for longer has lost its replicas


@dataclass(slots=True)
class Standing:
    serving: list[Replica] = field(default_factory=list)  # loaded, of the wanted revision
    loading: list[Replica] = field(default_factory=list)
    asleep: list[Replica] = field(default_factory=list)  # ready to be loaded
    coming: list[Replica] = field(default_factory=list)  # pods that start or download
    failed: list[Replica] = field(default_factory=list)
    leaving: list[Replica] = field(default_factory=list)  # being put to sleep or deleted
    lost: list[Replica] = field(default_factory=list)  # their node or device is gone, or they must move
    old: list[Replica] = field(default_factory=list)  # of another revision, loaded or loading
    outdated: list[Replica] = field(default_factory=list)  # of another revision, and holding nothing up

    @property
    def have(self) -> int:
        """Replicas that serve, or will without a further decision."""
        return len(self.serving) + len(self.loading)


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
    standing = Standing()
    for replica in snapshot.replicas_of(model.key):
        lost = lost_since(replica, snapshot)
        if replica.deleting or replica.ordered in ("Evict", "Delete"):
            standing.leaving.append(replica)
        elif lost is not None and lost <= now:
            standing.lost.append(replica)
        elif model.revision and replica.revision != model.revision:
            (standing.old if replica.resident or replica.ordered == "Load" else standing.outdated).append(replica)
        elif replica.state is ReplicaState.LOADING or replica.ordered == "Load":
            standing.loading.append(replica)
        elif replica.state in (ReplicaState.LOADED, ReplicaState.DRAINING):
            standing.serving.append(replica)
        elif replica.state is ReplicaState.SLEEPING:
            standing.asleep.append(replica)
        elif replica.state is ReplicaState.FAILED:
            standing.failed.append(replica)
        else:
            standing.coming.append(replica)
    return standing
