"""What is known of one model beside its spec: estimate, measurements, failures, names, its place in the queue. Durable in its status, nowhere else.

A new leader reads them back from the status (`Facts.restore`); from then on the memory of the leader rules. Nothing here does I/O or decides where a
model goes; failures become back-off and blocks that the decision reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corral.api.mdstatus import BackOff, Estimate, ModelDeploymentStatus
from corral.control.observation import SupervisorStatus, rfc3339
from corral.control.settings import ControlSettings
from corral.domain import reasons
from corral.domain.backoff import delay, one_more
from corral.domain.model import HOST_ID, Backoff, Blocked, Footprint

MODEL_WIDE = frozenset(
    {
        reasons.SOURCE_UNREACHABLE,
        reasons.SOURCE_NOT_FOUND,
        reasons.SOURCE_UNAUTHORIZED,
        reasons.SOURCE_REFUSED,
        reasons.UNSUPPORTED_SOURCE,
        reasons.NOT_A_GGUF,
        reasons.UNSUPPORTED_MODEL,
        reasons.CHECKSUM_MISMATCH,
        reasons.INVALID_ENGINE_SETTINGS,
        reasons.SECRET_NOT_FOUND,
        reasons.ESTIMATE_FAILED,
    }
)
"""Failures of the model itself, wherever it runs. All others are of one node."""

HEALS = frozenset(
    {
        reasons.SOURCE_UNREACHABLE,
        reasons.SOURCE_NOT_FOUND,
        reasons.SOURCE_UNAUTHORIZED,
        reasons.SECRET_NOT_FOUND,
        reasons.ESTIMATE_FAILED,
        reasons.NO_SPACE,
    }
)
"""What somebody can mend without touching the ModelDeployment: it is looked at again."""

NEVER = float("inf")


@dataclass(slots=True)
class Failure:
    node: str  # empty: the model as a whole
    reason: str
    message: str
    failures: int
    until: float
    at: str = ""  # the server's time of it: the same failure is noted once
    healed: bool = False  # a load elsewhere has succeeded since: only this node is stayed away from, until the time is over

    def as_backoff(self) -> Backoff:
        return Backoff(self.node, self.failures, self.until, self.reason, self.message)


@dataclass(frozen=True, slots=True)
class LoadTimes:
    total: float
    schedule: float = 0.0
    download: float = 0.0
    start: float = 0.0
    load: float = 0.0

    @property
    def phases(self) -> dict[str, float]:
        """The parts that there were."""
        found = {"schedule": self.schedule, "download": self.download, "start": self.start, "load": self.load}
        return {phase: seconds for phase, seconds in found.items() if seconds}

    @property
    def again(self) -> float:
        """What a load costs once pod and file are there."""
        return max(0.0, self.total - self.schedule - self.download)


@dataclass(slots=True)
class Facts:
    uid: str
    generation: int = 0
    estimate_key: str = ""
    estimate: Mapping[str, Any] | None = None  # the last good answer, as the server gave it
    estimated_at: float = 0.0
    estimating: bool = False
    blocked: Failure | None = None  # the model as a whole cannot be served
    failures: dict[str, Failure] = field(default_factory=dict)  # by node
    required: int = 0  # raised by what was measured, and by an out-of-memory failure
    measured: Mapping[str, int] = field(default_factory=dict)
    residue: int = 0
    last_used: float = 0.0
    last_load: LoadTimes | None = None
    evictions: int = 0
    turns: int = 0
    served_names: tuple[str, ...] = ()
    wish: tuple[int, str, str] | None = None  # id, action, gateway: the last one that was acted upon
    queue_since: float | None = None
    queue_until: float | None = None

    @classmethod
    def restore(cls, uid: str, generation: int, estimate_key: str, status: ModelDeploymentStatus) -> Facts:
        """The facts that a former leader left."""
        facts = cls(uid=uid, generation=generation, estimate_key=estimate_key)
        facts.served_names = tuple(status.served_names or ())
        facts.evictions, facts.turns = status.evictions or 0, status.turns or 0
        facts.last_used = status.last_used.timestamp() if status.last_used else 0.0
        facts.queue_since = status.queue_since.timestamp() if status.queue_since else None
        facts.queue_until = status.queue_until.timestamp() if status.queue_until else None
        if status.wish:
            facts.wish = (status.wish.id, status.wish.action, status.wish.gateway)
        if status.last_load:
            load = status.last_load
            facts.last_load = LoadTimes(
                load.total.total_seconds(),
                *(part.total_seconds() if part else 0.0 for part in (load.schedule, load.download, load.start, load.load)),
            )
        same_spec = status.observed_generation == generation
        if same_spec:
            for entry in status.backoff or ():
                failure = Failure(entry.node, entry.reason, entry.message, entry.failures, entry.until.timestamp())
                if entry.node:
                    facts.failures[entry.node] = failure
                else:
                    facts.blocked = failure
            stalled = status.condition("Stalled")
            if facts.blocked is None and stalled is not None and stalled.status == "True" and stalled.reason in MODEL_WIDE:
                facts.blocked = Failure("", stalled.reason, stalled.message, 1, NEVER)
        if status.estimate and status.estimate.settings == estimate_key:
            facts._restore_estimate(status.estimate, status, same_spec=same_spec)
        return facts

    def _restore_estimate(self, estimate: Estimate, status: ModelDeploymentStatus, *, same_spec: bool) -> None:
        if estimate.ok:
            self.estimate = estimate.dump()
            self.estimated_at = estimate.at.timestamp() if estimate.at else 0.0
            if status.memory and status.memory.measured:
                found = status.memory.measured
                self.measured = {"weights": found.weights or 0, "kv": found.kv_cache or 0, "compute": found.compute or 0, "total": found.total}
                self.required = found.total
                self.residue = found.residue or 0
        elif same_spec and self.blocked is None:
            self.blocked = Failure("", estimate.reason or reasons.ESTIMATE_FAILED, estimate.message, 1, NEVER)

    def respecified(self, generation: int, estimate_key: str) -> None:
        """The spec changed: what failed is tried anew, and what was measured holds only for the same file and settings."""
        if generation != self.generation:
            self.generation = generation
            self.blocked = None
            self.failures.clear()
        if estimate_key != self.estimate_key:
            self.estimate_key = estimate_key
            self.estimate, self.measured, self.required, self.residue, self.last_load = None, {}, 0, 0, None

    def footprint(self, settings: ControlSettings) -> Footprint | None:
        if self.estimate is None:
            return None
        found = self.estimate
        return Footprint(
            weights=int(found.get("weights") or 0),
            kv=int(found.get("kvCache") or 0),
            compute=int(found.get("compute") or 0),
            overhead=int(found.get("overhead") or 0),
            device_overhead=settings.device_overhead,
            layers=tuple((int(run[0]), int(run[1]), int(run[2])) for run in found.get("perLayer") or () if len(run) >= 3),
            input=int(found.get("input") or 0),
            output=int(found.get("output") or 0),
            measured=self.required,
            file_bytes=int(found.get("fileBytes") or 0),
        )

    def estimated(self, result: Mapping[str, Any], now: float, settings: ControlSettings) -> None:
        """An answer of the estimate: a good one ends every failure of the model as a whole."""
        if result.get("ok"):
            self.estimate, self.estimated_at, self.blocked = dict(result), now, None
            return
        reason = str(result.get("reason") or reasons.ESTIMATE_FAILED)
        self.block(reason, str(result.get("message") or "the estimate gave no reason"), now, settings, retry=bool(result.get("retry")))

    def block(self, reason: str, message: str, now: float, settings: ControlSettings, *, retry: bool, at: str = "") -> None:
        former = self.blocked if self.blocked and self.blocked.reason == reason else None
        count = former.failures + 1 if former else 1
        until = now + delay(count, settings.failure_backoff, settings.failure_backoff_max) if retry or reason in HEALS else NEVER
        self.blocked = Failure("", reason, message, count, until, at)

    def failed_on(self, node: str, reason: str, message: str, now: float, settings: ControlSettings, *, at: str = "") -> None:
        """A load failed on this node."""
        former = self.failures.get(node)
        old = former.as_backoff() if former else None
        entry = one_more(old, node, reason, message, now, settings.failure_backoff, settings.failure_backoff_max)
        self.failures[node] = Failure(node, reason, message, entry.failures, entry.until, at)

    def noted(self, node: str, at: str) -> bool:
        """Whether the failure of this time has been noted already."""
        known = [self.blocked, self.failures.get(node)]
        return bool(at) and any(failure is not None and failure.at == at for failure in known)

    def loaded_on(self, node: str, status: SupervisorStatus, now: float) -> None:
        """A load succeeded: failures there, and those whose time is over, are forgotten; what it uses is remembered."""
        self.failures = {name: it for name, it in self.failures.items() if name != node and it.until > now}
        for failure in self.failures.values():
            failure.healed = True
        self.blocked = None
        self.measure(status)

    def forget_healed(self, now: float) -> None:
        self.failures = {name: it for name, it in self.failures.items() if not (it.healed and it.until <= now)}

    def measure(self, status: SupervisorStatus) -> bool:
        """The largest that was ever measured counts. True when it grew."""
        use = status.memory
        # The total is of main memory; on a GPU it is llama.cpp's buffers that count.
        on_gpu = bool(status.devices) and HOST_ID not in status.devices
        total = use.weights + use.kv + use.compute if on_gpu else use.total
        if total <= self.measured.get("total", 0):
            return False
        self.measured = {"weights": use.weights, "kv": use.kv, "compute": use.compute, "total": total}
        self.required = max(self.required, total)
        return True

    def domain_block(self) -> Blocked | None:
        return Blocked(self.blocked.reason, self.blocked.message) if self.blocked else None

    def backoff(self) -> tuple[Backoff, ...]:
        """Nodes to stay away from for a while. What is over stays known until a load succeeds somewhere: the last one failed."""
        return tuple(failure.as_backoff() for failure in self.failures.values())

    def next_retry(self, now: float) -> float | None:
        """When a failure of the model as a whole is looked at again, or a back-off ends."""
        times = [failure.until for failure in self.failures.values() if failure.until > now]
        if self.blocked and self.blocked.until != NEVER:
            times.append(self.blocked.until)
        return min(times) if times else None

    def backoff_status(self) -> list[BackOff]:
        from_model = [self.blocked] if self.blocked and self.blocked.until != NEVER else []
        return [
            BackOff.model_validate({"node": it.node, "failures": it.failures, "until": _time(it.until), "reason": it.reason, "message": it.message})
            for it in (*from_model, *self.failures.values())
        ]


def _time(seconds: float) -> str:
    return rfc3339(round(seconds, 3))
