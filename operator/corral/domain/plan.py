"""What a decision gives back: actions, verdicts and when to look again. Data only; `control.apply` and the simulation carry it out.

Actions are coarse on purpose. `Load` is: write the commitment, on host memory raise the pod's request and wait for the kubelet's grant, then wake;
a refusal reverts it. `Evict` is: drain (refused when busy, unless it carries a deadline), sleep, confirmed exit, clear the commitment, give the
memory back. Each can be interrupted anywhere, and what is left is told by the objects alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from corral.domain.model import DeviceKey


@dataclass(frozen=True, slots=True)
class Action:
    model: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Estimate(Action):
    """Find out the model's footprint."""


@dataclass(frozen=True, slots=True)
class Create(Action):
    """Start a sleeping replica bound to these devices. Its name is the shell's to choose."""

    devices: tuple[DeviceKey, ...]
    revision: str


@dataclass(frozen=True, slots=True)
class Load(Action):
    """Commit these bytes to a sleeping replica and wake it. `split`: share of the layers per device, in the order of its devices."""

    replica: str
    commitment: Mapping[DeviceKey, int]
    split: tuple[float, ...]
    loaded_for: float | None  # arrival of the oldest waiter, None when nobody waits


@dataclass(frozen=True, slots=True)
class Evict(Action):
    """Put a replica to sleep and take its commitment back. `deadline` None: only when idle and unused since `unused_since`."""

    replica: str
    evicting_for: str  # the model that needs the room, empty: nobody does
    unused_since: float
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Delete(Action):
    """Remove a replica. A loaded one is drained first, until `deadline`."""

    replica: str
    deadline: float | None = None


class Refusal(NamedTuple):
    """Why one replica is not a victim, and until when (None: no time is known)."""

    replica: str
    model: str
    reason: str
    until: float | None = None
    in_flight: int = 0


class Candidate(NamedTuple):
    """One place a model could have gone to, with the arithmetic. Bytes are sums over `devices`."""

    devices: tuple[DeviceKey, ...]
    capacity: int
    margin: int
    free: int
    need: int
    freeable: int = 0
    closed: str = ""
    refused: tuple[Refusal, ...] = ()


class Next(NamedTuple):
    """What happens next and when, such as the end of a turn."""

    at: float
    what: str


class Words(NamedTuple):
    """A text that nobody reads yet: what renders it, and the facts in it. Two are equal when their facts are."""

    render: Callable[..., str]
    facts: tuple[Any, ...]


class Explanation(NamedTuple):
    """Why a model is where it is. Conditions, events, `corral explain`, HTTP errors and logs all render this.

    A decision makes one for every model that it looks at, and most say what the last one said: they are compared by their facts, and only what
    is shown is put into words.
    """

    reason: str
    said: str | Words
    need: int = 0
    candidates: tuple[Candidate, ...] = ()
    more: int = 0  # candidates left out
    next: Next | None = None

    @property
    def message(self) -> str:
        return self.said if isinstance(self.said, str) else self.said.render(*self.said.facts)

    def as_json(self) -> dict[str, Any]:
        """The object of `status.explanation`; times as float seconds, to be rendered at the edge."""
        return {
            "reason": self.reason,
            "message": self.message,
            "need": self.need,
            "candidates": [
                {
                    "node": c.devices[0].node if c.devices else "",
                    "devices": [d.id for d in c.devices],
                    "capacity": c.capacity,
                    "margin": c.margin,
                    "free": c.free,
                    "need": c.need,
                    "freeable": c.freeable,
                    "closed": c.closed,
                    "refused": [
                        {"replica": r.replica, "model": r.model, "reason": r.reason, "until": r.until, "inFlight": r.in_flight} for r in c.refused
                    ],
                }
                for c in self.candidates
            ],
            "more": self.more,
            "next": {"at": self.next.at, "what": self.next.what} if self.next else None,
        }


class Verdict(NamedTuple):
    """What one decision says of one model that it looked at."""

    model: str
    explanation: Explanation
    stalled: bool = False  # will not heal by itself
    queue_since: float | None = None  # to be kept in its status
    queue_until: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    actions: tuple[Action, ...] = ()
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    turns: Mapping[str, float] = field(default_factory=dict)  # replica id -> its turn started (to be kept on the pod), for new turns only
    wake_at: float | None = None  # decide again then, even if nothing happens
