"""The life of one replica as a pure state machine: who is admitted, what a drain, a sleep or a wake may do now, when the version grows.

Every method takes the time and changes only this object; what has to happen outside (fork, kill, end streams) is done by
`supervisor.Supervisor` according to what the method returned. One event loop owns it, so each method is atomic with admission.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    PENDING = "Pending"
    DOWNLOADING = "Downloading"
    SLEEPING = "Sleeping"
    LOADING = "Loading"
    LOADED = "Loaded"
    DRAINING = "Draining"
    FAILED = "Failed"


@dataclass(frozen=True)
class Problem:
    reason: str
    message: str
    retry: bool
    at: float


@dataclass(frozen=True)
class Refusal:
    """Why a call was refused: an error code and a sentence."""

    code: str
    message: str


@dataclass(frozen=True)
class Wake:
    devices: tuple[str, ...]
    split: tuple[float, ...]
    device_kind: str


@dataclass
class Due:
    """What time has brought: streams to end, and when to look again (None: nothing pending)."""

    end_streams: bool = False
    next_at: float | None = None


@dataclass
class Lifecycle:
    state: State = State.PENDING
    version: int = 1
    progress: float = 0.0
    in_flight: int = 0
    last_used: float | None = None
    served: int = 0
    epoch: int = 0
    loads: int = 0
    error: Problem | None = None
    wake_order: Wake | None = None
    model: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    residue: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    file: dict[str, Any] | None = None
    cached: tuple[str, ...] = ()
    stopping: bool = False
    ending: bool = False
    drain_until: float | None = None
    deadline: float | None = None

    # --- admission

    @property
    def admitting(self) -> bool:
        return self.state is State.LOADED and not self.stopping

    def admit(self, now: float) -> bool:
        """Count one request in, if it may come in now."""
        if not self.admitting:
            return False
        self.in_flight += 1
        self.served += 1
        self.last_used = now
        if self.in_flight == 1:
            self._changed()
        return True

    def release(self, now: float) -> None:
        """The last byte of one admitted request is out, or its client is gone."""
        self.in_flight -= 1
        self.last_used = now
        if self.in_flight == 0:
            self._changed()

    # --- fencing

    def fence(self, epoch: int) -> bool:
        """False when a newer leader has already spoken."""
        if epoch < self.epoch:
            return False
        if epoch > self.epoch:
            self.epoch = epoch
            self._changed()
        return True

    # --- drain, resume, sleep, wake

    def drain(self, now: float, *, if_idle: bool, if_unused_since: float | None, ttl: float, deadline: float | None) -> bool:
        """Stop admitting until `ttl` from now; False when the conditions do not hold and nothing was changed."""
        if self.state in (State.LOADED, State.DRAINING):
            if self.state is State.LOADED:
                if if_idle and self.in_flight:
                    return False
                if if_unused_since is not None and self.last_used is not None and self.served and self.last_used >= if_unused_since:
                    return False
                self.state = State.DRAINING
                self._changed()
            if self.ending:
                return True
            self.drain_until = now + ttl
            if deadline is not None:
                self.deadline = deadline
        return True

    def resume(self) -> None:
        if self.state is State.DRAINING and not self.ending:
            self._admit_again()

    def may_sleep(self) -> Refusal | None:
        if self.state is State.DRAINING and not self.in_flight:
            return None
        if self.state is State.LOADING:
            return None
        if self.state in (State.PENDING, State.DOWNLOADING, State.SLEEPING, State.FAILED):
            return None
        if self.in_flight:
            return Refusal("InFlight", f"{self.in_flight} requests are in flight; drain and wait until none is")
        return Refusal("NotDrained", f"the server is {self.state}; drain it first")

    def sleep_started(self) -> None:
        """From here no resume brings the engine back: it is being stopped."""
        self.ending = True
        self.drain_until = self.deadline = None

    def asleep(self, residue: int) -> None:
        self.state = State.SLEEPING
        self.ending = False
        self.wake_order = None
        self.drain_until = self.deadline = None
        self.residue = residue
        self.memory = {}
        self.progress = 0.0
        self._changed()

    def wake(self, order: Wake) -> Refusal | bool:
        """True: start loading. False: nothing to do, it is loaded or loading there already."""
        if self.ending:
            return Refusal("WrongState", "the engine is being stopped; wake the server again when it sleeps")
        if self.state in (State.LOADED, State.LOADING, State.DRAINING) and self.wake_order == order:
            if self.state is State.DRAINING:
                self._admit_again()
            return False
        if self.stopping:
            return Refusal("Stopping", "the server is shutting down")
        if self.state is not State.SLEEPING:
            held = f" on {', '.join(self.wake_order.devices)}" if self.wake_order else ""
            return Refusal("WrongState", f"the server is {self.state}{held}; it can only be woken while it sleeps")
        self.wake_order = order
        self.loading()
        return True

    # --- what the shell reports

    def downloading(self) -> None:
        self.state = State.DOWNLOADING
        self.progress = 0.0
        self._changed()

    def downloaded(self, file: dict[str, Any], seconds: float) -> None:
        self.state = State.SLEEPING
        self.file = file
        self.error = None
        self.progress = 1.0
        self.timings = {**self.timings, "download": seconds}
        self._changed()

    def download_failed(self, problem: Problem) -> None:
        self.state = State.FAILED
        self.error = problem
        self._changed()

    def cache_has(self, keys: tuple[str, ...]) -> None:
        if keys != self.cached:
            self.cached = keys
            self._changed()

    def loading(self) -> None:
        self.state = State.LOADING
        self.progress = 0.0
        self._changed()

    def progressed(self, progress: float) -> None:
        # Whole percents only: each version wakes everybody who polls.
        if int(progress * 100) > int(self.progress * 100):
            self.progress = progress
            self._changed()

    def loaded(self, model: dict[str, Any], memory: dict[str, int], timings: dict[str, float]) -> None:
        self.state = State.LOADED
        self.model = model
        self.memory = memory
        self.timings = {"download": self.timings.get("download", 0.0), **timings}
        self.loads += 1
        self.served = 0
        self.progress = 1.0
        self.error = None
        self._changed()

    def load_failed(self, problem: Problem, residue: int) -> None:
        self.error = problem
        self.asleep(residue)

    def measured(self, memory: dict[str, int]) -> None:
        if memory != self.memory:
            self.memory = memory
            self._changed()

    def stop(self) -> None:
        if not self.stopping:
            self.stopping = True
            self._changed()

    def due(self, now: float) -> Due:
        """Apply what time has brought."""
        due = Due()
        if self.state is State.DRAINING:
            if self.deadline is not None and now >= self.deadline:
                due.end_streams = self.in_flight > 0
                self.deadline = None
            if self.drain_until is not None and now >= self.drain_until:
                self._admit_again()
            pending = [t for t in (self.deadline, self.drain_until) if t is not None]
            due.next_at = min(pending) if pending else None
        return due

    def _admit_again(self) -> None:
        self.state = State.LOADED
        self.drain_until = self.deadline = None
        self._changed()

    def _changed(self) -> None:
        self.version += 1
