"""Where a model could be: the devices of its sleeping replicas, and new ones as far as they are worth a look; and whether it fits there.

It must never choose between places, nor look at victims.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import chain, islice
from typing import NamedTuple

from corral.domain.draft import Draft
from corral.domain.eviction import Lack
from corral.domain.fit import closed_for, device_closed, node_closed, selected
from corral.domain.footprint import need_on, split
from corral.domain.model import Device, DeviceKey, DeviceKind, Footprint, Model, Node, Replica
from corral.domain.ranks import MOST_TOGETHER

POD_SECONDS = 3.0  # what a new pod costs beside its download
DOWNLOAD_RATE = 100_000_000  # bytes per second that a download is thought to reach
# How many places one model is compared on in one decision. Clusters of up to this many candidates are searched whole.
MOST_FITS = 16
MOST_NEAR = 16
MOST_SEARCHED = 32
MOST_NODES = 32  # the same for models that are split, and for each figure by which nodes are looked for
MOST_SHOWN = 8


class Place(NamedTuple):
    """Some devices of one node, and what the model needs on each."""

    keys: tuple[DeviceKey, ...]
    devices: tuple[Device, ...]
    needs: dict[DeviceKey, int]
    shares: tuple[float, ...]
    own: Replica | None = None  # the sleeping replica that is bound to them
    waits: float = 0.0  # seconds until its file would be there

    @property
    def node(self) -> str:
        return self.keys[0].node

    @property
    def need(self) -> int:
        return sum(self.needs.values())


def own_place(draft: Draft, model: Model, footprint: Footprint, replica: Replica, *, coming: bool = False) -> Place | None:
    """Where a sleeping replica is bound to; None when it cannot be loaded there now."""
    if coming or replica.committed or model.backoff or len(replica.devices) > 1:
        return _own_place(draft, model, footprint, replica, coming=coming)
    # Neither time nor this plan changes the answer: it is kept with the reading of the model.
    kept = draft.standing(model).places
    if replica.id not in kept:
        kept[replica.id] = _own_place(draft, model, footprint, replica, coming=False)
    return kept[replica.id]


def _own_place(draft: Draft, model: Model, footprint: Footprint, replica: Replica, *, coming: bool) -> Place | None:
    keys, known = replica.devices, draft.snapshot.devices
    devices = tuple([known[key] for key in keys if key in known])
    if not devices or len(devices) != len(keys):
        return None
    if closed_for(draft.snapshot, model, keys) or (not coming and not replica.reachable) or backing_off(draft, model, replica.node):
        return None
    if replica.committed:
        needs = {key: replica.committed.get(key, 0) for key in keys}
        return Place(keys, devices, needs, _shares(footprint, list(needs.values())), replica)
    return _place_on(draft, model.key, footprint, devices, replica)


def _shares(footprint: Footprint, sizes: list[int]) -> tuple[float, ...]:
    found = split(footprint, sizes) if len(sizes) > 1 else None
    return found.shares if found is not None else (1.0,) * len(sizes)


def _place_on(draft: Draft, model: str, footprint: Footprint, devices: tuple[Device, ...], own: Replica | None, waits: float = 0.0) -> Place | None:
    if len(devices) == 1:
        key = devices[0].key
        return Place((key,), devices, {key: need_on(footprint, devices[0].kind)}, (1.0,), own, waits)
    rooms = [min((room := draft.room(each, own)).now, room.soon) for each in devices]
    beside = [max(0, room - draft.wished(each.key, model)) for room, each in zip(rooms, devices, strict=True)] if own is None else rooms
    found = split(footprint, beside) or split(footprint, rooms) or split(footprint, [each.usable for each in devices])
    if found is None:
        return None
    keys = tuple(each.key for each in devices)
    return Place(keys, devices, dict(zip(keys, found.bytes, strict=True)), found.shares, own, waits)


def falls_asleep(draft: Draft, replica: Replica) -> bool:
    """It makes way at this moment: its pod stays, and will be one that sleeps."""
    return replica.resident and not replica.deleting and (replica.ordered == "Evict" or replica.id in draft.acted)


def taken_by(draft: Draft, model: Model) -> frozenset[DeviceKey]:
    """Devices to which a replica of the model is bound that is not loaded, or soon will not be: there is nothing to gain from a second one."""
    there = [each for each in draft.snapshot.replicas_of(model.key) if not each.deleting]
    return frozenset(key for each in there if not each.resident or falls_asleep(draft, each) for key in each.devices)


class Finder:
    """Places for a new replica of one model, as many as are worth a look. Every one of them is open and big enough with nothing else on it."""

    def __init__(self, draft: Draft, model: Model, footprint: Footprint) -> None:
        self.draft = draft
        self.model = model
        self.footprint = footprint
        self.ranks = draft.snapshot.index.pool(model.pool)
        self.needs = {kind: need_on(footprint, kind) for kind in DeviceKind}  # of one device on its own
        self.least = min(self.needs.values())
        self.squeezed = False  # a place was left out because it is promised
        self.promised: list[Place] = []  # where it fits now, at the cost of newcomers that are still on their way
        self._taken = taken_by(draft, model)
        self._known: dict[DeviceKey, Place | None] = {}
        self._several: list[Place] | None = None
        self._spreads: dict[str, Place | None] = {}
        self.single = model.max_devices < 2 or any(self.at(key) is not None for key in self.ranks.usable.at_least(self.least))

    def at(self, key: DeviceKey) -> Place | None:
        """One device on its own."""
        if key not in self._known:
            self._known[key] = self._at(key)
        return self._known[key]

    def _at(self, key: DeviceKey) -> Place | None:
        draft, model = self.draft, self.model
        device, node = draft.snapshot.devices[key], draft.snapshot.nodes.get(key.node)
        need = self.needs[device.kind]
        if key in self._taken or node is None or need > device.usable:
            return None
        if not selected(model, node) or node_closed(model, node) or device_closed(device) or backing_off(draft, model, node.name):
            return None
        if draft.claimed_by_other(key, model.namespace):
            return None
        return Place((key,), (device,), {key: need}, (1.0,), None, self._waits(node))

    def _waits(self, node: Node) -> float:
        there = bool(self.footprint.digest) and self.footprint.digest in node.cached
        return POD_SECONDS + (0.0 if there else self.footprint.file_bytes / DOWNLOAD_RATE)

    def _near_file(self) -> Iterator[DeviceKey]:
        """Devices of nodes that have the file already."""
        for name in sorted(self.draft.snapshot.index.cached.get(self.footprint.digest, ())) if self.footprint.digest else ():
            yield from self.draft.snapshot.on_node(name)

    def free_now(self) -> list[Place]:
        """Where it fits as things are, beside what newcomers are promised: on nodes that have the file, and the tightest fits elsewhere."""
        if not self.single:
            fits = [each for each in self.several() if fits_now(self.draft, self.model, each)]
            self.promised = [each for each in fits if self._promised(each)]
            return [each for each in fits if each not in self.promised]
        found: dict[DeviceKey, Place] = {}
        for source, most in ((self._near_file(), MOST_NEAR), (self.ranks.free.at_least(self.least), MOST_FITS)):
            count = 0
            for key in source:
                place_ = self.at(key)
                if place_ is None or key in found or not fits_now(self.draft, self.model, place_):
                    continue
                if self._promised(place_):
                    self.promised.append(place_)
                    continue
                found[key] = place_
                count += 1
                if count >= most:
                    break
        return list(found.values())

    def _promised(self, place_: Place) -> bool:
        """Whether newcomers that are still on their way were promised what it would take."""
        draft, name = self.draft, self.model.key
        return any(draft.wished(each.key, name) > draft.room(each).soon - place_.needs[each.key] for each in place_.devices)

    def evictable(self, *, end_turns: bool, beside_promises: bool) -> Iterator[tuple[float, Place]]:
        """Where evictions could make it fit, with a recency below which no victim of this place or a later one can be.

        `beside_promises`: with what newcomers will ask for whose files are still on their way.
        """
        if not self.single:
            yield from ((float("-inf"), each) for each in self.several())
            return
        ranked = self.ranks.turn_room if end_turns else self.ranks.idle_room
        if ranked.count_at_least(self.least) <= MOST_SEARCHED:
            keys: Iterator[tuple[float, DeviceKey]] = ((float("-inf"), key) for key in ranked.at_least(self.least))
        elif end_turns:
            keys = ((float("-inf"), key) for key in ranked.largest())
        else:
            keys = chain(((float("-inf"), key) for key in islice(self._near_file(), MOST_NEAR)), self._by_last_use())
        arenas, draft = self.draft.snapshot.index.arenas, self.draft
        left = MOST_SEARCHED
        for bound, key in keys:
            arena = arenas[key]
            spoken = draft.spoken_for(key, self.model.key, promises=beside_promises)
            room = arena.turn_room if end_turns else arena.idle_room
            if room - spoken < self.least:
                self.squeezed |= beside_promises and room - draft.spoken_for(key, self.model.key, promises=False) >= self.least
                continue
            if self.model.priority < arena.weakest and not arena.leaving and arena.free - spoken < self.least:
                continue  # everybody there is more important
            place_ = self.at(key)
            if place_ is not None:
                yield bound, place_
                left -= 1
                if left == 0:
                    return

    def _by_last_use(self) -> Iterator[tuple[float, DeviceKey]]:
        """Whoever has the file already was looked at before these."""
        seen: set[DeviceKey] = set()
        arenas = self.draft.snapshot.index.arenas
        waits = POD_SECONDS + self.footprint.file_bytes / DOWNLOAD_RATE
        ranks = [rows for priority, rows in self.ranks.last_use.items() if priority <= self.model.priority]
        for at, replica_id in ranks[0] if len(ranks) == 1 else merge(*ranks):
            for key in self.draft.snapshot.replicas[replica_id].devices:
                if key not in seen and key in arenas:
                    seen.add(key)
                    yield at + waits, key

    @property
    def count(self) -> int:
        """How many places are big enough, whoever is there."""
        return self.ranks.usable.count_at_least(self.least) if self.single else len(self.several())

    def nearest(self) -> list[Place]:
        """The places that come closest, for whoever asks why it waits."""
        if not self.single:
            return self.several()[:MOST_SHOWN]
        return list(islice((each for key in self.ranks.turn_room.largest() if (each := self.at(key)) is not None), MOST_SHOWN))

    def on(self, keys: Iterable[DeviceKey]) -> list[Place]:
        """On these devices, one by one or together."""
        if self.single:
            return [each for key in keys if key in self.draft.snapshot.devices and (each := self.at(key)) is not None]
        there = set(keys)
        spreads = (self._on_node(name) for name in sorted({key.node for key in there}))
        return [each for each in spreads if each is not None and there & set(each.keys)]

    def several(self) -> list[Place]:
        """The fewest devices of each node over which the layers can be split."""
        if self._several is None:
            self._several = [each for name in sorted(self._worth_a_look()) if (each := self._on_node(name)) is not None]
        return self._several

    def _worth_a_look(self) -> set[str]:
        """Nodes: all of them, or those with the file, with the tightest and the widest room, least used, and with most that is in its turn."""
        if len(self.ranks.usable.rows) <= MOST_SEARCHED * 8:
            return {key.node for _, key in self.ranks.usable.rows}
        sources = (
            self._near_file(),
            *(islice(nodes, MOST_NODES) for nodes in self._with_room()),
            (key for _, key in self._by_last_use()),
            self.ranks.turn_room.largest(),
        )
        found: set[str] = set()
        for source in sources:
            nodes: set[str] = set()
            for key in islice(source, MOST_NODES * 16):
                nodes.add(key.node)
                if len(nodes) == MOST_NODES:
                    break
            found |= nodes
        return found

    def _with_room(self) -> Iterator[Iterator[DeviceKey]]:
        """Nodes on which so many GPUs have enough free: the tightest, and those with the most, on which it fits if it fits anywhere."""
        for count in range(2, min(self.model.max_devices, MOST_TOGETHER) + 1):
            ranked = self.ranks.together.get(count)
            if ranked is not None:
                yield ranked.at_least(self.least // count)
                yield ranked.largest()

    def _on_node(self, name: str) -> Place | None:
        if name not in self._spreads:
            self._spreads[name] = self._spread_over(name)
        return self._spreads[name]

    def _spread_over(self, name: str) -> Place | None:
        draft, model = self.draft, self.model
        node = draft.snapshot.nodes.get(name)
        if node is None or not selected(model, node) or node_closed(model, node) or backing_off(draft, model, name):
            return None
        open_ = []
        for key in draft.snapshot.on_node(name):
            device = draft.snapshot.devices[key]
            if device.kind is not DeviceKind.GPU or key in self._taken or device_closed(device) or draft.claimed_by_other(key, model.namespace):
                continue
            open_.append(device)
        return self._spread(open_) if len(open_) > 1 else None

    def _spread(self, devices: list[Device]) -> Place | None:
        draft, name = self.draft, self.model.key
        by_room = sorted(devices, key=lambda each: (draft.wished(each.key, name) - draft.room(each).now, each.key))
        waits = self._waits(self.draft.snapshot.nodes[devices[0].key.node])
        for count in range(2, min(self.model.max_devices, len(by_room)) + 1):
            chosen = tuple(sorted(by_room[:count], key=lambda each: each.key))
            found = _place_on(draft, name, self.footprint, chosen, None, waits)
            if found is not None:
                return found
        return None


def backing_off(draft: Draft, model: Model, node: str) -> bool:
    return bool(model.backoff) and any(each.node in ("", node) and each.until > draft.now for each in model.backoff)


def fits_now(draft: Draft, model: Model, place_: Place) -> bool:
    """Room is there, and stays there when everybody ahead got what is kept for them."""
    for device in place_.devices:
        room = draft.room(device, place_.own)
        need = place_.needs[device.key]
        if room.now < need or room.soon < need or room.models_now < 1 or room.models_soon < 1:
            return False
    return not foreign_claims(draft, model, place_)


def fits_soon(draft: Draft, place_: Place) -> bool:
    """What is under way already makes enough room."""
    for device in place_.devices:
        room = draft.room(device, place_.own)
        if room.soon < place_.needs[device.key] or room.models_soon < 1:
            return False
    return True


def lacks_of(draft: Draft, place_: Place, *, beside_promises_to_others_than: str = "") -> dict[DeviceKey, Lack]:
    """What is missing, in the end; with what other newcomers will ask for whose files are still on their way, if the model is named."""
    lacks = {}
    for device in place_.devices:
        room = draft.room(device, place_.own)
        promised = draft.wished(device.key, beside_promises_to_others_than) if beside_promises_to_others_than else 0
        lacks[device.key] = Lack(place_.needs[device.key] - room.soon + promised, 1 - room.models_soon)
    return lacks


def foreign_claims(draft: Draft, model: Model, place_: Place) -> list[Replica]:
    """Pods that hold one of the devices for another namespace. Only their deletion frees it."""
    if place_.own is not None:
        return []
    return [each for key in place_.keys for each in draft.takers(key) if each.namespace_claim and each.namespace != model.namespace]


def left_over(draft: Draft, place_: Place) -> int:
    return sum(draft.room(device, place_.own).now - place_.needs[device.key] for device in place_.devices)
