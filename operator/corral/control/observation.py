"""A supervisor's status as it says it (docs/contracts.md), read once at the edge. What it leaves out or says wrongly becomes the plain default."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from corral.domain.model import ReplicaState


@dataclass(frozen=True, slots=True)
class ServerError:
    reason: str
    message: str
    retry: bool
    at: str  # the supervisor's own time: it only serves to tell one failure from the next


@dataclass(frozen=True, slots=True)
class MemoryUse:
    weights: int = 0
    kv: int = 0
    compute: int = 0
    total: int = 0
    residue: int = 0


@dataclass(frozen=True, slots=True)
class SupervisorStatus:
    version: int
    state: ReplicaState
    admitting: bool = False
    progress: float = 0.0
    in_flight: int = 0
    queued: int = 0
    slots: int = 0
    last_used: float = 0.0  # the pod's clock
    served: int = 0
    epoch: int = 0
    loads: int = 0
    memory: MemoryUse = field(default_factory=MemoryUse)
    load: Mapping[str, float] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    error: ServerError | None = None
    context_length: int = 0
    cached: tuple[str, ...] = ()  # keys of the files in a cache that pods of its node share

    @property
    def resident(self) -> bool:
        return self.state in (ReplicaState.LOADING, ReplicaState.LOADED, ReplicaState.DRAINING)


def seconds_of(text: Any) -> float:
    """RFC 3339 to seconds; 0 for what is none."""
    if not isinstance(text, str) or not text:
        return 0.0
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def rfc3339(seconds: float) -> str:
    """To the microsecond: a drain's `ifUnusedSince` is compared with times of that precision."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and value > 0 else 0


def parse_status(body: Any) -> SupervisorStatus:
    """Raises ValueError for what is no status at all."""
    version = body.get("version") if isinstance(body, Mapping) else None
    if version is None:
        raise ValueError(f"a supervisor's status is an object with a version and a state; this was {str(body)[:120]}")
    memory, error = _mapping(body.get("memory")), body.get("error")
    load = {str(key): float(value) for key, value in _mapping(body.get("load")).items() if isinstance(value, int | float)}
    progress = body.get("progress")
    return SupervisorStatus(
        version=int(version),
        state=ReplicaState(str(body.get("state", ""))),
        admitting=bool(body.get("admitting")),
        progress=float(progress) if isinstance(progress, int | float) else 0.0,
        in_flight=_count(body.get("inFlight")),
        queued=_count(body.get("queued")),
        slots=_count(body.get("slots")),
        last_used=seconds_of(body.get("lastUsed")),
        served=_count(body.get("served")),
        epoch=_count(body.get("epoch")),
        loads=_count(body.get("loads")),
        memory=MemoryUse(
            weights=_count(memory.get("weights")),
            kv=_count(memory.get("kvCache")),
            compute=_count(memory.get("compute")),
            total=_count(memory.get("total")),
            residue=_count(memory.get("residue")),
        ),
        load=load,
        devices=tuple(str(device) for device in body.get("devices") or ()),
        error=ServerError(str(error.get("reason", "")), str(error.get("message", "")), bool(error.get("retry")), str(error.get("at", "")))
        if isinstance(error, Mapping) and error.get("reason")
        else None,
        cached=tuple(sys.intern(key) for key in body.get("cached") or () if isinstance(key, str)),
        context_length=_count(_mapping(body.get("model")).get("contextLength")),
    )
