"""Ways of knowing a node's devices and of binding a pod to them, one backend each.

A backend reads facts and answers: the devices of a node, or None when it knows nothing of it; and what a pod needs in its manifest to get at the
ones that were chosen for it. It must never decide a placement and does no I/O: whoever watches the cluster hands it the facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from corral.api.modelpool import ModelPool
from corral.domain import reasons
from corral.domain.model import HOST_ID, Device, DeviceKey, DeviceKind
from corral.kube.foreign import Use
from corral.kube.ports import Conflict


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A Node object, trimmed to what anybody here reads."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[tuple[str, str, str], ...] = ()  # key, value, effect
    unschedulable: bool = False
    ready: bool = True
    ready_since: float = 0.0  # when `ready` last changed
    memory: int = 0  # allocatable
    pods: int = 110  # allocatable
    gpus: Mapping[str, int] = field(default_factory=dict)  # allocatable extended resources of GPUs


@dataclass(frozen=True, slots=True)
class Binding:
    """What a pod's manifest gets so that its container reaches its devices, and no others."""

    env: tuple[tuple[str, str], ...] = ()
    needs: tuple[Mapping[str, Any], ...] = ()  # ResourceClaims that have to exist before the pod
    resource_claims: tuple[Mapping[str, Any], ...] = ()  # spec.resourceClaims
    claims: tuple[Mapping[str, Any], ...] = ()  # resources.claims of the container
    limits: Mapping[str, str] = field(default_factory=dict)  # extended resources
    tolerations: tuple[Mapping[str, Any], ...] = ()
    runtime_class: str = ""


class Backend(Protocol):
    """One way. `name` is the word of a pool's `devices.from`."""

    @property
    def name(self) -> str: ...

    def inventory(self, node: NodeFacts, pool: ModelPool, foreign: Use) -> Sequence[Device] | None:
        """The node's devices with foreign use taken off, or None when this way knows nothing of this node."""

    def bind(self, namespace: str, devices: Sequence[DeviceKey], pool: ModelPool) -> Binding:
        """What the pod needs in its manifest to get exactly these devices."""


class HostMemory:
    """The main memory of a node. The pod's memory request is the binding: the scheduler and the kubelet count it."""

    name = "HostMemory"

    def inventory(self, node: NodeFacts, pool: ModelPool, foreign: Use) -> Sequence[Device] | None:
        if not node.memory:
            return None
        free = max(0, node.memory - foreign.memory)
        wanted = pool.spec.devices.host_memory.capacity
        # A capacity that is written in the pool bounds what is there; it cannot make more of it.
        capacity = free if wanted is None else min(wanted, free)
        return (device_of(node, pool, HOST_ID, kind=DeviceKind.HOST, capacity=capacity),)

    def bind(self, namespace: str, devices: Sequence[DeviceKey], pool: ModelPool) -> Binding:  # noqa: ARG002 - as the Protocol has it
        return Binding()


GPU_TAINTS = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe")
"""Taints that keep away pods without a GPU. A pod that is bound to one tolerates them, so they close no node to it."""
GPU_TOLERATIONS = tuple({"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in GPU_TAINTS)


def visible(devices: Sequence[DeviceKey], pool: ModelPool) -> Binding:
    """Bound by environment: the NVIDIA container runtime shows the container these devices, and nobody else is told of it."""
    ids = [key.id for key in devices]
    # The order of the list is the order in which a split's shares are meant.
    env = [("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("NVIDIA_VISIBLE_DEVICES", ",".join(ids))]
    if all(is_uuid(item) for item in ids):
        env.append(("CUDA_VISIBLE_DEVICES", ",".join(ids)))
    return Binding(env=tuple(env), tolerations=GPU_TOLERATIONS, runtime_class=pool.spec.devices.runtime_class_name or "")


def is_uuid(device: str) -> bool:
    """An index means another device inside a container that sees only some; a uuid does not."""
    return device.startswith(("GPU-", "MIG-"))


class Static:
    """Devices that the pool lists. Only requests for GPUs by other pods are seen; such nodes had better belong to Corral alone."""

    name = "Static"

    def inventory(self, node: NodeFacts, pool: ModelPool, foreign: Use) -> Sequence[Device] | None:
        listed = [item for item in pool.spec.devices.static if item.node == node.name]
        if not listed:
            return None
        # Which of them another pod was given is not to be seen from here.
        closed = reasons.FOREIGN_CLAIM if foreign.gpus else ""
        return tuple(
            device_of(node, pool, item.id, kind=DeviceKind.GPU, capacity=item.memory, product=item.product, closed=closed) for item in listed
        )

    def bind(self, namespace: str, devices: Sequence[DeviceKey], pool: ModelPool) -> Binding:  # noqa: ARG002 - as the Protocol has it
        return visible(devices, pool)


class Backends:
    """The ways there are, in the order in which `Auto` tries them."""

    def __init__(self, ways: Sequence[Backend] = (Static(), HostMemory())) -> None:
        self._ways = tuple(ways)
        self._chosen: dict[str, Backend] = {}  # by node: a pod is bound the way its devices were found

    def inventory(self, node: NodeFacts, pool: ModelPool, foreign: Use) -> Sequence[Device]:
        """The devices of a node, found one way: two ways of seeing the same GPU are never mixed."""
        wanted = pool.spec.devices.from_
        for way in self._ways:
            if wanted in {"Auto", way.name}:
                found = way.inventory(node, pool, foreign)
                if found is not None:
                    self._chosen[node.name] = way
                    return found
        self._chosen.pop(node.name, None)
        return ()

    def bind(self, namespace: str, devices: Sequence[DeviceKey], kind: DeviceKind, pool: ModelPool) -> Binding:
        """Conflict when the node offers no such devices any more."""
        way = self._chosen.get(devices[0].node)
        if kind == DeviceKind.HOST:
            return HostMemory().bind(namespace, devices, pool)
        if way is None or way.name == HostMemory.name:
            raise Conflict(f"{', '.join(map(str, devices))}: node {devices[0].node} has no such device (any more)")
        return way.bind(namespace, devices, pool)


def device_of(
    node: NodeFacts, pool: ModelPool, device: str, *, kind: DeviceKind, capacity: int, product: str = "", closed: str = "", **more: Any
) -> Device:
    return Device(
        key=DeviceKey(node.name, device),
        pool=pool.metadata.name,
        kind=kind,
        capacity=capacity,
        margin=pool.spec.margin(product),
        product=product,
        closed=closed,
        **more,
    )
