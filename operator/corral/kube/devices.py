"""Ways of knowing a node's devices and of binding a pod to them, one backend each.

A backend reads facts and answers: the devices of a node, or None when it knows nothing of it; and what a pod needs in its manifest to get at the
ones that were chosen for it. It must never decide a placement and does no I/O: whoever watches the cluster hands it the facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from corral.api.modelpool import ModelPool
from corral.domain.model import HOST_ID, Device, DeviceKey, DeviceKind
from corral.kube.foreign import Use


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


@dataclass(frozen=True, slots=True)
class Binding:
    """What a pod's manifest gets so that its container reaches its devices, and no others."""

    env: tuple[tuple[str, str], ...] = ()
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
        return (_device(node, pool, HOST_ID, kind=DeviceKind.HOST, capacity=capacity),)

    def bind(self, namespace: str, devices: Sequence[DeviceKey], pool: ModelPool) -> Binding:  # noqa: ARG002 - as the Protocol has it
        return Binding()


GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


class Static:
    """Devices that the pool lists. Nobody but the operator knows who uses them, so such nodes belong to Corral alone."""

    name = "Static"

    def inventory(self, node: NodeFacts, pool: ModelPool, foreign: Use) -> Sequence[Device] | None:  # noqa: ARG002 - foreign use cannot be seen
        listed = [item for item in pool.spec.devices.static if item.node == node.name]
        if not listed:
            return None
        return tuple(_device(node, pool, item.id, kind=DeviceKind.GPU, capacity=item.memory, product=item.product) for item in listed)

    def bind(self, namespace: str, devices: Sequence[DeviceKey], pool: ModelPool) -> Binding:  # noqa: ARG002 - as the Protocol has it
        visible = ",".join(key.id for key in devices)
        # By bus order, so that the first ratio of a split means the first device that is listed here.
        env = (("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("CUDA_VISIBLE_DEVICES", visible), ("NVIDIA_VISIBLE_DEVICES", visible))
        return Binding(env=env, tolerations=(GPU_TOLERATION,))


class Backends:
    """The ways there are, in the order in which `Auto` tries them."""

    def __init__(self, ways: Sequence[Backend] = (Static(), HostMemory())) -> None:
        self._ways = tuple(ways)

    def inventory(self, node: NodeFacts, pool: ModelPool, foreign: Use) -> Sequence[Device]:
        """The devices of a node, found one way: two ways of seeing the same GPU are never mixed."""
        wanted = pool.spec.devices.from_
        for way in self._ways:
            if wanted in {"Auto", way.name}:
                found = way.inventory(node, pool, foreign)
                if found is not None:
                    return found
        return ()

    def bind(self, namespace: str, devices: Sequence[DeviceKey], kind: DeviceKind, pool: ModelPool) -> Binding:
        host = kind == DeviceKind.HOST
        wanted = pool.spec.devices.from_
        for way in self._ways:
            if (way.name == HostMemory.name) == host and (host or wanted in {"Auto", way.name}):
                return way.bind(namespace, devices, pool)
        return Binding()


def _device(node: NodeFacts, pool: ModelPool, device: str, *, kind: DeviceKind, capacity: int, product: str = "") -> Device:
    return Device(
        key=DeviceKey(node.name, device), pool=pool.metadata.name, kind=kind, capacity=capacity, margin=pool.spec.margin(product), product=product
    )
