"""What the gateway sees of objects: a ModelDeployment with its pool becomes a `ModelView`, a server pod a `ReplicaView`. Pure.

It reads objects as they are stored, also ones that a newer or older version wrote: what is missing or odd has its default, and nothing raises.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from corral.api.effective import DEFAULT_POOL
from corral.api.types import parse_duration
from corral.domain import reasons
from corral.gateway.ports import Condition, Hold, ModelView, ReplicaView
from corral.kube.ports import PodRecord

Json = Mapping[str, Any]


def model_view(model: Json, pool: Json | None = None) -> ModelView:
    """`pool`: the ModelPool object that the model names, None when there is none."""
    metadata, spec, status = _part(model, "metadata"), _part(model, "spec"), _part(model, "status")
    conditions = tuple(_conditions(status))
    by_type = {item.type: item for item in conditions}
    loaded, ready, stalled = by_type.get("Loaded"), by_type.get("Ready"), by_type.get("Stalled")
    is_stalled = stalled is not None and stalled.status == "True"
    namespace, name = str(metadata.get("namespace", "")), str(metadata.get("name", ""))
    wish = _part(status, "wish").get("id")
    context = _part(status, "estimate").get("contextLength") or _part(spec, "engine").get("contextLength")
    return ModelView(
        namespace=namespace,
        name=name,
        served_names=tuple(status.get("servedNames") or (f"{namespace}/{name}",)),
        adapters=tuple(str(item.get("name", "")) for kind in ("adapters", "presets") for item in _part(spec, "engine").get(kind) or ()),
        aliases=tuple(spec.get("aliases") or ()),
        state=loaded.reason if loaded is not None and loaded.reason else reasons.IDLE,
        ready=None if ready is None or ready.status not in {"True", "False"} else ready.status == "True",
        reason=ready.reason if ready is not None else "",
        message=ready.message if ready is not None else "",
        stalled=is_stalled,
        stalled_reason=stalled.reason if stalled is not None and is_stalled else "",
        stalled_message=stalled.message if stalled is not None and is_stalled else "",
        conditions=conditions,
        explanation=status.get("explanation"),
        context_length=context if isinstance(context, int) else None,
        hold=_hold(pool),
        created=_seconds(metadata.get("creationTimestamp")),
        max_replicas=int(_part(spec, "scaling").get("maxReplicas") or 1),
        evictions=int(status.get("evictions") or 0),
        acknowledged_wish=wish if isinstance(wish, int) else None,
        placements=tuple((str(item.get("replica", "")), str(item.get("state", ""))) for item in status.get("placements") or ()),
    )


def replica_view(pod: PodRecord) -> ReplicaView:
    return ReplicaView(
        model=pod.model,
        pod=pod.name,
        uid=pod.uid,
        host=pod.host,
        inference_port=pod.inference_port,
        control_port=pod.control_port,
        deleting=pod.deleting,
        node=pod.node,
    )


def _part(obj: Json, name: str) -> Json:
    found = obj.get(name)
    return found if isinstance(found, Mapping) else {}


def _conditions(status: Json) -> list[Condition]:
    return [
        Condition(str(item.get("type", "")), str(item.get("status", "")), str(item.get("reason", "")), str(item.get("message", "")))
        for item in status.get("conditions") or ()
    ]


def _seconds(text: Any) -> int:
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except (TypeError, ValueError):
        return 0


def _hold(pool: Json | None) -> Hold:
    hold = _part(_part(pool or {}, "spec"), "hold")
    return _hold_of(hold.get("timeout"), hold.get("perModel"), hold.get("total"), hold.get("heartbeat"))


@functools.lru_cache(maxsize=256)
def _hold_of(timeout: str | None, per_model: int | None, total: int | None, heartbeat: str | None) -> Hold:
    """Few pools, many models: each combination is read once."""
    default = DEFAULT_POOL.spec.hold
    return Hold(
        timeout=_duration(timeout, default.timeout.total_seconds()),
        per_model=per_model or default.per_model,
        total=total or default.total,
        heartbeat=_duration(heartbeat, default.heartbeat.total_seconds()),
    )


def _duration(text: str | None, default: float) -> float:
    try:
        return parse_duration(text).total_seconds() if text else default
    except ValueError:
        return default
