"""The words between the state machine and whoever drives it: what arrives, and what is to be done about it. Values only.

The two that every request makes are msgspec's: they cost a fifth of a frozen dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from corral.gateway.ports import ModelView, ReplicaView


class Arrival(msgspec.Struct, frozen=True):
    """A request whose model is known, and whose key may use and wake it."""

    id: str
    model: str
    """`namespace/name`."""
    size: int = 0
    """Bytes of its body: what holding it costs."""
    affinity: int = 0
    """A hash of how the conversation begins; 0: any replica is as good as another."""
    autoload: bool = True
    """False: refuse instead of waiting when the model is not resident."""
    may_wake: bool = True
    """False: its key lacks the `wake` scope, so it is refused instead of waiting."""
    key: str = ""
    """Who asks, for the share of the waiting room; empty: nobody in particular."""
    key_share: float = 1.0
    """The part of a model's places that one key may take."""
    home: str = ""
    """The uid of the replica that keeps what it refers to; empty: nothing is kept for it."""


@dataclass(frozen=True, slots=True)
class LoadError:
    """`error` of a supervisor's status."""

    reason: str
    message: str
    retry: bool
    at: float
    """Seconds since 1970, by the pod's clock."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What a supervisor's status says, as far as routing needs it."""

    state: str
    admitting: bool
    progress: float = 0.0
    error: LoadError | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a request gets no answer from a model. `reason` is the operator's word where it has one."""

    status: int
    code: str
    message: str
    reason: str = ""
    retry_after: int | None = None


class Grant(msgspec.Struct, frozen=True):
    """Send the request to this replica now. It is in flight until `ended`, `left` or `refused`."""

    request: str
    replica: ReplicaView
    model: ModelView


@dataclass(frozen=True, slots=True)
class Wait:
    """Keep the request. `joined`: a load of its model is already under way."""

    request: str
    joined: bool


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer the request with this error. The machine has forgotten it."""

    request: str
    rejection: Rejection


@dataclass(frozen=True, slots=True)
class Watch:
    """Follow this replica's status until `Unwatch`, and say what it says with `replica_status`."""

    replica: ReplicaView


@dataclass(frozen=True, slots=True)
class Unwatch:
    uid: str


Effect = Grant | Wait | Reject | Watch | Unwatch


@dataclass(frozen=True, slots=True)
class Situation:
    """What a waiting client is told."""

    state: str
    progress: float | None
    message: str
    ahead: int
    waited: float
    remaining: float
