"""GPU nodes without DRA: what NVIDIA's feature discovery writes on the node as labels.

Labels tell how many GPUs of which size there are, and no uuid. So only a node with one GPU can be used by them alone (the node is the device); on a
node with several the pool's static list names the uuids. Foreign pods that ask the device plugin for a GPU close the node's devices: which one
they were given is not to be seen. Sharing by time slices is counted as one GPU, of which each pod requests a slice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from corral.api.modelpool import ModelPool
from corral.domain import reasons
from corral.domain.model import Device, DeviceKey, DeviceKind
from corral.kube.devices import GPU_TOLERATIONS, Binding, NodeFacts, device_of, visible
from corral.kube.foreign import Use

log = logging.getLogger(__name__)

MIB = 1 << 20
PREFIX = "nvidia.com/"
ONLY = "0"
"""The id of the one GPU of a node."""
SLICES = ("nvidia.com/gpu.shared", "nvidia.com/gpu")


def number(labels: Mapping[str, str], name: str, default: int = 0) -> int:
    text = labels.get(PREFIX + name, "")
    return int(text) if text.isdigit() else default


class DevicePlugin:
    name = "DevicePlugin"

    def __init__(self) -> None:
        self._sliced: dict[str, str] = {}  # by node: the extended resource of a slice
        self._told: set[str] = set()

    def inventory(self, node: NodeFacts, pool: ModelPool, foreign: Use) -> Sequence[Device] | None:
        self._sliced.pop(node.name, None)
        labels = node.labels
        count, memory = number(labels, "gpu.count"), number(labels, "gpu.memory") * MIB
        if not count or not memory:
            return None
        product = labels.get(f"{PREFIX}gpu.product", "").removesuffix("-SHARED")
        listed = [item for item in pool.spec.devices.static if item.node == node.name]
        if not listed and (count > 1 or labels.get(f"{PREFIX}mig.strategy", "none") not in {"none", ""}):
            self._warn(node.name, count)
            return None
        closed = reasons.FOREIGN_CLAIM if foreign.gpus else ""
        if listed:
            return tuple(
                device_of(node, pool, item.id, kind=DeviceKind.GPU, capacity=min(item.memory, memory), product=item.product or product, closed=closed)
                for item in listed
            )
        if number(labels, "gpu.replicas", 1) > 1:
            self._sliced[node.name] = next((name for name in SLICES if node.gpus.get(name)), SLICES[-1])
        return (device_of(node, pool, ONLY, kind=DeviceKind.GPU, capacity=memory, product=product, closed=closed),)

    def bind(self, namespace: str, devices: Sequence[DeviceKey], pool: ModelPool) -> Binding:  # noqa: ARG002 - as the Protocol has it
        sliced = self._sliced.get(devices[0].node)
        if sliced:
            return Binding(limits={sliced: "1"}, tolerations=GPU_TOLERATIONS, runtime_class=pool.spec.devices.runtime_class_name or "")
        return visible(devices, pool)

    def _warn(self, node: str, count: int) -> None:
        if node not in self._told:
            self._told.add(node)
            log.warning(
                "node %s has %d GPUs (or parts of GPUs) by its labels, which name no uuids: list them in the pool's devices.static to use them",
                node,
                count,
            )
