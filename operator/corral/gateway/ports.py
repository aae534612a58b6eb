"""What the gateway asks of the world around it: plain values and Protocols, and nothing that does I/O.

`corral.kube` answers them from watches of the Kubernetes API, `corral.local` from local processes, the tests and the simulation from
memory. The gateway reads models and replicas, writes reports, and signs tokens; it never writes a spec and never decides a placement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

LOADED = "Loaded"
"""The one state word that the data path acts upon: this replica answers now."""


@dataclass(frozen=True, slots=True)
class Hold:
    """How long and how much may wait for one model to become resident (a ModelPool's `spec.hold`)."""

    timeout: float = 180.0
    """Seconds that one request may wait."""
    per_model: int = 100
    """Requests that may wait for one model."""
    total: int = 1000
    """Requests that may wait for all models together."""
    heartbeat: float = 15.0
    """Seconds of silence before a streaming client gets the first comment, and between comments."""


@dataclass(frozen=True, slots=True)
class Condition:
    type: str
    status: str
    """`True`, `False` or `Unknown`, as Kubernetes writes them."""
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class ModelView:
    """One ModelDeployment as its status tells of it."""

    namespace: str
    name: str
    served_names: tuple[str, ...] = ()
    """`status.servedNames`; `namespace/name` always routes, whether it is in here or not."""
    adapters: tuple[str, ...] = ()
    """What may follow the colon: adapters, then presets."""
    aliases: tuple[str, ...] = ()
    state: str = "Idle"
    """The reason of the `Loaded` condition: Loaded, Idle, Sleeping, Loading, WaitingForMemory, WaitingForTurn, ..."""
    ready: bool | None = None
    """The `Ready` condition; None while it is unknown."""
    reason: str = ""
    """The reason of `Ready`, for the case that it is false."""
    message: str = ""
    stalled: bool = False
    stalled_reason: str = ""
    stalled_message: str = ""
    conditions: tuple[Condition, ...] = ()
    explanation: Mapping[str, Any] | None = None
    context_length: int | None = None
    hold: Hold = field(default_factory=Hold)
    created: int = 0
    """Seconds since 1970."""
    max_replicas: int = 1
    evictions: int = 0
    """How often it made room for another model."""
    acknowledged_wish: int | None = None
    """The id of the last wish that the operator has acted upon."""
    placements: tuple[tuple[str, str], ...] = ()
    """Each replica's pod and state."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One server pod (or local server process)."""

    model: str
    """`namespace/name` of its ModelDeployment."""
    pod: str
    uid: str
    host: str
    inference_port: int = 8080
    control_port: int = 8081
    deleting: bool = False
    node: str = ""
    state: str = ""
    """From its model's placements, which the directory fills in: a hint only. Whether it admits, the pod alone knows."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A manual load or unload, on its way to the operator."""

    action: str
    """`Load` or `Unload`."""
    id: int


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """One entry of a report: what this gateway knows about the demand for one model."""

    name: str
    waiting: int = 0
    oldest_wait_seconds: int = 0
    in_flight: int = 0
    returning_seconds: int = 0
    """For how much longer the place of clients is kept that were told to come back."""
    last_used: float | None = None
    """Seconds since 1970."""
    wish: Wish | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry as GatewayReport's `spec.models` has it."""
        entry: dict[str, Any] = {
            "name": self.name,
            "waiting": self.waiting,
            "oldestWaitSeconds": self.oldest_wait_seconds,
            "inFlight": self.in_flight,
        }
        if self.returning_seconds:
            entry["returningSeconds"] = self.returning_seconds
        if self.last_used is not None:
            entry["lastUsed"] = rfc3339(self.last_used)
        if self.wish is not None:
            entry["wish"] = {"action": self.wish.action, "id": self.wish.id}
        return entry


@dataclass(frozen=True, slots=True)
class Report:
    sequence: int
    models: tuple[ModelDemand, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """`spec` of a GatewayReport."""
        return {"sequence": self.sequence, "models": [demand.as_json() for demand in self.models]}


class DirectoryListener(Protocol):
    """Who is told of changes. Each call comes after the directory's own dicts have changed, on the gateway's event loop."""

    def model_changed(self, model: ModelView) -> None: ...

    def model_removed(self, key: str) -> None: ...

    def replica_changed(self, replica: ReplicaView) -> None: ...

    def replica_removed(self, uid: str) -> None: ...


class Directory(Protocol):
    """The models and replicas there are, kept up by whoever implements it."""

    @property
    def models(self) -> Mapping[str, ModelView]:
        """By `namespace/name`."""
        ...

    @property
    def replicas(self) -> Mapping[str, ReplicaView]:
        """By uid."""
        ...

    @property
    def synced(self) -> bool:
        """False until the first full list is in: until then an unknown name is not known to be unknown."""
        ...

    @property
    def live_gateways(self) -> int:
        """How many gateways share the limits of the keys, this one included; at least 1."""
        ...

    def subscribe(self, listener: DirectoryListener) -> Callable[[], None]:
        """Tell `listener` of every change from now on; the answer ends it."""
        ...


class ReportSink(Protocol):
    """Where reports go: a GatewayReport on Kubernetes, the operator's own loop in local mode."""

    async def publish(self, report: Report) -> None:
        """Return when it is stored; raise when it is not (it is then tried again with what is true by then)."""
        ...


class Tokens(Protocol):
    """`TokenSigner.infer_token` of `corral.tokens`, as far as the gateway needs it."""

    def infer_token(self, pod_uid: str) -> str: ...


class Clock(Protocol):
    """Time, so that nothing in here reads it by itself."""

    def monotonic(self) -> float: ...

    def time(self) -> float:
        """Seconds since 1970."""
        ...


def rfc3339(seconds: float) -> str:
    """`2026-01-02T03:04:05.678Z`."""
    from datetime import UTC, datetime  # noqa: PLC0415 - only reports and errors need it

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def names_of(model: ModelView) -> Sequence[str]:
    """Every name that routes to this model, the full one first."""
    return (model.key, *(name for name in model.served_names if name != model.key))
