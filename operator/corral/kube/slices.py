"""What DRA drivers publish: ResourceSlices put together to whole pools, and DeviceClasses as far as they can be read.

Pure: objects in, devices out. A pool counts only while all its slices are there at their highest generation; in between, what it was before stays
true. A class's CEL is not evaluated: driver and plain attribute comparisons are understood, the rest is the scheduler's, who has the last word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from corral.kube.client import Resource
from corral.kube.quantity import whole
from corral.kube.watch import Object

RESOURCE_SLICES = Resource("resource.k8s.io", "v1", "resourceslices", "ResourceSlice", namespaced=False)
DEVICE_CLASSES = Resource("resource.k8s.io", "v1", "deviceclasses", "DeviceClass", namespaced=False)

PRODUCT_NAMES = ("productName", "model", "product")
# By these a device can be told from all others of its node; a bus address repeats on other nodes, where the pod's affinity keeps it from going.
PINS = ("uuid", "resource.kubernetes.io/pciBusID", "pciAddr")


class Triple(NamedTuple):
    """The only name of a device that is unique in the cluster."""

    driver: str
    pool: str
    device: str

    def __str__(self) -> str:
        return "/".join(self)


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One device of a slice. `pin`: the attribute and the value that single it out, empty when nothing does."""

    triple: Triple
    node: str
    memory: int
    product: str = ""
    pin: tuple[str, str] = ("", "")
    taints: tuple[tuple[str, str], ...] = ()  # key, effect
    shared: bool = False  # several claims may be allocated on it
    attributes: Mapping[str, Any] = field(default_factory=dict, compare=False)  # by qualified name

    @property
    def id(self) -> str:
        """The uuid when it has one: what everybody else calls it. Else the triple."""
        return self.pin[1] if self.pin[0] == "uuid" and self.pin[1] else str(self.triple)

    def selector(self) -> str:
        """CEL that is true of this device alone among those that its node has, and that no missing attribute can break."""
        domain, _, name = self.pin[0].rpartition("/")
        return f'device.attributes["{domain or self.triple.driver}"].?{name}.orValue("") == {json.dumps(self.pin[1])}'


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """What of a DeviceClass's selectors is understood."""

    drivers: tuple[str, ...] = ()
    equal: tuple[tuple[str, str, str], ...] = ()  # domain, attribute, value

    def takes(self, device: GpuDevice) -> bool:
        if self.drivers and device.triple.driver not in self.drivers:
            return False
        if any(str(device.attributes.get(f"{domain}/{name}", "")) != value for domain, name, value in self.equal):
            return False
        # Partitions and passed-through functions share memory with the whole device; only a class that names the type means them.
        kind = device.attributes.get(f"{device.triple.driver}/type", "gpu")
        return kind == "gpu" or any(name == "type" for _, name, _ in self.equal)


_DRIVER = re.compile(r"""device\.driver\s*==\s*(["'])([^"']+)\1""")
_EQUAL = re.compile(r"""device\.attributes\[(["'])([^"']+)\1\]\.(\w+)\s*==\s*(["'])([^"']*)\4""")


def class_facts(obj: Mapping[str, Any]) -> ClassFacts:
    drivers: list[str] = []
    equal: list[tuple[str, str, str]] = []
    for selector in (obj.get("spec") or {}).get("selectors") or []:
        text = str((selector.get("cel") or {}).get("expression", ""))
        if "||" in text or "!" in text.replace("!=", ""):
            continue  # not a plain conjunction: it says less than its parts
        drivers += [found[2] for found in _DRIVER.finditer(text)]
        equal += [(found[2], found[3], found[5]) for found in _EQUAL.finditer(text)]
    return ClassFacts(tuple(drivers), tuple(equal))


def trim_slice(obj: Object) -> Object:
    spec = obj.get("spec") or {}
    kept = {key: spec.get(key) for key in ("driver", "nodeName", "pool", "devices")}
    return {"metadata": {"name": obj["metadata"]["name"], "uid": obj["metadata"].get("uid", "")}, "spec": kept}


def devices_of(obj: Mapping[str, Any]) -> tuple[GpuDevice, ...]:
    """The devices of one slice that have memory."""
    spec = obj["spec"]
    driver, pool, node = str(spec["driver"]), str(spec["pool"]["name"]), str(spec.get("nodeName") or "")
    found = []
    for item in spec.get("devices") or []:
        memory = _qualified(item.get("capacity") or {}, driver).get(f"{driver}/memory") or {}
        size = whole(memory.get("value"))
        if size:
            attributes = {name: _plain(value) for name, value in _qualified(item.get("attributes") or {}, driver).items()}
            found.append(
                GpuDevice(
                    triple=Triple(driver, pool, str(item["name"])),
                    node=node,
                    memory=size,
                    product=next((str(attributes[key]) for name in PRODUCT_NAMES if (key := f"{driver}/{name}") in attributes), ""),
                    pin=_pin(attributes, driver),
                    taints=tuple((str(taint.get("key", "")), str(taint.get("effect", ""))) for taint in item.get("taints") or []),
                    shared=bool(item.get("allowMultipleAllocations")),
                    attributes=attributes,
                )
            )
    return tuple(found)


def _qualified(named: Mapping[str, Any], driver: str) -> dict[str, Any]:
    """A name without a domain belongs to the driver's."""
    return {name if "/" in name else f"{driver}/{name}": value for name, value in named.items()}


def _plain(attribute: Any) -> Any:
    return next(iter(attribute.values()), "") if isinstance(attribute, Mapping) else attribute


def _pin(attributes: Mapping[str, Any], driver: str) -> tuple[str, str]:
    for name in PINS:
        value = attributes.get(name if "/" in name else f"{driver}/{name}")
        if value:
            return name, str(value)
    return "", ""


class SliceBook:
    """All slices of single nodes; `of(node)` is what is whole there now."""

    def __init__(self) -> None:
        self._slices: dict[str, tuple[str, str, int, int, tuple[GpuDevice, ...], str]] = {}  # name -> driver, pool, generation, count, devices, node
        self._pools: dict[tuple[str, str], set[str]] = {}
        self._whole: dict[tuple[str, str], tuple[GpuDevice, ...]] = {}
        self._nodes: dict[str, set[tuple[str, str]]] = {}

    def of(self, node: str) -> Sequence[GpuDevice]:
        return [device for key in sorted(self._nodes.get(node, ())) for device in self._whole.get(key, ()) if device.node == node]

    def nodes(self) -> set[str]:
        return set(self._nodes)

    def put(self, obj: Mapping[str, Any]) -> set[str]:
        """The nodes whose devices may have changed."""
        spec, name = obj["spec"], str(obj["metadata"]["name"])
        node, pool = str(spec.get("nodeName") or ""), spec.get("pool") or {}
        touched = self.remove(name, settle=False)
        if not node:
            return self._settle(touched)  # devices of several nodes: none of a GPU's kind
        key = (str(spec["driver"]), str(pool.get("name", "")))
        self._slices[name] = (*key, int(pool.get("generation") or 0), int(pool.get("resourceSliceCount") or 0), devices_of(obj), node)
        self._pools.setdefault(key, set()).add(name)
        self._nodes.setdefault(node, set()).add(key)
        return self._settle({*touched, key}) | {node}

    def remove(self, name: str, *, settle: bool = True) -> set[Any]:
        old = self._slices.pop(name, None)
        if old is None:
            return set()
        key = old[:2]
        self._pools[key].discard(name)
        return ({old[5]} | self._settle({key})) if settle else {key}

    def _settle(self, keys: set[tuple[str, str]]) -> set[str]:
        touched: set[str] = set()
        for key in keys:
            names = self._pools.get(key, set())
            slices = [self._slices[name] for name in sorted(names)]
            newest = max((each[2] for each in slices), default=0)
            current = [each for each in slices if each[2] == newest]
            if slices and len(current) != current[0][3]:
                continue  # half published: what it was before stays true
            before = self._whole.get(key, ())
            self._whole[key] = tuple(device for each in current for device in each[4])
            touched |= {device.node for device in (*before, *self._whole[key])}
            if not slices:
                del self._whole[key], self._pools[key]
                for node in touched:
                    self._nodes.get(node, set()).discard(key)
        return touched
