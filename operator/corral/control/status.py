"""What a status says: facts, replicas, verdict and conditions, in the shape of the API. Rendering only; `reporting` writes it.

Times are absolute and bytes rounded, so that a status at rest never changes by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from corral.api import ModelPool
from corral.api.mdstatus import ModelDeploymentStatus
from corral.api.modelpool import ModelPoolStatus
from corral.control.facts import NEVER, Facts, LoadTimes
from corral.control.observation import rfc3339
from corral.control.pods import Pod
from corral.control.settings import ControlSettings
from corral.control.translate import Deployment
from corral.domain import reasons
from corral.domain.conditions import Condition
from corral.domain.model import HOST_ID, ReplicaState
from corral.domain.plan import Explanation
from corral.domain.snapshot import State
from corral.kube.ports import MODEL_LABEL

MINUTE = 60.0
LISTED_DEVICES = 512
LISTED_OVERLAPS = 8


def whole(seconds: float) -> str:
    return rfc3339(float(int(seconds)))


def exact(seconds: float) -> str:
    """To the millisecond, as the API keeps it."""
    return rfc3339(round(seconds, 3))


def conditions_json(
    found: Iterable[Condition], previous: Sequence[Mapping[str, Any]], generation: int, now: float, remark: str = ""
) -> list[dict[str, Any]]:
    """`lastTransitionTime` moves only when the status does. `remark`: what `Ready` adds to what it says."""
    before = {str(it.get("type")): it for it in previous}
    rendered = []
    for condition in found:
        old = before.get(condition.type)
        since = old["lastTransitionTime"] if old is not None and old.get("status") == condition.status else whole(now)
        rendered.append(
            {
                "type": condition.type,
                "status": condition.status,
                "observedGeneration": generation,
                "lastTransitionTime": since,
                "reason": condition.reason,
                "message": f"{condition.message} {remark}" if remark and condition.type == "Ready" else condition.message,
            }
        )
    return rendered


def model_status(
    deployment: Deployment,
    facts: Facts,
    pods: Sequence[Pod],
    conditions: list[dict[str, Any]],
    explanation: Explanation | None,
    served: Sequence[str],
    settings: ControlSettings,
    former: Mapping[str, Any],
) -> dict[str, Any]:
    here = sorted((pod for pod in pods if not pod.gone), key=lambda pod: pod.record.name)
    loaded = sum(1 for pod in here if pod.state is ReplicaState.LOADED)
    status: dict[str, Any] = {
        "observedGeneration": deployment.parsed.metadata.generation,
        "conditions": conditions,
        "replicas": len(here),
        "loadedReplicas": loaded,
        "sleepingReplicas": sum(1 for pod in here if pod.state is ReplicaState.SLEEPING),
        "selector": f"{MODEL_LABEL}={deployment.parsed.metadata.name}",
        "memory": _memory(facts, settings),
        "placements": [_placement(pod, former) for pod in here],
        "servedNames": list(served),
        "lastUsed": whole(facts.last_used - facts.last_used % MINUTE) if facts.last_used else None,
        "lastLoad": _last_load(facts.last_load),
        "evictions": facts.evictions,
        "turns": facts.turns or None,
        "explanation": _explanation(explanation) if explanation is not None and not loaded else None,
        "backoff": [it.dump() for it in facts.backoff_status()] or None,
        "wish": {"id": facts.wish[0], "action": facts.wish[1], "gateway": facts.wish[2]} if facts.wish else None,
        "estimate": _estimate(deployment, facts),
        "queueSince": exact(facts.queue_since) if facts.queue_since is not None else None,
        "queueUntil": exact(facts.queue_until) if facts.queue_until is not None else None,
    }
    return ModelDeploymentStatus.model_validate(_present(status)).dump()


def unreadable_status(generation: int, conditions: list[dict[str, Any]], former: Mapping[str, Any]) -> dict[str, Any]:
    """Of an object that cannot be read only that is said; what is known from before stays."""
    return {**former, "observedGeneration": generation, "conditions": conditions}


def _present(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def _memory(facts: Facts, settings: ControlSettings) -> dict[str, Any] | None:
    memory: dict[str, Any] = {}
    if facts.estimate is not None:
        found = facts.estimate
        parts = {key: int(found.get(key) or 0) for key in ("weights", "kvCache", "compute", "overhead")}
        memory["estimated"] = {**parts, "total": sum(parts.values())}
        footprint = facts.footprint(settings)
        memory["required"] = max(footprint.estimated, footprint.measured) if footprint is not None else None
    if facts.measured:
        use = facts.measured
        memory["measured"] = {"weights": use["weights"], "kvCache": use["kv"], "compute": use["compute"], "total": max(use["total"], facts.required)}
        if facts.residue:
            memory["measured"]["residue"] = facts.residue
    return _present(memory) or None


def _placement(pod: Pod, former: Mapping[str, Any]) -> dict[str, Any]:
    record = pod.record
    devices = [] if record.devices == (HOST_ID,) else list(record.devices)
    since = whole(pod.since or record.created)
    if not pod.since:
        same = (it for it in former.get("placements") or () if (it.get("replica"), it.get("state")) == (record.name, pod.state.value))
        since = next((it["since"] for it in same if it.get("since")), since)
    return {"replica": record.name, "node": record.node, "devices": devices, "state": pod.state.value, "since": since}


def _last_load(load: LoadTimes | None) -> dict[str, Any] | None:
    if load is None:
        return None
    return {"total": _duration(load.total), **{phase: _duration(seconds) for phase, seconds in load.phases.items()}}


def _duration(seconds: float) -> timedelta:
    return timedelta(milliseconds=round(max(0.0, seconds) * 1000))


def _estimate(deployment: Deployment, facts: Facts) -> dict[str, Any] | None:
    made_for = {"source": deployment.parsed.spec.model.source, "settings": deployment.estimate_key}
    if facts.estimate is not None:
        return _present({**facts.estimate, **made_for, "at": exact(facts.estimated_at) if facts.estimated_at else None})
    if facts.blocked is not None:
        failure = facts.blocked
        return {"ok": False, **made_for, "reason": failure.reason, "message": failure.message, "retry": failure.until != NEVER}
    return None


def _explanation(found: Explanation) -> dict[str, Any]:
    told = found.as_json()
    candidates = []
    for candidate in told["candidates"]:
        refused = [
            _present({"model": it["model"], "reason": it["reason"], "until": whole(it["until"]) if it["until"] else None})
            for it in candidate["refused"]
        ]
        bytes_of = {key: max(0, candidate[key]) for key in ("capacity", "free", "margin", "need", "freeable")}
        candidates.append({"node": candidate["node"], "devices": candidate["devices"], **bytes_of, "refused": refused})
    following = told["next"]
    return _present(
        {
            "reason": told["reason"],
            "message": told["message"],
            "need": told["need"] or None,
            "candidates": candidates,
            "more": told["more"],
            "next": _present({"at": whole(following["at"]) if following["at"] else None, "what": following["what"]}) if following else None,
        }
    )


def pool_conditions(pool: ModelPool, state: State, overlaps: Mapping[str, str], former: Mapping[str, Any], now: float) -> list[dict[str, Any]]:
    """`Ready`: the pool has a device. `Overlapping`: nodes that it selects belong to another pool (`overlaps`: node -> whose)."""
    nodes = {key.node for key in state.by_pool.get(pool.metadata.name, ())}
    ready = Condition(
        "Ready",
        "True" if nodes else "False",
        reasons.READY if nodes else reasons.NO_DEVICES,
        f"It has devices on {len(nodes)} node{'s' if len(nodes) != 1 else ''}." if nodes else "No node of it has a device that models can use.",
        now,
        pool.metadata.generation,
    )
    found = [ready]
    if overlaps:
        found.append(_overlapping(pool, overlaps, now))
    return conditions_json(found, former.get("conditions") or (), pool.metadata.generation, now)


def _overlapping(pool: ModelPool, overlaps: Mapping[str, str], now: float) -> Condition:
    shown = ", ".join(f"{node} to {overlaps[node]}" for node in sorted(overlaps)[:LISTED_OVERLAPS])
    more = f" and {len(overlaps) - LISTED_OVERLAPS} more" if len(overlaps) > LISTED_OVERLAPS else ""
    message = f"Nodes that spec.nodeSelector matches belong to other pools: {shown}{more}. Let the selectors not overlap."
    return Condition(reasons.OVERLAPPING, "True", reasons.OVERLAPPING, message, now, pool.metadata.generation)


def pool_status(pool: ModelPool, state: State, models: int, conditions: list[dict[str, Any]]) -> dict[str, Any]:
    """A pool's devices as the decision counts them."""
    name = pool.metadata.name
    devices, capacity, committed, free, nodes = [], 0, 0, 0, set()
    for key in state.by_pool.get(name, ()):
        device = state.devices[key]
        used = state.used.get(key, 0)
        left = max(0, device.usable - used)
        capacity, committed, free = capacity + device.capacity, committed + used, free + left
        nodes.add(key.node)
        resident = {state.replicas[it].model for it in state.by_device.get(key, ()) if state.replicas[it].committed.get(key)}
        devices.append(
            {
                "node": key.node,
                "id": key.id,
                "product": device.product,
                "capacity": device.capacity,
                "committed": used,
                "free": left,
                "models": len(resident),
            }
        )
    return ModelPoolStatus.model_validate(
        {
            "observedGeneration": pool.metadata.generation,
            "conditions": conditions,
            "nodes": len(nodes),
            "deviceCount": len(devices),
            "capacity": capacity,
            "committed": committed,
            "free": free,
            "models": models,
            "devices": devices[:LISTED_DEVICES],
        }
    ).dump()
