"""What a replica needs on which device: totals for one device, a split by layers for several.

It owns the arithmetic of `Footprint` and must never look at what is free; `fit` and `placement` do that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from corral.domain.model import DeviceKind, Footprint

OUT_OF_MEMORY_RAISE = 1.15  # how much more a model gets after it ran out of memory with nothing measured
BALANCE_STEPS = 12  # halvings of the search for the evenest split; 1/4096 of a device is closer than a layer


@dataclass(frozen=True, slots=True)
class Split:
    """Bytes per device and layers per device (the output counts as one layer of the last one), in the order of the devices."""

    bytes: tuple[int, ...]
    shares: tuple[float, ...]


def need_on(footprint: Footprint, kind: DeviceKind) -> int:
    """Bytes of one device of this kind that holds the whole model; never less than what a replica once reported."""
    if kind is DeviceKind.HOST:
        return max(footprint.estimated, footprint.measured)
    return max(_gpu_weights(footprint) + footprint.kv + footprint.compute + footprint.device_overhead, footprint.measured)


def _gpu_weights(footprint: Footprint) -> int:
    if not footprint.layers:
        return footprint.weights
    # A model with tied embeddings has no output tensor of its own: the device gets a second copy of the input.
    return sum(count * weights for count, weights, _ in footprint.layers) + (footprint.output or footprint.input)


def layers_of(footprint: Footprint) -> int:
    return sum(count for count, _, _ in footprint.layers)


def split(footprint: Footprint, rooms: Sequence[int]) -> Split | None:
    """Spread the layers over GPUs with these rooms so that the fullest is as empty as can be; None when it cannot be done.

    Layers stay in order, each device has at least one, compute buffers and a context are needed on each.
    """
    return _split(footprint, tuple(rooms))


@lru_cache(maxsize=8192)  # GPUs are alike: on most nodes of a large cluster the same question has the same answer
def _split(footprint: Footprint, rooms: tuple[int, ...]) -> Split | None:
    if len(rooms) == 1:
        need = need_on(footprint, DeviceKind.GPU)
        return Split((need,), (1.0,)) if need <= rooms[0] else None
    total = layers_of(footprint)
    if total < len(rooms) or min(rooms, default=0) <= 0:
        return None
    raised = _raised(footprint)
    low, high = 0.0, 1.0
    best = _fill(footprint, rooms, 1.0, raised)
    if best is None:
        return None
    for _ in range(BALANCE_STEPS):
        middle = (low + high) / 2
        found = _fill(footprint, rooms, middle, raised)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def _raised(footprint: Footprint) -> float:
    estimated = _gpu_weights(footprint) + footprint.kv + footprint.compute + footprint.device_overhead
    return max(1.0, footprint.measured / estimated) if estimated else 1.0


def _fill(footprint: Footprint, rooms: Sequence[int], share: float, raised: float) -> Split | None:
    """Give each device as many of the next layers as go into `share` of its room."""
    fixed = footprint.compute + footprint.device_overhead
    tail = footprint.output or footprint.input
    runs = [[count, weights + kv] for count, weights, kv in footprint.layers]
    left = layers_of(footprint)
    used: list[int] = []
    taken: list[int] = []
    at = 0
    for place, room in enumerate(rooms):
        last = place == len(rooms) - 1
        reserve = len(rooms) - 1 - place  # each device behind this one gets at least one layer
        size = fixed + (tail if last else 0)
        layers = 0
        while at < len(runs) and left > reserve:
            count, each = runs[at]
            take = min(count, left - reserve)
            if each:
                take = min(take, max(0, int(room * share / raised) - size) // each)
            if take == 0:
                break
            size += take * each
            layers += take
            left -= take
            runs[at][0] -= take
            if runs[at][0] == 0:
                at += 1
        needed = int(size * raised)
        if layers == 0 or needed > room * share:
            return None
        used.append(needed)
        taken.append(layers)
    if left:
        return None
    taken[-1] += 1  # llama.cpp places the output as the layer behind the last
    return Split(tuple(used), tuple(float(count) for count in taken))


def after_out_of_memory(footprint: Footprint, committed: int, measured: int = 0) -> Footprint:
    """The footprint after a load ran out of memory with `committed` bytes given to it: what it reached, or a step more."""
    return replace(footprint, measured=max(footprint.measured, measured, int(committed * OUT_OF_MEMORY_RAISE)))
