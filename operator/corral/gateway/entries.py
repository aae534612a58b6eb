"""What the machine knows of a replica, a request and a model. Values that the machine alone changes."""

from __future__ import annotations

from dataclasses import dataclass, field

from corral.gateway.effects import Arrival, Rejection, ReplicaStatus
from corral.gateway.ports import ModelView, ReplicaView, Wish


@dataclass(slots=True)
class Replica:
    view: ReplicaView
    open: bool = False
    by_hint: bool = False
    """Opened by `status.placements` and by nothing better."""
    in_flight: int = 0
    refusals: int = 0
    """In a row. A pod that says it admits and refuses all the same is tried ever more slowly."""
    closed_until: float = 0.0
    status: ReplicaStatus | None = None
    known_error: float | None = None
    watched: bool = False
    told: bool = False
    """It said something, or was found to be unreachable, since it is watched."""

    @property
    def uid(self) -> str:
        return self.view.uid


@dataclass(slots=True)
class Ticket:
    arrival: Arrival
    place: int
    since: float
    deadline: float
    replica: Replica | None = None
    """Where it is in flight; None while it waits."""
    unless_open: Rejection | None = None
    """It must not wake the model: it waits for the replicas' own word, no longer, and is told this when none is open."""


@dataclass(slots=True)
class Model:
    key: str
    view: ModelView | None = None
    replicas: dict[str, Replica] = field(default_factory=dict)
    queue: list[Ticket] = field(default_factory=list)
    """By place."""
    in_flight: int = 0
    last_used: float | None = None
    joined: bool = False
    """Somebody joined since the model had no waiters: the report of that went out."""
    returning_until: float = 0.0
    """Clients whose wait was over were told to come back; their place is kept until then."""
    wish: Wish | None = None
    wished_at: float = 0.0
