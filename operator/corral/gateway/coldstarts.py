"""How long each phase of a cold start took, as those who waited saw it. Pure: told of states, tells durations."""

from __future__ import annotations

from dataclasses import dataclass, field

from corral.domain import reasons

PHASES = {
    reasons.DOWNLOADING: "download",
    reasons.STARTING: "start",
    reasons.LOADING: "load",
}
"""Every other state counts as `schedule`: somebody else has the memory, or the pod is on its way."""


@dataclass(slots=True)
class _Start:
    since: float
    phase: str = "schedule"
    seconds: dict[str, float] = field(default_factory=dict)


class ColdStarts:
    def __init__(self) -> None:
        self._starts: dict[str, _Start] = {}

    def waiting(self, model: str, now: float) -> None:
        """Somebody waits for it."""
        if model not in self._starts:
            self._starts[model] = _Start(now)

    def state(self, model: str, state: str, now: float) -> None:
        start = self._starts.get(model)
        phase = PHASES.get(state, "schedule")
        if start is not None and phase != start.phase:
            self._close(start, now)
            start.phase = phase

    def ready(self, model: str, now: float) -> dict[str, float]:
        """It answers: seconds by phase. Empty when nobody waited."""
        start = self._starts.pop(model, None)
        if start is None:
            return {}
        self._close(start, now)
        return start.seconds

    def nobody(self, model: str) -> None:
        """The last one who waited is gone without an answer."""
        self._starts.pop(model, None)

    @staticmethod
    def _close(start: _Start, now: float) -> None:
        start.seconds[start.phase] = start.seconds.get(start.phase, 0.0) + now - start.since
        start.since = now
