"""What the command line prints of ModelDeployments and ModelPools: from the objects alone, the same on a laptop and on a cluster.

Pure: objects and a time go in, tables and text come out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.text import Text

from corral.domain import reasons
from corral.forecast import forecast

Object = Mapping[str, Any]

COLOURS = {
    reasons.LOADED: "green",
    reasons.LOADING: "yellow",
    reasons.DRAINING: "yellow",
    reasons.WAITING_FOR_MEMORY: "magenta",
    reasons.WAITING_FOR_TURN: "magenta",
    reasons.DOES_NOT_FIT: "red",
}
NONE = ""


def age(seconds: float) -> str:
    """As kubectl prints ages."""
    seconds = max(int(seconds), 0)
    for limit, size, unit in ((120, 1, "s"), (120 * 60, 60, "m"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds // size}{unit}"
    return f"{seconds // 86400}d"


def condition(obj: Object, kind: str) -> Object:
    return next((found for found in _status(obj).get("conditions", []) if found.get("type") == kind), {})


def state_of(model: Object) -> str:
    """The one word for what a model does now: why it cannot be served, else the reason of its residency."""
    stalled = condition(model, "Stalled")
    if stalled.get("status") == "True":
        return str(stalled.get("reason", NONE))
    return str(condition(model, "Loaded").get("reason", NONE))


Cell = str | Text


def models_table(models: Sequence[Object], now: float, *, namespaces: bool) -> Iterator[Text]:
    """The columns of `kubectl get md`."""
    names = ["NAME", "READY", "STATE", "REPLICAS", "LOADED", "NODE", "MEMORY", "LASTUSED", "AGE"]
    rows: list[list[Cell]] = [["NAMESPACE", *names] if namespaces else list(names)]
    for model in models:
        status, metadata = _status(model), model["metadata"]
        state = state_of(model)
        nodes = sorted({placed.get("node", "") for placed in status.get("placements") or []} - {""})
        row: list[Cell] = [
            metadata["name"],
            str(condition(model, "Ready").get("status", "Unknown")),
            Text(state, style=COLOURS.get(state, NONE)),
            str(status.get("replicas", 0)),
            str(status.get("loadedReplicas", 0)),
            ",".join(nodes),
            str((status.get("memory") or {}).get("required", NONE)),
            _since(status.get("lastUsed"), now),
            _since(metadata.get("creationTimestamp"), now),
        ]
        rows.append([metadata.get("namespace", NONE), *row] if namespaces else row)
    return _aligned(rows)


AT_REST = frozenset({reasons.IDLE, reasons.SLEEPING})


def explanation(model: Object, now: float, pools: Sequence[Object] = (), models: Sequence[Object] = ()) -> Iterator[str]:
    """Why a model is where it is, line by line; of one at rest, with `pools` and `models`, also what a request would meet."""
    metadata, status = model["metadata"], _status(model)
    yield f"{metadata.get('namespace', '')}/{metadata['name']} is {state_of(model) or 'not looked at yet'}"
    for kind in ("Stalled", "Loaded", "Ready"):
        found = condition(model, kind)
        if found.get("message") and (kind == "Loaded" or found.get("status") == ("True" if kind == "Stalled" else "False")):
            yield f"  {kind}={found.get('status')} ({found.get('reason')}), {_since(found.get('lastTransitionTime'), now)} ago: {found['message']}"
    yield from _memory(status)
    for placed in status.get("placements") or []:
        yield f"  replica {placed['replica']} on {_place(placed)}: {placed['state']}, for {_since(placed.get('since'), now)}"
    told = status.get("explanation") or {}
    if told.get("candidates"):
        yield from _arithmetic(told, now)
    elif state_of(model) in AT_REST:
        yield from forecast(model, pools, models)
    load = status.get("lastLoad") or {}
    if load:
        phases = ", ".join(f"{name} {value}" for name, value in load.items() if name != "total")
        yield f"  its last load took {load.get('total')}{f' ({phases})' if phases else ''}"
    if status.get("evictions"):
        yield f"  evictions: {status['evictions']}"
    for backoff in status.get("backoff") or []:
        where = f"on {backoff['node']} " if backoff.get("node") else ""
        tries = f"{backoff.get('failures')} failures ({backoff.get('reason')})"
        yield f"  not tried again {where}before {_until(backoff.get('until'), now)}, after {tries}: {backoff.get('message', '')}"


def _memory(status: Object) -> Iterator[str]:
    memory = status.get("memory") or {}
    parts = {"weights": "weights", "kvCache": "KV cache", "compute": "compute buffers", "overhead": "overhead"}
    estimated, measured = memory.get("estimated") or {}, memory.get("measured") or {}
    if estimated:
        told = " + ".join(f"{label} {estimated[name]}" for name, label in parts.items() if name in estimated)
        yield f"  memory: {estimated.get('total')} estimated = {told}"
    if measured:
        yield f"  memory: {measured.get('total')} measured" + (f", {measured['residue']} of it stay while it sleeps" if "residue" in measured else "")


def _arithmetic(told: Object, now: float) -> Iterator[str]:
    if told.get("need"):
        yield f"  needs {told['need']}:"
    for found in told.get("candidates") or []:
        line = f"    {_place(found)}: {found.get('capacity', '?')} less {found.get('margin', '0')} margin"
        line += f", free {found.get('free', '?')}"
        if found.get("need"):
            line += f", needed {found['need']}"
        if found.get("freeable"):
            line += f", could free {found['freeable']}"
        yield line
        for refused in found.get("refused") or []:
            until = f" until {_until(refused['until'], now)}" if refused.get("until") else ""
            yield f"      {refused.get('model')} stays: {refused.get('reason')}{until}"
    if told.get("more"):
        yield f"    and {told['more']} more"
    following = told.get("next")
    if following:
        at = f" ({_until(following['at'], now)})" if following.get("at") else ""
        yield f"  next: {following.get('what', '')}{at}"


def devices_table(pools: Sequence[Object]) -> Iterator[Text]:
    rows: list[list[Cell]] = [["POOL", "NODE", "DEVICE", "CAPACITY", "COMMITTED", "FREE", "MODELS"]]
    for pool in pools:
        for device in _status(pool).get("devices") or []:
            told = (str(device.get(name, NONE)) for name in ("node", "id", "capacity", "committed", "free", "models"))
            rows.append([pool["metadata"]["name"], *told])
    return _aligned(rows)


def replicas_table(models: Sequence[Object], now: float) -> Iterator[Text]:
    rows: list[list[Cell]] = [["MODEL", "REPLICA", "NODE", "DEVICES", "STATE", "FOR", "MEMORY", "LASTUSED"]]
    for model in models:
        status = _status(model)
        rows += [
            [
                model["metadata"]["name"],
                placed["replica"],
                placed.get("node", NONE),
                ",".join(placed.get("devices") or []),
                Text(placed["state"], style=COLOURS.get(placed["state"], NONE)),
                _since(placed.get("since"), now),
                str((status.get("memory") or {}).get("required", NONE)),
                _since(status.get("lastUsed"), now),
            ]
            for placed in status.get("placements") or []
        ]
    return _aligned(rows)


def find_model(models: Sequence[Object], name: str) -> Object | None:
    """By `namespace/name`, by name, or by a name that it is served under."""
    for model in models:
        metadata = model["metadata"]
        if name in (f"{metadata.get('namespace', '')}/{metadata['name']}", metadata["name"]):
            return model
    return next((model for model in models if name in (_status(model).get("servedNames") or [])), None)


def _place(found: Object) -> str:
    """The node, and its devices where they have names."""
    devices = ", ".join(found.get("devices") or [])
    return f"{found.get('node', '?')} ({devices})" if devices else str(found.get("node", "?"))


def _status(obj: Object) -> Object:
    found = obj.get("status")
    return found if isinstance(found, Mapping) else {}


def _aligned(rows: Sequence[Sequence[Cell]]) -> Iterator[Text]:
    """Columns as kubectl sets them, never cut: whoever pipes them wants them whole. The first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        line = Text(style="bold" if number == 0 else NONE)
        for width, cell in zip(widths, row, strict=True):
            line.append(cell) if isinstance(cell, str) else line.append_text(cell)
            line.append(" " * (width - len(cell) + 3))
        line.rstrip()
        yield line


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _since(text: str | None, now: float) -> str:
    return age(now - _seconds(text)) if text else NONE


def _until(text: str | None, now: float) -> str:
    """An absolute time, and how far off it is."""
    if not text:
        return "an unknown time"
    left = _seconds(text) - now
    return f"{text} (in {left:.0f} s)" if left > 0 else f"{text} (now)"
