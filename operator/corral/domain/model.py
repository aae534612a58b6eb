"""The nouns of the decision: frozen values, bytes as int, times as float seconds since the epoch (UTC), durations as float seconds.

This module owns their shape and must never decide anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

EMPTY: Mapping[str, str] = MappingProxyType({})


class DeviceKey(NamedTuple):
    """One memory arena: (node name, device id). The id of a node's host memory is `host`."""

    node: str
    id: str

    def __str__(self) -> str:
        return self.node if self.id == HOST_ID else f"{self.node}/{self.id}"


HOST_ID = "host"
NO_BYTES: Mapping[DeviceKey, int] = MappingProxyType({})


class DeviceKind(StrEnum):
    GPU = "Gpu"
    HOST = "Host"  # a sleeping replica keeps its residue here, and the kubelet grants what a pod may use


class ReplicaState(StrEnum):
    PENDING = "Pending"  # created, or its supervisor has not answered yet
    DOWNLOADING = "Downloading"
    SLEEPING = "Sleeping"
    LOADING = "Loading"
    LOADED = "Loaded"
    DRAINING = "Draining"
    FAILED = "Failed"


class Policy(StrEnum):
    LRU = "LRU"
    COST_AWARE = "CostAware"


@dataclass(frozen=True, slots=True)
class Pool:
    """A set of nodes and the policy on them (ModelPool), defaults resolved."""

    name: str
    max_models_per_device: int = 16
    policy: str = Policy.LRU
    min_residency: float = 30.0
    drain_timeout: float = 30.0
    max_wait: float = 30.0
    turn: float = 30.0
    hold_timeout: float = 180.0
    allowed_namespaces: tuple[str, ...] = ("*",)
    max_priority: int = 1000
    pinned_allowed: bool = True


@dataclass(frozen=True, slots=True)
class Taint:
    key: str
    value: str = ""
    effect: str = "NoSchedule"


@dataclass(frozen=True, slots=True)
class Toleration:
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    pool: str
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    taints: tuple[Taint, ...] = ()
    ready: bool = True
    schedulable: bool = True
    not_ready_since: float | None = None
    pod_slots: int = 110  # how many pods it may still take, ours not counted
    cached: frozenset[str] = frozenset()  # keys of the files that it has
    overlapping: tuple[str, ...] = ()  # pools that would have it too, and do not


@dataclass(frozen=True, slots=True)
class Device:
    key: DeviceKey
    pool: str
    kind: DeviceKind
    capacity: int  # bytes; foreign use already taken off
    margin: int  # bytes left free
    product: str = ""
    closed: str = ""  # a reason: no new placement; residents stay
    no_execute: bool = False  # a NoExecute taint: residents move
    vanished_since: float | None = None
    largest: int = 0  # the largest capacity that it was seen with; `State` keeps it up
    namespaced: bool = False  # it is claimed for one namespace at a time, by pods that sleep too

    @property
    def usable(self) -> int:
        return self.capacity - self.margin


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one replica needs, in bytes. `layers` is run-length coded (count, weight bytes, KV bytes), first layer first.

    `overhead` is what the process needs beside llama.cpp's buffers: counted on host memory. `device_overhead` is what a context costs on each
    GPU. `measured` is the largest total that a replica reported after a load, 0 when none has.
    """

    weights: int
    kv: int
    compute: int
    overhead: int = 0
    device_overhead: int = 0
    layers: tuple[tuple[int, int, int], ...] = ()
    input: int = 0
    output: int = 0
    measured: int = 0
    file_bytes: int = 0
    digest: str = ""  # the key of its file in a cache; empty: it is used where it is

    @property
    def estimated(self) -> int:
        return self.weights + self.kv + self.compute + self.overhead

    @property
    def on_host(self) -> int:
        """Main memory of a replica whose layers are on GPUs."""
        return self.input + self.compute + self.overhead


@dataclass(frozen=True, slots=True)
class Backoff:
    """A failed load of a model on a node: not again there before `until`."""

    node: str  # empty: everywhere (a failure of the model, not of the node)
    failures: int
    until: float
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """A model that cannot be served before somebody changes something."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Model:
    """One ModelDeployment as the decision sees it; pool defaults resolved."""

    key: str  # namespace/name
    namespace: str
    uid: str = ""
    generation: int = 1
    revision: str = ""  # of the pod that its spec asks for
    pool: str = "default"
    priority: int = 0
    pinned: bool = False
    min_replicas: int = 0
    max_replicas: int = 1
    target_in_flight: int = 8
    sleep_after: float = 300.0
    stop_after: float = 1800.0
    max_devices: int = 1
    node_selector: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    tolerations: tuple[Toleration, ...] = ()
    footprint: Footprint | None = None
    residue: int = 0  # bytes that a sleeping replica keeps on host memory
    created: float = 0.0
    deleting: bool = False
    blocked: Blocked | None = None
    backoff: tuple[Backoff, ...] = ()
    queue_since: float | None = None  # its durable place in the queue: the arrival of the oldest waiter it still owes
    queue_until: float | None = None  # how long that place is kept after the last waiter left
    estimate_after: float | None = None  # a failed estimate is not tried again before this
    load_seconds: float = 0.0  # the last measured load, 0 unknown
    estimating: bool = False  # its estimate is under way


@dataclass(frozen=True, slots=True)
class Demand:
    """What the gateways report of one model, summed."""

    waiting: int = 0
    oldest: float | None = None  # arrival of the oldest waiter
    in_flight: int = 0
    last_used: float = 0.0
    wish: str = ""  # "", "Load" or "Unload"
    wish_id: str = ""
    returning_until: float | None = None  # clients whose hold timed out were told to be back by then: their place is kept


@dataclass(frozen=True, slots=True)
class Replica:
    """One server pod or process. What is observed, with what was ordered and is not seen yet already laid over it."""

    name: str  # unique in its namespace; the key of a snapshot is `id`
    namespace: str
    model: str
    revision: str
    devices: tuple[DeviceKey, ...]
    state: ReplicaState
    uid: str = ""
    created: float = 0.0
    committed: Mapping[DeviceKey, int] = field(default_factory=lambda: NO_BYTES)  # the larger of the pod's annotation and its supervisor's word
    held: Mapping[DeviceKey, int] = field(
        default_factory=lambda: NO_BYTES
    )  # host memory that it keeps although it committed nothing: its request, its residue
    admitting: bool = False
    reachable: bool = True  # its supervisor answers
    in_flight: int = 0
    queued: int = 0
    served: int = 0  # requests admitted since the last load
    last_used: float = 0.0
    loaded_at: float | None = None
    loaded_for: float | None = None  # arrival of the oldest waiter that it was loaded for, until it has served
    turn_started: float | None = None
    progress: float = 0.0
    error: Blocked | None = None  # the last failed download or load
    ordered: str = ""  # the action that is under way for it ("Load", "Evict", "Delete", "Create"), empty: none
    evicting_for: str = ""  # the model that an ordered eviction makes room for
    scheduled: bool = True
    unschedulable_since: float | None = None
    message: str = ""  # the scheduler's, or the kubelet's
    deleting: bool = False
    namespace_claim: bool = False  # its pod holds its devices' claim for its namespace alone

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def node(self) -> str:
        return self.devices[0].node if self.devices else ""

    @property
    def resident(self) -> bool:
        return self.state in (ReplicaState.LOADING, ReplicaState.LOADED, ReplicaState.DRAINING)

    def uses(self, device: DeviceKey) -> int:
        """Bytes of `device` that this replica takes, awake or asleep."""
        return max(self.committed.get(device, 0), self.held.get(device, 0))
