"""A simulated server pod: its API object, its supervisor and its engine's memory. It obeys the contract of the real one and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from corral.domain import reasons
from corral.domain.model import DeviceKey, ReplicaState
from corral.simulate.timeline import Signal

if TYPE_CHECKING:
    from corral.simulate.cluster import Cluster
    from corral.simulate.requests import Request
    from corral.simulate.scenario import ModelSpec

DRAIN_TTL = 10.0


@dataclass(frozen=True, slots=True)
class Commit:
    epoch: int
    devices: Mapping[DeviceKey, int]
    split: tuple[float, ...]
    at: float


@dataclass(frozen=True, slots=True)
class Record:
    """The API object, as one version of it."""

    name: str
    namespace: str
    uid: str
    version: int
    model: str
    revision: str
    devices: tuple[DeviceKey, ...]
    created: float
    commit: Commit | None = None
    loaded_for: float | None = None
    turn: float | None = None
    granted: int = 0  # host memory that the kubelet allocated
    requested: int = 0
    scheduled: bool = False
    unschedulable_since: float | None = None
    deleting: bool = False
    claims: bool = False

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def node(self) -> str:
        return self.devices[0].node


@dataclass(frozen=True, slots=True)
class Status:
    """What a supervisor answers."""

    version: int
    state: ReplicaState
    admitting: bool
    in_flight: int
    last_used: float
    served: int
    progress: float
    error: tuple[str, str, float] | None  # reason, message, at
    measured: int
    residue: int
    loads: int


class RefusedError(Exception):
    """409: the supervisor does not do it."""


class UnreachableError(Exception):
    pass


@dataclass(slots=True)
class Supervisor:
    """Starts asleep, always. `memory` is what its engine takes of each device now."""

    cluster: Cluster
    uid: str
    spec: ModelSpec
    devices: tuple[DeviceKey, ...]
    state: ReplicaState = ReplicaState.PENDING
    epoch: int = 0
    admitting: bool = False
    draining: bool = False
    in_flight: dict[str, Request] = field(default_factory=dict)
    last_used: float = 0.0
    served: int = 0
    loads: int = 0
    loaded_at: float | None = None
    measured: int = 0
    version: int = 0
    error: tuple[str, str, float] | None = None
    memory: dict[DeviceKey, int] = field(default_factory=dict)
    given: dict[DeviceKey, int] = field(default_factory=dict)  # the commitment under which the engine runs
    silent_until: float = 0.0  # it does not answer
    alive: bool = True
    drains: int = 0
    changed: Signal = field(default_factory=Signal)

    def status(self) -> Status:
        residue = self.spec.residue if any(key.id == "host" for key in self.devices) else 0
        return Status(
            self.version,
            self.state,
            self.admitting,
            len(self.in_flight),
            self.last_used,
            self.served,
            0.5 if self.state is ReplicaState.LOADING else 0.0,
            self.error,
            self.measured,
            residue,
            self.loads,
        )

    def bump(self) -> None:
        self.version += 1
        self.changed.fire()
        self.cluster.supervisor_changed(self)

    # What the operator calls. All of it is fenced by the epoch.

    def _fence(self, epoch: int) -> None:
        if not self.alive or self.silent_until > self.cluster.now or self.cluster.partitioned(self.devices[0].node):
            raise UnreachableError
        if epoch < self.epoch and not self.cluster.trust_old_epochs:
            raise RefusedError("StaleEpoch")
        self.epoch = max(self.epoch, epoch)

    def hello(self, epoch: int) -> Status:
        self._fence(epoch)
        return self.status()

    def drain(self, epoch: int, *, if_idle: bool, if_unused_since: float | None, deadline: float | None, why: str, evicting_for: str) -> int:
        self._fence(epoch)
        if self.state not in (ReplicaState.LOADED, ReplicaState.DRAINING):
            raise RefusedError(f"it is {self.state}")
        if if_idle and (self.in_flight or (if_unused_since is not None and self.last_used >= if_unused_since)):
            raise RefusedError("in use")
        if self.admitting:
            self.cluster.watchdog.stopped_admitting(self, why, evicting_for, ended_turn=deadline is not None)
        self.admitting, self.draining = False, True
        self.drains += 1
        self.cluster.timeline.after(DRAIN_TTL, self._resume, self.drains)
        if deadline is not None:
            self.cluster.timeline.at(deadline - self.cluster.epoch0, self._cut, self.drains, self.loads)
        if self.state is not ReplicaState.DRAINING:
            self.state = ReplicaState.DRAINING
            self.bump()
        return len(self.in_flight)

    def _resume(self, drains: int) -> None:
        if self.alive and self.draining and self.drains == drains and self.state is ReplicaState.DRAINING:
            self.state, self.admitting, self.draining = ReplicaState.LOADED, True, False
            self.bump()

    def _cut(self, _: int, loads: int) -> None:
        """The end of a turn: what still streams gets an error event."""
        if self.alive and self.draining and self.loads == loads:
            for request in list(self.in_flight.values()):
                self.cluster.requests.cut(request, "turn_ended")

    def sleep(self, epoch: int) -> None:
        """Begins to end the engine; the caller waits for `memory` to be empty."""
        self._fence(epoch)
        if self.state in (ReplicaState.SLEEPING, ReplicaState.DOWNLOADING, ReplicaState.PENDING):
            return
        if not self.draining or self.in_flight:
            raise RefusedError("not drained")
        self.cluster.watchdog.slept(self)
        self.end_engine()

    def wake(self, epoch: int, given: Mapping[DeviceKey, int]) -> None:
        self._fence(epoch)
        if self.state is not ReplicaState.SLEEPING:
            raise RefusedError(f"it is {self.state}")
        self.state, self.error = ReplicaState.LOADING, None
        self.given = dict(given)
        total = sum(given.values()) or 1
        self.memory = {key: int(self.spec.size * size / total) for key, size in given.items()}
        self.loads += 1
        self.cluster.watchdog.woke(self)
        self.bump()
        fails = self.cluster.random(f"load {self.uid} {self.loads}").random()
        seconds = self.spec.load * (0.5 + self.cluster.random(f"seconds {self.uid} {self.loads}").random())
        self.cluster.timeline.after(seconds, self._loaded, self.loads, fails < self.spec.load_failures)

    def _loaded(self, load: int, fails: bool) -> None:
        if not self.alive or self.loads != load or self.state is not ReplicaState.LOADING:
            return
        now = self.cluster.wall
        short = self.cluster.out_of_memory(self)
        if short or fails:
            reason = reasons.OUT_OF_MEMORY if short else reasons.LOAD_FAILED
            self.measured = max(self.measured, self.spec.size if short else 0)
            self.error = (reason, f"the engine of {self.spec.name} ended with {reason}", now)
            self._asleep()
            return
        self.state, self.admitting, self.draining = ReplicaState.LOADED, True, False
        self.served, self.loaded_at = 0, now
        self.measured = max(self.measured, self.spec.size)
        self.cluster.watchdog.loaded(self)
        self.bump()

    # What the gateway calls.

    def admit(self, request: Request) -> bool:
        if not self.alive or not self.admitting:
            return False
        was = len(self.in_flight)
        self.in_flight[request.id] = request
        self.served += 1
        self.last_used = self.cluster.wall
        if not was:
            self.bump()
        return True

    def done(self, request: Request) -> None:
        if self.in_flight.pop(request.id, None) is not None:
            self.last_used = self.cluster.wall
            if not self.in_flight:
                self.bump()

    # What happens to it.

    def end_engine(self) -> None:
        self.admitting, self.draining = False, False
        self.state = ReplicaState.DRAINING if self.memory else ReplicaState.SLEEPING
        self.cluster.timeline.after(self.cluster.delay("exit", self.uid, self.loads), self._exited, self.loads)

    def _exited(self, loads: int) -> None:
        if self.loads == loads:
            self._asleep()

    def _asleep(self) -> None:
        for request in list(self.in_flight.values()):
            self.cluster.requests.cut(request, "engine_crashed")
        self.memory, self.given, self.admitting, self.draining = {}, {}, False, False
        self.state, self.loaded_at = ReplicaState.SLEEPING, None
        self.bump()

    def crash_engine(self) -> None:
        if self.memory:
            self.error = (reasons.ENGINE_CRASHED, "the engine died", self.cluster.wall)
            self._asleep()

    def restart(self) -> None:
        """The container starts anew: asleep, its file still there."""
        had_file = self.state not in (ReplicaState.PENDING, ReplicaState.DOWNLOADING)
        for request in list(self.in_flight.values()):
            self.cluster.requests.cut(request, "engine_crashed")
        self.memory, self.given, self.admitting, self.draining = {}, {}, False, False
        self.loads += 1  # whatever the old process was about to do does not happen
        self.loaded_at, self.served = None, 0
        self.state = ReplicaState.SLEEPING if had_file else ReplicaState.DOWNLOADING
        self.bump()

    def die(self) -> None:
        """Its pod is gone."""
        self.alive = False
        for request in list(self.in_flight.values()):
            self.cluster.requests.cut(request, "replica_gone")
        self.memory, self.given, self.admitting = {}, {}, False
        self.state = ReplicaState.SLEEPING
        self.changed.fire()
