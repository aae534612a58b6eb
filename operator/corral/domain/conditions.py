"""The status of a ModelDeployment as conditions that kstatus understands, and as the figures beside them. Pure: values in, values out.

`Ready`: this generation is valid, estimated, fits somewhere, and its last load did not fail; a request never changes it. `Reconciling` is there
for an unobserved generation, an estimate or a rollout only, `Stalled` for what does not heal by itself, never both. Residency is `Loaded`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corral.domain import reasons
from corral.domain.backoff import LASTING
from corral.domain.explain import own_need, rest_of
from corral.domain.model import Model, Replica, ReplicaState
from corral.domain.plan import Explanation, Verdict
from corral.domain.units import plural, quantity

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"
TYPES = ("Ready", "Reconciling", "Stalled", "Estimated", "Placed", "Loaded")
MESSAGE_EVERY = 10.0  # a change of a message alone is written at most this often


@dataclass(frozen=True, slots=True)
class Condition:
    type: str
    status: str
    reason: str
    message: str
    last_transition: float  # when `status` last changed
    observed_generation: int


def conditions(model: Model, replicas: Sequence[Replica], verdict: Verdict | None, now: float, previous: Iterable[Condition] = ()) -> list[Condition]:
    """All six, in the order of `TYPES`; `previous` keeps their transition times."""
    stalled = _stalled(model, replicas, verdict)
    reconciling = None if stalled else _reconciling(model, replicas)
    explanation = verdict.explanation if verdict is not None else rest_of(model, replicas)
    found = {
        "Ready": _ready(model, replicas, stalled, verdict),
        "Reconciling": (TRUE, *reconciling) if reconciling else (FALSE, reasons.OBSERVED, "Nothing is being rolled out."),
        "Stalled": (TRUE, *stalled) if stalled else (FALSE, reasons.HEALTHY, "Nothing stands in the way for good."),
        "Estimated": _estimated(model),
        "Placed": _placed(replicas),
        "Loaded": _loaded(replicas, explanation, model),
    }
    before = {each.type: each for each in previous}
    result = []
    for kind in TYPES:
        status, reason, message = found[kind]
        old = before.get(kind)
        since = old.last_transition if old is not None and old.status == status else now
        result.append(Condition(kind, status, reason, message, since, model.generation))
    return result


def _stalled(model: Model, replicas: Sequence[Replica], verdict: Verdict | None) -> tuple[str, str] | None:
    if model.blocked is not None:
        return model.blocked.reason, model.blocked.message
    if verdict is not None and verdict.stalled:
        return verdict.explanation.reason, verdict.explanation.message
    for replica in replicas:
        current = not model.revision or replica.revision == model.revision
        if current and replica.error is not None and replica.error.reason in LASTING and not replica.resident:
            return replica.error.reason, replica.error.message
    return None


def _reconciling(model: Model, replicas: Sequence[Replica]) -> tuple[str, str] | None:
    if model.footprint is None:
        return reasons.ESTIMATING, "The memory that it needs is being found out."
    old = [each for each in replicas if model.revision and each.revision != model.revision and not each.deleting]
    if old:
        return reasons.ROLLING_OUT, f"{plural(len(old), 'replica')} of an older revision to replace."
    return None


def _ready(model: Model, replicas: Sequence[Replica], stalled: tuple[str, str] | None, verdict: Verdict | None) -> tuple[str, str, str]:
    if stalled is not None:
        return FALSE, *stalled
    if model.footprint is None:
        return UNKNOWN, reasons.ESTIMATING, "The memory that it needs is being found out."
    failing = [each for each in model.backoff if each.failures > 1 or each.reason != reasons.OUT_OF_MEMORY]
    if failing and not any(_serves(each) for each in replicas):
        worst = max(failing, key=lambda each: (each.until, each.node))
        return FALSE, worst.reason, worst.message
    if verdict is not None and verdict.explanation.reason == reasons.BACKING_OFF:
        return FALSE, reasons.BACKING_OFF, verdict.explanation.message
    return TRUE, reasons.READY, "It is served: at once when it is loaded, else as soon as a request has woken it."


def _estimated(model: Model) -> tuple[str, str, str]:
    if model.footprint is not None:
        # Where it will run is not known: what a GPU takes on top of this is told when a place is weighed.
        total = quantity(own_need(model))
        return TRUE, reasons.ESTIMATED, f"Needs {total}: weights {quantity(model.footprint.weights)}, KV cache {quantity(model.footprint.kv)}."
    if model.blocked is not None:
        return FALSE, reasons.ESTIMATE_FAILED, model.blocked.message
    return UNKNOWN, reasons.ESTIMATING, "The memory that it needs is being found out."


def _placed(replicas: Sequence[Replica]) -> tuple[str, str, str]:
    placed = sorted({each.node for each in replicas if each.devices and not each.deleting})
    if placed:
        return TRUE, reasons.PLACED, f"On {', '.join(placed)}."
    return FALSE, reasons.NOT_PLACED, "It has no replica; a request makes one."


def _loaded(replicas: Sequence[Replica], explanation: Explanation, model: Model) -> tuple[str, str, str]:
    if any(_serves(each) for each in replicas):
        own = rest_of(model, [each for each in replicas if _serves(each)])
        waits = explanation.reason in (reasons.WAITING_FOR_MEMORY, reasons.WAITING_FOR_TURN)
        return TRUE, reasons.LOADED, own.message + (f" One more replica waits: {explanation.message}" if waits else "")
    return FALSE, explanation.reason, explanation.message


def _serves(replica: Replica) -> bool:
    return replica.state is ReplicaState.LOADED


def summary(model: Model, replicas: Sequence[Replica], verdict: Verdict | None) -> Mapping[str, Any]:
    """The figures of the status beside the conditions; times as float seconds, to be rendered at the edge."""
    explanation = verdict.explanation if verdict is not None else rest_of(model, replicas)
    loaded = [each for each in replicas if _serves(each)]
    state = reasons.LOADED if loaded else explanation.reason
    footprint = model.footprint
    result: dict[str, Any] = {
        "replicas": len(replicas),
        "loadedReplicas": len(loaded),
        "sleepingReplicas": sum(1 for each in replicas if each.state is ReplicaState.SLEEPING),
        "state": state,
        "nodes": sorted({each.node for each in loaded}),
        "placements": [
            {"replica": each.name, "node": each.node, "devices": [key.id for key in each.devices], "state": str(each.state), "since": each.loaded_at}
            for each in sorted(replicas, key=lambda each: each.name)
        ],
        "lastUsed": max((each.last_used for each in replicas), default=0.0) or None,
        "explanation": explanation.as_json(),
    }
    if footprint is not None:
        result["memory"] = {
            "estimated": {
                "weights": footprint.weights,
                "kvCache": footprint.kv,
                "compute": footprint.compute,
                "overhead": footprint.overhead,
                "total": footprint.estimated,
            },
            "measured": footprint.measured or None,
        }
    return result


def to_write(before: Iterable[Condition], after: Sequence[Condition], last_write: float, now: float) -> bool:
    """Whether the new conditions are worth a write: at once when more than a message changed, every ten seconds for a message alone."""
    old = {each.type: each for each in before}
    words = 0
    for each in after:
        was = old.get(each.type)
        if was is None or (was.status, was.reason, was.observed_generation) != (each.status, each.reason, each.observed_generation):
            return True
        words += was.message != each.message
    return words > 0 and now - last_write >= MESSAGE_EVERY
