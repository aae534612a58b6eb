"""The devices of this machine: what `--device` names, else what NVML finds, else host memory.

It must never bind anything: the decision chooses devices, `pods` passes the choice on.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import psutil

from corral.api.modelpool import ModelPool
from corral.api.types import MI, format_rounded, parse_quantity
from corral.domain.model import HOST_ID, Device, DeviceKey, DeviceKind, Node

NODE = "local"


class DeviceArgumentError(ValueError):
    """A `--device` that is not NAME=SIZE."""


@dataclass(frozen=True, slots=True)
class Arena:
    """One memory arena of this machine, before a pool's margin applies."""

    id: str
    kind: DeviceKind
    capacity: int
    product: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    arenas: tuple[Arena, ...]
    gpu_variable: str = ""
    how: str = ""
    """Where the numbers come from, for people."""


def parse_device(text: str) -> Arena:
    """`gpu0=8Gi`, or `host=16Gi` for main memory."""
    found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", text)
    if found is None:
        raise DeviceArgumentError(f"--device {text!r}: it has to be NAME=SIZE, such as gpu0=8Gi, or host=16Gi for main memory")
    try:
        capacity = parse_quantity(found[2])
    except ValueError as error:
        raise DeviceArgumentError(f"--device {text!r}: {error}") from None
    if capacity <= 0:
        raise DeviceArgumentError(f"--device {text!r}: a device has more than 0 bytes")
    return Arena(found[1], DeviceKind.HOST if found[1] == HOST_ID else DeviceKind.GPU, capacity)


def inventory(named: Sequence[str]) -> Inventory:
    if named:
        arenas = tuple(parse_device(text) for text in named)
        ids = [arena.id for arena in arenas]
        for name in ids:
            if ids.count(name) > 1:
                raise DeviceArgumentError(f"--device {name} is given {ids.count(name)} times; each device has one size")
        return Inventory(arenas, how="as given with --device")
    gpus = tuple(_nvml())
    if gpus:
        return Inventory(gpus, "CUDA_VISIBLE_DEVICES", "as NVML reports")
    memory = psutil.virtual_memory()
    reserve = max(512 * MI, memory.total // 20)
    capacity = max(memory.available - reserve, 0)
    how = f"{format_rounded(memory.available)} of main memory are available, {format_rounded(reserve)} are left to everything else"
    return Inventory((Arena(HOST_ID, DeviceKind.HOST, capacity),), how=how)


def _nvml() -> Iterable[Arena]:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # not installed, no driver, no permission: no GPU that could be used
        return
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        # What other programs hold there now is not ours to give.
        yield Arena(_text(nvml.nvmlDeviceGetUUID(handle)), DeviceKind.GPU, int(memory.free), _text(nvml.nvmlDeviceGetName(handle)))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def node_and_devices(found: Inventory, pool: ModelPool, named: bool) -> tuple[Node, list[Device]]:
    """The node `local` as a member of `pool`. A pool's `hostMemory.capacity` counts where the user named no device."""
    arenas = found.arenas
    limit = pool.spec.devices.host_memory.capacity
    if not named and limit is not None:
        arenas = tuple(replace(arena, capacity=limit) if arena.kind is DeviceKind.HOST else arena for arena in arenas)
    name = pool.metadata.name
    devices = [
        Device(DeviceKey(NODE, arena.id), name, arena.kind, arena.capacity, pool.spec.margin(arena.product), product=arena.product)
        for arena in arenas
    ]
    return Node(NODE, name, labels={"kubernetes.io/hostname": NODE}, pod_slots=1_000), devices
