"""What a simulation is told: the pool, nodes, models, requests and faults. Values only; the same scenario gives the same history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from corral.domain.model import DeviceKind, Footprint, Pool

START = 1_700_000_000.0
"""What virtual zero is in seconds since 1970: the decision works with absolute times."""

MI = 1 << 20
GI = 1 << 30


@dataclass(frozen=True, slots=True)
class NodeSpec:
    name: str
    devices: Mapping[str, int]  # bytes by id; `host` is host memory
    margin: int = GI
    labels: Mapping[str, str] = field(default_factory=dict)
    shared_cache: bool = False
    pod_slots: int = 110

    @property
    def kind(self) -> DeviceKind:
        return DeviceKind.HOST if "host" in self.devices else DeviceKind.GPU


@dataclass(frozen=True, slots=True)
class ModelSpec:
    name: str
    size: int  # bytes that its engine really takes
    estimated: int = 0  # bytes that the estimate says; 0: the truth
    layers: int = 0  # more than 0: it can be split
    namespace: str = "m"
    priority: int = 0
    pinned: bool = False
    min_replicas: int = 0
    max_replicas: int = 1
    target_in_flight: int = 8
    max_devices: int = 1
    sleep_after: float = 300.0
    stop_after: float = 1800.0
    load: float = 2.0  # seconds
    download: float = 1.0  # seconds
    residue: int = 64 * MI  # on host memory, asleep
    load_failures: float = 0.0  # share of loads that fail
    created: float = 0.0
    namespace_claims: bool = False

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    def footprint(self, *, measured: int = 0) -> Footprint:
        total = self.estimated or self.size
        layers = ((self.layers, total // self.layers, 0),) if self.layers else ()
        return Footprint(weights=total, kv=0, compute=0, layers=layers, measured=measured, file_bytes=total, digest=self.key)


@dataclass(frozen=True, slots=True)
class RequestSpec:
    at: float
    model: str  # key
    service: float = 1.0  # seconds in flight
    patience: float = 600.0  # its client leaves after this many seconds
    retry: bool = False  # after a 503 or 429 it comes back when it was told to


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind`: operator-crash, operator-freeze, gateway-crash, node-partition, node-lost, pod-crash, engine-crash, supervisor-silent, respec,
    delete-model, create-model, cordon, slow-watch, wish-load, wish-unload."""

    at: float
    kind: str
    target: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Latencies:
    """Upper ends of uniform delays, in seconds."""

    watch: float = 0.2
    call: float = 0.02
    write: float = 0.05
    pod: float = 1.0  # scheduling and starting
    grant: float = 0.3
    exit: float = 0.3  # of an engine


@dataclass(frozen=True, slots=True)
class Scenario:
    seed: int
    nodes: tuple[NodeSpec, ...]
    models: tuple[ModelSpec, ...]
    requests: tuple[RequestSpec, ...] = ()
    faults: tuple[Fault, ...] = ()
    pool: Pool = field(default_factory=lambda: Pool("default"))
    until: float = 600.0
    gateways: int = 1
    latencies: Latencies = field(default_factory=Latencies)
    report_lifetime: float = 15.0
    lease: float = 8.0
