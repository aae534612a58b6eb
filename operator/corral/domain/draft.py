"""A plan in the making: the tentative ledger that one decision works on, and what it has decided so far.

It owns the arithmetic of free, leaving and reserved bytes, so that every step of a decision counts the same way. It must never choose anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from corral.domain.index import freed
from corral.domain.model import Device, DeviceKey, Model, Pool, Replica
from corral.domain.plan import Action, Delete, Evict, Explanation, Plan, Verdict
from corral.domain.snapshot import NO_IDS, Snapshot
from corral.domain.standing import Standing, stand

if TYPE_CHECKING:
    from corral.domain.eviction import Prospect

DEFAULT_POOL = Pool(name="default")
NOTHING = (0, 0)


class Room(NamedTuple):
    """What one device has for one newcomer: bytes and places for models, now and when all that leaves has left."""

    now: int
    soon: int
    models_now: int
    models_soon: int


class Draft:
    """Built by `decide`, filled step by step, turned into a `Plan` at the end."""

    def __init__(self, snapshot: Snapshot, now: float) -> None:
        self.snapshot = snapshot
        self.now = now
        self.actions: list[Action] = []
        self.verdicts: dict[str, Verdict] = {}
        self.turns: dict[str, float] = {}
        self.places: dict[str, tuple[float | None, float | None]] = {}  # of models: since when they queue, until when that is kept
        self.acted: set[str] = set()  # replicas that this plan gave an action
        self.prospects: dict[tuple[object, ...], Prospect] = {}  # kept by `eviction`
        self._at_hand: dict[str, tuple[list[Replica], list[Replica]]] = {}
        self._standing: dict[str, Standing] = {}
        self._rooms: dict[DeviceKey, Room] = {}  # as long as nothing changed there
        self._takers: dict[DeviceKey, list[Replica]] = {}
        self._taken: dict[DeviceKey, list[int]] = {}  # bytes, models: what this plan gives away now
        self._kept: dict[DeviceKey, list[int]] = {}  # what is kept for those ahead in the queue
        self._wished: dict[DeviceKey, dict[str, int]] = {}  # bytes, by model, that newcomers which still download will ask for
        self._leaving: dict[DeviceKey, tuple[int, int]] = {}  # with what this plan makes leave
        self._pods: dict[str, int] = {}
        self._handed: list[DeviceKey] | None = None
        self._claimed: dict[DeviceKey, str] = {}  # namespaces that this plan makes pods for on devices that have one at a time
        self._wake: float | None = None

    # What is known.

    def pool(self, model: Model) -> Pool:
        return self.snapshot.pools.get(model.pool, DEFAULT_POOL)

    def standing(self, model: Model) -> Standing:
        try:
            return self._standing[model.key]
        except KeyError:
            readings = self.snapshot.index.readings
            found = readings.get(model.key)
            if found is None or not found.holds(self.now):
                found = readings[model.key] = stand(self.snapshot, model, self.now)
            self._standing[model.key] = found
            return found

    def comes_no_more(self, model: Model, replica: Replica) -> None:
        """For the rest of this decision nobody counts on this pod, which is on its way."""
        standing = self.standing(model)
        self._standing[model.key] = replace(standing, coming=tuple(each for each in standing.coming if each is not replica))

    def at_hand(self, model: Model) -> tuple[list[Replica], list[Replica]]:
        """Sleeping and coming replicas that no entry of the queue has used yet; whoever uses one takes it from its list."""
        found = self._at_hand.get(model.key)
        if found is None:
            standing = self.standing(model)
            found = self._at_hand[model.key] = ([each for each in standing.asleep if self.free_to_act(each)], list(standing.coming))
        return found

    # The tentative ledger.

    def room(self, device: Device, own: Replica | None = None) -> Room:
        """For a newcomer whose sleeping replica `own` may already count on the device."""
        key = device.key
        found = self._rooms.get(key)
        if found is None:
            found = self._rooms[key] = self._room(device)
        if own is None or not (own.committed or own.held):
            return found
        mine = own.uses(key)
        counted = 1 if own.committed.get(key, 0) else 0
        return Room(found.now + mine, found.soon + mine, found.models_now + counted, found.models_soon + counted)

    def _room(self, device: Device) -> Room:
        key = device.key
        arena = self.snapshot.index.arenas[key]
        taken = self._taken.get(key, NOTHING)
        kept = self._kept.get(key, NOTHING)
        leaving, leavers = self._leaving.get(key, arena.going)
        free = arena.free - taken[0]
        limit = self.snapshot.pools.get(device.pool, DEFAULT_POOL).max_models_per_device
        models = limit - arena.models - taken[1]
        return Room(free, free + leaving - kept[0], models, models + leavers - kept[1])

    def takers(self, key: DeviceKey) -> list[Replica]:
        """Replicas that take some of this device, in the order of their ids: bytes, or all of it for their namespace."""
        found = self._takers.get(key)
        if found is None:
            found = self._takers[key] = [each for each in self.snapshot.on_device(key) if each.namespace_claim or each.uses(key)]
        return found

    def wished(self, key: DeviceKey, by_others_than: str) -> int:
        """Bytes that newcomers whose files are still on their way will ask for here."""
        wishes = self._wished.get(key)
        return sum(size for model, size in wishes.items() if model != by_others_than) if wishes else 0

    @property
    def has_wishes(self) -> bool:
        return bool(self._wished)

    def spoken_for(self, key: DeviceKey, model: str, *, promises: bool) -> int:
        """Bytes that this decision has given away, or keeps for somebody else than this model."""
        size = self._taken.get(key, NOTHING)[0] + self._kept.get(key, NOTHING)[0]
        return size + self.wished(key, model) if promises else size

    def freed(self, replica: Replica, key: DeviceKey, *, deleted: bool) -> int:
        return freed(replica, self.snapshot.devices.get(key), self.snapshot.models.get(replica.model), deleted=deleted)

    def pods_left(self, node: str) -> int:
        found = self.snapshot.nodes.get(node)
        slots = found.pod_slots if found is not None else 0
        return slots - len(self.snapshot.by_node.get(node, NO_IDS)) - self._pods.get(node, 0)

    def take(self, needs: Mapping[DeviceKey, int], own: Replica | None, *, models: int = 1) -> None:
        """These bytes are given away by this plan."""
        for key, need in needs.items():
            self._rooms.pop(key, None)
            entry = self._taken.setdefault(key, [0, 0])
            entry[0] += need - (own.uses(key) if own is not None else 0)
            entry[1] += models if own is None or not own.committed.get(key, 0) else 0

    def keep(self, needs: Mapping[DeviceKey, int], own: Replica | None) -> None:
        """Nobody behind in the queue gets these bytes."""
        for key, need in needs.items():
            self._rooms.pop(key, None)
            entry = self._kept.setdefault(key, [0, 0])
            entry[0] += need - (own.uses(key) if own is not None else 0)
            entry[1] += 1

    def wish(self, model: str, needs: Mapping[DeviceKey, int]) -> None:
        """A newcomer that is not ready yet will ask for these; others had better go elsewhere, but may take them."""
        for key, need in needs.items():
            wishes = self._wished.setdefault(key, {})
            wishes[model] = wishes.get(model, 0) + need

    # What is decided.

    def act(self, action: Action) -> None:
        self.actions.append(action)
        replica_id = getattr(action, "replica", "")
        if replica_id:
            self.acted.add(replica_id)
        if isinstance(action, Evict | Delete):
            replica = self.snapshot.replicas[action.replica]
            for key in {*replica.committed, *replica.held}:
                arena = self.snapshot.index.arenas.get(key)
                if arena is None:
                    continue
                size, models = self._leaving.get(key, arena.going)
                size += self.freed(replica, key, deleted=isinstance(action, Delete))
                self._leaving[key] = (size, models + (1 if replica.committed.get(key, 0) else 0))
                self._rooms.pop(key, None)

    def create_pod(self, node: str) -> None:
        self._pods[node] = self._pods.get(node, 0) + 1

    def handed_over(self) -> list[DeviceKey]:
        """Devices of one namespace at a time that some pod is leaving."""
        if self._handed is None:
            devices, leaving = self.snapshot.devices, self.snapshot.index.vacating
            self._handed = sorted(key for key in leaving if (device := devices.get(key)) is not None and device.namespaced)
        return self._handed

    def claim(self, devices: Iterable[Device], namespace: str) -> None:
        """This plan makes a pod of this namespace there."""
        for device in devices:
            if device.namespaced:
                self._claimed[device.key] = namespace

    def claimed_by_other(self, key: DeviceKey, namespace: str) -> bool:
        return self._claimed.get(key, namespace) != namespace

    def free_to_act(self, replica: Replica) -> bool:
        """Nothing is under way for it, neither from before nor from this plan."""
        return not replica.ordered and not replica.deleting and replica.id not in self.acted

    def wake(self, at: float | None) -> None:
        """Decide again then."""
        if at is not None and at > self.now and (self._wake is None or at < self._wake):
            self._wake = at

    def say(self, model: Model, explanation: Explanation, *, stalled: bool = False) -> None:
        """The last word on a model wins."""
        since, until = self.places.get(model.key, (None, None))
        self.verdicts[model.key] = Verdict(model.key, explanation, stalled, since, until)

    def plan(self) -> Plan:
        return Plan(tuple(self.actions), self.verdicts, self.turns, self._wake)
