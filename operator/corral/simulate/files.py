"""A scenario as people write it, read into values: quantities as `24Gi`, times as `30s`. Errors name the field and what it may be."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from corral.domain.model import Policy, Pool
from corral.simulate.scenario import GI, Fault, ModelSpec, NodeSpec, RequestSpec, Scenario

UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
FAULTS = frozenset(
    {
        "operator-crash",
        "operator-freeze",
        "gateway-crash",
        "node-partition",
        "node-lost",
        "pod-crash",
        "pod-deleted",
        "engine-crash",
        "supervisor-silent",
        "respec",
        "delete-model",
        "create-model",
        "cordon",
        "slow-watch",
        "wish-load",
        "wish-unload",
    }
)


class ScenarioError(ValueError):
    """What is wrong with the file, and what would be right."""


def quantity(value: Any, where: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]i|[kMGT])?", str(value))
    if found is None:
        raise ScenarioError(f"{where}: {value!r} is no quantity; write bytes as 24Gi or 500Mi")
    return int(float(found[1]) * UNITS[found[2] or ""])


def duration(value: Any, where: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", str(value))
    if found is None:
        raise ScenarioError(f"{where}: {value!r} is no duration; write 30s, 5m or 250ms")
    return float(found[1]) * SECONDS[found[2] or "s"]


def number(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ScenarioError(f"{where}: {value!r} is no whole number")
    return value


def flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ScenarioError(f"{where}: {value!r} is neither true nor false")
    return value


def share(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ScenarioError(f"{where}: {value!r} is no share from 0 to 1")
    return float(value)


def policy(value: Any, where: str) -> str:
    names = [str(each) for each in Policy]
    if value not in names:
        raise ScenarioError(f"{where}: {value!r} is no policy; there are {', '.join(names)}")
    return str(value)


Reader = Callable[[Any, str], Any]

POOL: Mapping[str, tuple[str, Reader]] = {
    "maxModelsPerDevice": ("max_models_per_device", number),
    "policy": ("policy", policy),
    "minResidency": ("min_residency", duration),
    "drainTimeout": ("drain_timeout", duration),
    "maxWait": ("max_wait", duration),
    "turn": ("turn", duration),
    "holdTimeout": ("hold_timeout", duration),
}
MODEL: Mapping[str, tuple[str, Reader]] = {
    "size": ("size", quantity),
    "estimated": ("estimated", quantity),
    "layers": ("layers", number),
    "namespace": ("namespace", lambda value, _: str(value)),
    "priority": ("priority", number),
    "pinned": ("pinned", flag),
    "minReplicas": ("min_replicas", number),
    "maxReplicas": ("max_replicas", number),
    "targetInFlight": ("target_in_flight", number),
    "maxDevices": ("max_devices", number),
    "sleepAfter": ("sleep_after", duration),
    "stopAfter": ("stop_after", duration),
    "load": ("load", duration),
    "download": ("download", duration),
    "residue": ("residue", quantity),
    "loadFailures": ("load_failures", share),
    "created": ("created", duration),
}


def read(document: Any, seed: int | None = None) -> Scenario:
    """A scenario from a parsed YAML document; `seed` overrides the file's."""
    top = _mapping(document, "the scenario", {"seed", "until", "gateways", "pool", "nodes", "models", "traffic", "faults"})
    chosen = number(top.get("seed", 1), "seed") if seed is None else seed
    until = duration(top.get("until", "300s"), "until")
    models = tuple(_model(each, f"models[{at}]") for at, each in enumerate(_list(top.get("models"), "models")))
    if not models:
        raise ScenarioError("models: at least one is needed, such as {name: small, size: 2Gi}")
    keys = {each.name: each.key for each in models} | {each.key: each.key for each in models}
    requests = [
        request for at, each in enumerate(_list(top.get("traffic"), "traffic")) for request in _traffic(each, f"traffic[{at}]", keys, until, chosen)
    ]
    nodes = tuple(_node(each, f"nodes[{at}]") for at, each in enumerate(_list(top.get("nodes"), "nodes")))
    if not nodes:
        raise ScenarioError("nodes: at least one is needed, such as {name: gpu-1, devices: {GPU-1: 24Gi}}")
    names = {each.name for each in nodes}
    faults = tuple(_fault(each, f"faults[{at}]", keys, names) for at, each in enumerate(_list(top.get("faults"), "faults")))
    return Scenario(
        seed=chosen,
        nodes=nodes,
        models=models,
        requests=tuple(sorted(requests, key=lambda each: (each.at, each.model))),
        faults=tuple(sorted(faults, key=lambda each: each.at)),
        pool=Pool("default", **_fields(top.get("pool") or {}, "pool", POOL)),
        until=until,
        gateways=number(top.get("gateways", 1), "gateways"),
    )


def _mapping(value: Any, where: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ScenarioError(f"{where}: {value!r} is no mapping")
    unknown = sorted(set(map(str, value)) - known)
    if unknown:
        raise ScenarioError(f"{where}: there is no field {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return value


def _list(value: Any, where: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ScenarioError(f"{where}: {value!r} is no list")
    return value


def _fields(value: Any, where: str, known: Mapping[str, tuple[str, Reader]]) -> dict[str, Any]:
    found = _mapping(value, where, set(known))
    return {known[name][0]: known[name][1](each, f"{where}.{name}") for name, each in found.items()}


def _needed(found: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in found:
        raise ScenarioError(f"{where}: {name} is missing")
    return found[name]


def _node(value: Any, where: str) -> NodeSpec:
    found = _mapping(value, where, {"name", "devices", "margin", "labels", "sharedCache"})
    devices = _needed(found, "devices", where)
    if not isinstance(devices, Mapping) or not devices:
        raise ScenarioError(f"{where}.devices: {devices!r} is no mapping of device names to sizes, such as {{GPU-1: 24Gi}} or {{host: 16Gi}}")
    sizes = {str(name): quantity(size, f"{where}.devices.{name}") for name, size in devices.items()}
    margin = quantity(found["margin"], f"{where}.margin") if "margin" in found else GI
    labels = {str(name): str(each) for name, each in (found.get("labels") or {}).items()}
    return NodeSpec(str(_needed(found, "name", where)), sizes, margin, labels, flag(found.get("sharedCache", False), f"{where}.sharedCache"))


def _model(value: Any, where: str) -> ModelSpec:
    found = dict(_mapping(value, where, {*MODEL, "name"}))
    name = str(_needed(found, "name", where))
    _needed(found, "size", where)
    found.pop("name")
    return ModelSpec(name=name, **_fields(found, where, MODEL))


def _traffic(value: Any, where: str, keys: Mapping[str, str], until: float, seed: int) -> list[RequestSpec]:
    """One request (`at`), or a stream of them (`from`, `until`, and `every` or `about`, which is random with that mean)."""
    found = _mapping(value, where, {"model", "at", "from", "until", "every", "about", "service", "patience", "retry", "count"})
    model = _key(_needed(found, "model", where), f"{where}.model", keys)
    service = duration(found.get("service", "1s"), f"{where}.service")
    patience = duration(found.get("patience", "10m"), f"{where}.patience")
    retry = flag(found.get("retry", False), f"{where}.retry")
    count = number(found.get("count", 1), f"{where}.count")
    if "at" in found:
        times = [duration(found["at"], f"{where}.at")]
    else:
        if ("every" in found) == ("about" in found):
            raise ScenarioError(f"{where}: either at, or one of every and about is needed")
        gap = duration(found.get("every", found.get("about")), f"{where}.every")
        if gap <= 0:
            raise ScenarioError(f"{where}: the time between requests has to be more than 0s")
        at, end = duration(found.get("from", "0s"), f"{where}.from"), duration(found.get("until", f"{until}s"), f"{where}.until")
        chance = random.Random(f"{seed} {where}")
        times = []
        while at < end:
            times.append(at)
            at += gap if "every" in found else chance.expovariate(1 / gap)
    return [RequestSpec(at, model, service, patience, retry) for at in times for _ in range(count)]


def _fault(value: Any, where: str, keys: Mapping[str, str], nodes: set[str]) -> Fault:
    found = _mapping(value, where, {"at", "kind", "target", "seconds"})
    kind = str(_needed(found, "kind", where))
    if kind not in FAULTS:
        raise ScenarioError(f"{where}.kind: there is no fault {kind!r}; there are {', '.join(sorted(FAULTS))}")
    target = str(found.get("target", ""))
    if kind in ("node-partition", "node-lost", "cordon") and target not in nodes:
        raise ScenarioError(f"{where}.target: there is no node {target!r}; there are {', '.join(sorted(nodes))}")
    if kind in ("respec", "delete-model", "create-model", "wish-load", "wish-unload"):
        target = _key(target, f"{where}.target", keys)
    if kind in ("pod-crash", "pod-deleted", "engine-crash", "supervisor-silent") and not target.isdigit():
        target = "0"
    return Fault(duration(_needed(found, "at", where), f"{where}.at"), kind, target, duration(found.get("seconds", "5s"), f"{where}.seconds"))


def _key(value: Any, where: str, keys: Mapping[str, str]) -> str:
    if str(value) not in keys:
        raise ScenarioError(f"{where}: there is no model {value!r}; there are {', '.join(sorted({*keys}))}")
    return keys[str(value)]
