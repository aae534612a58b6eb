"""What a request for a model at rest would meet now: from the objects alone, for people who ask. The decision itself is the operator's, at that time.

Pure: it reads the model, its pool's status and the other models' placements, and must never be a source of truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from corral.api.types import parse_quantity

Object = Mapping[str, Any]

LISTED = 4


def forecast(model: Object, pools: Sequence[Object], models: Sequence[Object]) -> Iterator[str]:
    """Nothing when its footprint, or a device of its pool, is not known."""
    needed = _bytes((_status(model).get("memory") or {}).get("required"))
    name = (model.get("spec") or {}).get("pool", "default")
    pool: Object = next((found for found in pools if found["metadata"]["name"] == name), {})
    devices = _status(pool).get("devices") or []
    if not needed or not devices:
        return
    need = f"needs {_status(model)['memory']['required']}"
    fitting = [device for device in devices if _free(device, model) >= needed]
    if fitting:
        best = min(fitting, key=lambda device: (_free(device, model), _place(device)))
        yield f"  a request would load it now: {need}; {_place(best)} has {_told(best)}"
        return
    large = [device for device in devices if _bytes(device.get("capacity")) >= needed]
    yield f"  a request would have to make room: {need}"
    for device in sorted(large, key=lambda device: (-_free(device, model), _place(device)))[:LISTED]:
        yield f"    {_place(device)} has {_told(device)}{_there(device, model, models)}"
    if len(large) > LISTED:
        yield f"    and {len(large) - LISTED} more devices"


def _there(device: Object, model: Object, models: Sequence[Object]) -> str:
    found = []
    for other in models:
        for placed in _status(other).get("placements") or ():
            if other is not model and placed.get("state") != "Sleeping" and _is_on(placed, device):
                pinned = ", pinned" if (other.get("spec") or {}).get("pinned") else ""
                found.append(f"{other['metadata']['name']} ({placed.get('state')}{pinned})")
    return f"; there: {', '.join(sorted(found))}" if found else ""


def _free(device: Object, model: Object) -> int:
    """What it would find: its own residue, where it sleeps on host memory, becomes part of it."""
    status = _status(model)
    asleep = any(placed.get("state") == "Sleeping" and _is_on(placed, device) for placed in status.get("placements") or ())
    residue = _bytes(((status.get("memory") or {}).get("measured") or {}).get("residue")) if asleep and device.get("id") == "host" else 0
    return _bytes(device.get("free")) + residue


def _is_on(placed: Object, device: Object) -> bool:
    return placed.get("node") == device.get("node") and device.get("id") in (placed.get("devices") or ["host"])


def _told(device: Object) -> str:
    return f"{device.get('free')} free of {device.get('capacity')}, margin taken off, {device.get('committed')} committed"


def _place(device: Object) -> str:
    return str(device.get("node")) if device.get("id") == "host" else f"{device.get('node')}/{device.get('id')}"


def _bytes(text: Any) -> int:
    try:
        return parse_quantity(text) if text else 0
    except ValueError:
        return 0


def _status(obj: Object) -> Object:
    found = obj.get("status")
    return found if isinstance(found, Mapping) else {}
