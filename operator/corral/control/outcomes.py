"""What a load or a download came to, whoever ordered it: remembered as facts of the model, told as events and metrics. It orders nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from corral.control.facts import MODEL_WIDE, Facts, LoadTimes
from corral.control.observation import SupervisorStatus
from corral.control.pods import Pod, loaded_for
from corral.control.projection import Projection
from corral.control.settings import ControlSettings
from corral.domain import reasons
from corral.domain.footprint import after_out_of_memory
from corral.domain.model import ReplicaState
from corral.kube.ports import PodRecord


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A failure that a supervisor reported; for events and metrics."""

    model: str
    pod: str
    node: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class LoadDone:
    model: str
    pod: str
    node: str
    times: LoadTimes
    waited: float | None  # how long the oldest waiter had waited
    estimated: int
    measured: int


class Outcomes:
    def __init__(self, projection: Projection, settings: ControlSettings, clock: Callable[[], float]) -> None:
        self._projection = projection
        self._dirty = projection.records.dirty
        self._settings = settings
        self._clock = clock
        self.happened: list[LoadFailed | LoadDone] = []

    def take(self) -> list[LoadFailed | LoadDone]:
        taken, self.happened = self.happened, []
        return taken

    def note(self, pod: Pod, before: SupervisorStatus | None) -> None:
        """A supervisor says something else than before."""
        status, record, now = pod.status, pod.record, self._clock()
        facts = self._projection.facts.get(record.model)
        if status is None or facts is None:
            return
        facts.last_used = max(facts.last_used, status.last_used)
        facts.residue = max(facts.residue, status.memory.residue)
        if self._stale_revision(record):
            return
        if status.state is ReplicaState.LOADED and (before is None or before.state not in (ReplicaState.LOADED, ReplicaState.DRAINING)):
            if before is not None:
                pod.loaded_at = now
                self._loaded(pod, facts, status, now)
            facts.loaded_on(record.node, status, now)
            self._dirty.models.add(record.model)
        elif status.resident and facts.measure(status):
            self._dirty.models.add(record.model)
        self._note_failure(pod, before, facts, now)

    def _loaded(self, pod: Pod, facts: Facts, status: SupervisorStatus, now: float) -> None:
        facts.last_load = times = load_times(pod, status, now)
        estimate = facts.footprint(self._settings)
        waiter = loaded_for(pod.record)
        waited = now - waiter if waiter is not None else None
        expected = estimate.estimated if estimate is not None else 0
        self.happened.append(LoadDone(pod.record.model, pod.key, pod.record.node, times, waited, expected, status.memory.total))

    def _note_failure(self, pod: Pod, before: SupervisorStatus | None, facts: Facts, now: float) -> None:
        status, record = pod.status, pod.record
        error = status.error if status is not None else None
        if status is None or error is None:
            source_back = before is not None and before.state is ReplicaState.FAILED and facts.blocked is not None
            if source_back and facts.blocked is not None and facts.blocked.at:
                facts.blocked = None  # the server's own retry got it
                self._dirty.models.add(record.model)
            return
        if (before is not None and before.error == error) or facts.noted(record.node, error.at):
            return
        self.fail(record.model, record.node, error.reason, error.message, retry=error.retry, at=error.at, now=now)
        self.happened.append(LoadFailed(record.model, pod.key, record.node, error.reason, error.message))
        footprint = facts.footprint(self._settings)
        if error.reason == reasons.OUT_OF_MEMORY and footprint is not None:
            commitment = pod.commitment
            given = sum(commitment.devices.values()) if commitment is not None else 0
            facts.required = after_out_of_memory(footprint, given, status.memory.total).measured

    def fail(self, model: str, node: str, reason: str, message: str, *, retry: bool, at: str = "", now: float) -> None:
        """Remember a failure, of the model itself or of it on this node."""
        facts = self._projection.facts.get(model)
        if facts is None:
            return
        if reason in MODEL_WIDE:
            facts.block(reason, message, now, self._settings, retry=retry, at=at)
        else:
            facts.failed_on(node, reason, message, now, self._settings, at=at)
        self._dirty.models.add(model)

    def _stale_revision(self, record: PodRecord) -> bool:
        """What an outdated pod says is no word on the present spec."""
        model = self._projection.state.models.get(record.model)
        return model is not None and bool(model.revision) and model.revision != record.revision


def load_times(pod: Pod, status: SupervisorStatus, now: float) -> LoadTimes:
    """The first load of a pod counts what its start took; a wait for memory counts nothing, it is nobody's work."""
    told, order = status.load, pod.order
    first = status.loads <= 1
    schedule = pod.scheduling if first else 0.0
    download = told.get("download", 0.0) if first else 0.0
    loading = now - order.since if order is not None and order.kind == "Load" else told.get("total", 0.0)
    # The warm-up belongs to the load. When the first token of an answer came is the gateway's to know.
    return LoadTimes(
        total=schedule + download + loading,
        schedule=schedule,
        download=download,
        start=told.get("start", 0.0),
        load=told.get("load", 0.0) + told.get("warmup", 0.0),
    )
