"""What the control loop needs from the world, as Protocols, and the trimmed records that the world hands in.

Two worlds implement them: Kubernetes (`corral.kube`) and one machine (`corral.local`). This module imports no client and must never hold state.
Bytes are ints, times float seconds since the epoch (UTC), durations float seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from corral.domain.model import Device, DeviceKey, DeviceKind, Node

# Annotations on a server pod, see docs/contracts.md.
COMMIT = "corral.dev/commit"
LOADED_FOR = "corral.dev/loaded-for"
TURN = "corral.dev/turn"
DEVICES = "corral.dev/devices"  # ["<device id>", ...]: bound at creation, never changed
# Labels.
MODEL_LABEL = "corral.dev/model"
REVISION_LABEL = "corral.dev/revision"
POOL_LABEL = "corral.dev/pool"


class Conflict(Exception):  # noqa: N818 - the field's word
    """The object changed since it was read: read again and decide again."""


class Gone(Exception):  # noqa: N818
    """The object does not exist (any more)."""


class Refused(Exception):  # noqa: N818
    """The API or the kubelet will not do it; the message is theirs."""


class NotLeader(Exception):  # noqa: N818
    """The lease is lost or about to expire: nothing may be written."""


class Unavailable(Exception):  # noqa: N818
    """No answer in time, or one that says to try again. Whether a write was done is not known: look, and decide again."""


@dataclass(frozen=True, slots=True)
class PodRecord:
    """One server pod or local process group, trimmed."""

    namespace: str
    name: str
    uid: str
    model: str  # namespace/name of its ModelDeployment
    revision: str
    pool: str
    node: str  # the planned one, from its affinity; where it was scheduled once it was
    devices: tuple[str, ...]  # ids, from its annotation
    resource_version: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    host: str = ""  # pod IP; empty before it has one
    inference_port: int = 8080
    control_port: int = 8081
    created: float = 0.0
    deleting: bool = False
    scheduled: bool = False
    unschedulable_since: float | None = None
    running: bool = False  # its container runs
    message: str = ""  # why not, in the scheduler's or the kubelet's words
    failure: str = ""  # one of corral.domain.reasons when the pod cannot start as it is (SecretNotFound, ...), else empty
    memory_request: int = 0  # allocated by the kubelet (allocatedResources), host memory only
    memory_wanted: int = 0  # in the spec
    memory_limit: int = 0  # in the spec; 0: none
    resize_pending: str = ""  # "", Deferred or Infeasible, with the kubelet's message
    restarts: int = 0
    owner_uid: str = ""
    claims: tuple[str, ...] = ()  # names of the ResourceClaims that it lists, in the order of its devices
    gpu_uuids: tuple[str, ...] = ()  # what the scheduler allocated, when that is known


@dataclass(frozen=True, slots=True)
class ReplicaRequest:
    """A pod to create. The world renders it (manifest or process), with the public keys and its own settings."""

    model_object: Mapping[str, Any]  # the ModelDeployment as read
    model: str
    namespace: str
    name: str
    revision: str
    pool: str
    devices: tuple[DeviceKey, ...]
    device_kind: DeviceKind
    server_spec: Mapping[str, Any]  # CORRAL_SPEC
    memory_request: int  # asleep
    memory_limit: int  # 0: none (local mode, or unknown)
    owner_uid: str
    cache: Mapping[str, Any]  # the pool's spec.cache


@dataclass(frozen=True, slots=True)
class EstimateRequest:
    model_object: Mapping[str, Any]
    model: str
    namespace: str
    name: str
    server_spec: Mapping[str, Any]
    owner_uid: str
    pool: str
    cache: Mapping[str, Any]
    node_selector: Mapping[str, str] = field(default_factory=dict)


class Workloads(Protocol):
    """Server pods. Every call may raise NotLeader, Gone, Conflict or Refused, and ends well before the lease can expire."""

    async def create(self, request: ReplicaRequest) -> PodRecord:
        """Create the pod; an existing one of the same name and owner is success."""

    async def delete(self, pod: PodRecord, grace: float) -> None:
        """Delete by uid; gone already is success."""

    async def annotate(self, pod: PodRecord, annotations: Mapping[str, str | None], *, precondition: bool) -> PodRecord:
        """Set (or remove, None) annotations; with the record's resourceVersion as precondition when asked."""

    async def resize(self, pod: PodRecord, memory_request: int, memory_limit: int = 0) -> PodRecord:
        """Ask for another memory request (and limit, 0: as it is), in place. The grant shows in later records' `memory_request`."""

    async def estimate(self, request: EstimateRequest) -> Mapping[str, Any]:
        """Run the estimate where an untrusted header may be parsed; its JSON (docs/contracts.md). Cleans up after itself."""


class Statuses(Protocol):
    """Status and events. Writes are unconditional server-side applies; the caller writes only what differs."""

    async def write_model(self, namespace: str, name: str, uid: str, status: Mapping[str, Any]) -> None: ...

    async def write_pool(self, name: str, status: Mapping[str, Any]) -> None: ...

    async def event(self, regarding: Mapping[str, Any], *, warning: bool, reason: str, message: str) -> None:
        """`regarding`: the object (apiVersion, kind, metadata) that the event is about."""


class Leadership(Protocol):
    @property
    def epoch(self) -> int:
        """The Lease's transition count; grows with every change of leader."""

    def may_write(self) -> bool:
        """Whether a write that takes up to the request time limit would still end before the lease can expire."""

    def outdone(self, epoch: int) -> None:
        """A supervisor has heard a higher epoch than ours. Whoever keeps the lease sees to it that the next term is above."""


class Sink(Protocol):
    """Where the world hands in what it sees; the store implements it. Each call is O(1), never blocks, and wakes the loop when something changed."""

    def put_model(self, obj: Mapping[str, Any]) -> None: ...

    def remove_model(self, namespace: str, name: str) -> None: ...

    def put_pool(self, obj: Mapping[str, Any]) -> None: ...

    def remove_pool(self, name: str) -> None: ...

    def put_report(self, obj: Mapping[str, Any]) -> None: ...

    def remove_report(self, namespace: str, name: str) -> None: ...

    def put_pod(self, pod: PodRecord) -> None: ...

    def remove_pod(self, namespace: str, name: str, uid: str) -> None: ...

    def put_node(self, node: Node, devices: Sequence[Device]) -> None:
        """A node with all its devices as they are now; devices that are left out have vanished."""

    def remove_node(self, name: str) -> None: ...

    def synced(self, source: str) -> None:
        """The first list of `source` ("models", "pools", "reports", "pods", "nodes") is complete."""
