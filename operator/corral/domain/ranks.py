"""Devices and nodes sorted by what is free on them, or could be: what the index keeps up and places are looked for by.

Figures only; it must never decide anything.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from corral.domain.model import DeviceKey

NOBODY = 1 << 40  # above every priority
MOST_TOGETHER = 8  # models are split over more GPUs where the most are free


def on_node(keys: Sequence[DeviceKey], node: str) -> list[DeviceKey]:
    """The node's devices among sorted ones."""
    return list(keys[bisect_left(keys, DeviceKey(node, "")) : bisect_left(keys, DeviceKey(node, "\U0010ffff"))])


@dataclass(slots=True)
class Arena:
    """Figures of one device."""

    free: int = 0  # capacity less margin less what is used
    idle_room: int = 0  # less only what can certainly not be evicted as things are: busy, loading, pinned, unreachable
    turn_room: int = 0  # the same, if turns may end
    models: int = 0  # replicas with a commitment
    weakest: int = NOBODY  # the lowest priority of whoever could give anything back
    leaving: frozenset[str] = frozenset()
    going: tuple[int, int] = (0, 0)  # bytes and models that these will give back


@dataclass(slots=True)
class Ranked:
    """Devices of one pool by one figure, ascending."""

    rows: list[tuple[int, DeviceKey]] = field(default_factory=list)

    def replace(self, old: tuple[int, DeviceKey] | None, new: tuple[int, DeviceKey] | None) -> None:
        if old == new:
            return
        if old is not None:
            del self.rows[bisect_left(self.rows, old)]
        if new is not None:
            insort(self.rows, new)

    def at_least(self, figure: int) -> Iterator[DeviceKey]:
        """From the tightest on."""
        rows = self.rows
        for at in range(bisect_left(rows, (figure, DeviceKey("", ""))), len(rows)):
            yield rows[at][1]

    def largest(self) -> Iterator[DeviceKey]:
        for at in range(len(self.rows) - 1, -1, -1):
            yield self.rows[at][1]

    def count_at_least(self, figure: int) -> int:
        return len(self.rows) - bisect_left(self.rows, (figure, DeviceKey("", "")))


@dataclass(slots=True)
class PoolIndex:
    """Devices by what is free or could be; and nodes, by how much is free on each of their two, three and more freest GPUs."""

    free: Ranked = field(default_factory=Ranked)
    idle_room: Ranked = field(default_factory=Ranked)
    turn_room: Ranked = field(default_factory=Ranked)
    usable: Ranked = field(default_factory=Ranked)  # by the largest capacity last seen
    last_use: dict[int, list[tuple[float, str]]] = field(default_factory=dict)  # by priority: who might be evicted, the least recently used first
    together: dict[int, Ranked] = field(default_factory=dict)  # by how many GPUs; a node is the key of a device without a name
    of_node: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def rank_node(self, node: str, free: list[int]) -> None:
        """`free`: of each GPU of the node."""
        old, new = self.of_node.get(node, ()), tuple(sorted(free, reverse=True)[1:MOST_TOGETHER])
        if old == new:
            return
        key = DeviceKey(node, "")
        for at in range(max(len(old), len(new))):
            ranked = self.together.setdefault(at + 2, Ranked())
            ranked.replace((old[at], key) if at < len(old) else None, (new[at], key) if at < len(new) else None)
        if new:
            self.of_node[node] = new
        else:
            del self.of_node[node]
