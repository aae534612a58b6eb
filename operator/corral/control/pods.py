"""One server pod as the control loop knows it: what the world says, what its supervisor says, and what was ordered and is not seen yet.

`replica_of` lays the three over each other for the decision. It must never forget a commitment: of two words the larger counts, and an order counts
from the moment it is given until the world's answer is in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from corral.control.observation import SupervisorStatus, seconds_of
from corral.domain import reasons
from corral.domain.model import HOST_ID, Blocked, DeviceKey, Replica, ReplicaState
from corral.kube.ports import COMMIT, LOADED_FOR, TURN, PodRecord


@dataclass(frozen=True, slots=True)
class Order:
    """An action under way."""

    kind: str  # Create, Load, Evict, Delete
    reason: str
    since: float
    commitment: Mapping[DeviceKey, int] = field(default_factory=dict)
    loaded_for: float | None = None
    evicting_for: str = ""


@dataclass(frozen=True, slots=True)
class Commitment:
    """The commit annotation, read."""

    epoch: int
    devices: Mapping[str, int]
    split: tuple[float, ...]
    at: float


@dataclass(slots=True)
class Pod:
    record: PodRecord
    seen: bool = True  # False: created by us and not in any list or event yet
    status: SupervisorStatus | None = None
    reachable: bool = False
    order: Order | None = None
    since: float = 0.0  # of its present state; 0: it was in it before we came
    known: bool = False  # its supervisor has spoken to us
    state: ReplicaState = ReplicaState.PENDING
    loaded_at: float | None = None
    delete_ordered: float | None = None  # it is believed to be going until then
    turn_started: float | None = None  # ordered, and not yet in its annotations
    orphaned: bool = False  # its ModelDeployment is gone or another one
    kept: tuple[float, int] | None = None  # it keeps its memory request: until when, and what it is lowered to then
    planned: float | None = None  # when its creation was ordered, by our clock; None when it ran before we came
    scheduling: float = 0.0  # how long it then took until it ran

    @property
    def key(self) -> str:
        return f"{self.record.namespace}/{self.record.name}"

    @property
    def resident(self) -> bool:
        return self.status is not None and self.status.resident

    @property
    def host(self) -> bool:
        return HOST_ID in self.record.devices

    @property
    def commitment(self) -> Commitment | None:
        return commitment_of(self.record)

    def note_running(self, now: float) -> None:
        if self.planned is not None and self.record.running and not self.scheduling:
            self.scheduling = max(0.0, now - self.planned)

    @property
    def gone(self) -> bool:
        return self.record.deleting or self.delete_ordered is not None


def commitment_of(record: PodRecord) -> Commitment | None:
    """None when there is none. One that cannot be read counts nothing and is not cleared by anybody but an eviction."""
    text = record.annotations.get(COMMIT)
    if not text:
        return None
    try:
        found = json.loads(text)
        devices = {str(device): int(count) for device, count in found["devices"].items()}
        split = tuple(float(share) for share in found.get("split") or ())
        return Commitment(int(found.get("epoch", 0)), devices, split, seconds_of(found.get("at")))
    except (ValueError, TypeError, KeyError, AttributeError):
        return Commitment(0, {}, (), 0.0)


def _since(record: PodRecord, annotation: str, field_name: str) -> float | None:
    text = record.annotations.get(annotation)
    if not text:
        return None
    try:
        return seconds_of(json.loads(text).get(field_name)) or None
    except (ValueError, AttributeError):
        return None


def loaded_for(record: PodRecord) -> float | None:
    return _since(record, LOADED_FOR, "since")


def committed_bytes(pod: Pod, required: int) -> dict[DeviceKey, int]:
    """Bytes per device that count as given to this pod. `required`: what its model needs, for an engine that runs without a commitment."""
    node = pod.record.node
    told: dict[DeviceKey, int] = {}
    commitment = pod.commitment
    if commitment is not None:
        told = {DeviceKey(node, device): count for device, count in commitment.devices.items()}
    if pod.order is not None:
        for key, count in pod.order.commitment.items():
            told[key] = max(told.get(key, 0), count)
    for key, count in _said_by_supervisor(pod, commitment, required).items():
        told[key] = max(told.get(key, 0), count)
    return told


def _said_by_supervisor(pod: Pod, commitment: Commitment | None, required: int) -> dict[DeviceKey, int]:
    status, node = pod.status, pod.record.node
    if status is None or not status.resident:
        return {}
    devices = tuple(device for device in status.devices or pod.record.devices if device in pod.record.devices)
    if not devices:
        return {}
    use = status.memory
    total = use.total if HOST_ID in devices else use.weights + use.kv + use.compute
    if commitment is None:
        total = max(total, required)
    split = commitment.split if commitment is not None and len(commitment.split) == len(devices) else (1.0,) * len(devices)
    whole = sum(split) or 1.0
    return {DeviceKey(node, device): int(total * share / whole) for device, share in zip(devices, split, strict=True)}


def held_bytes(pod: Pod) -> dict[DeviceKey, int]:
    """Host memory that it has whatever it committed: what the kubelet has allocated to it (what it will, before it said so), less what it only
    keeps for a while, and what it was seen to keep asleep."""
    if not pod.host:
        return {}
    residue = pod.status.memory.residue if pod.status is not None else 0
    allocated = pod.record.memory_request or pod.record.memory_wanted
    if pod.kept is not None:
        allocated = min(allocated, pod.kept[1])
    return {DeviceKey(pod.record.node, HOST_ID): max(allocated, residue)}


def error_of(pod: Pod) -> Blocked | None:
    if pod.record.failure:
        return Blocked(pod.record.failure, pod.record.message or "the pod cannot start as it is")
    if pod.status is not None and pod.status.error is not None:
        return Blocked(pod.status.error.reason, pod.status.error.message)
    return None


def state_of(pod: Pod) -> ReplicaState:
    if pod.record.failure:
        return ReplicaState.FAILED
    return pod.status.state if pod.status is not None else ReplicaState.PENDING


def replica_of(pod: Pod, required: int, *, namespaced: bool = False) -> Replica:
    """`namespaced`: one of its devices is claimed for one namespace at a time; a pod that nobody has seen yet lists no claim."""
    record, status, order = pod.record, pod.status, pod.order
    served = status.served if status is not None else 0
    waiter = order.loaded_for if order is not None and order.kind == "Load" else loaded_for(record)
    return Replica(
        name=record.name,
        namespace=record.namespace,
        model=record.model,
        revision=record.revision,
        devices=tuple(DeviceKey(record.node, device) for device in record.devices),
        state=state_of(pod),
        uid=record.uid,
        created=record.created,
        committed=committed_bytes(pod, required),
        held=held_bytes(pod),
        admitting=status.admitting if status is not None else False,
        reachable=pod.reachable,
        in_flight=status.in_flight if status is not None else 0,
        queued=status.queued if status is not None else 0,
        served=served,
        last_used=status.last_used if status is not None else 0.0,
        loaded_at=pod.loaded_at,
        loaded_for=None if status is not None and status.state is ReplicaState.LOADED and served else waiter,
        turn_started=pod.turn_started if pod.turn_started is not None else _since(record, TURN, "started"),
        progress=status.progress if status is not None else 0.0,
        error=error_of(pod),
        ordered=order.kind if order is not None else "",
        evicting_for=order.evicting_for if order is not None else "",
        scheduled=record.scheduled,
        unschedulable_since=record.unschedulable_since,
        message=record.message or (reasons.DELETED if pod.orphaned else ""),
        deleting=pod.gone or pod.orphaned,
        namespace_claim=namespaced or bool(record.claims),
    )
