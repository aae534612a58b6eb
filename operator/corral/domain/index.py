"""What makes a decision cost what has changed and what is wanted, not what there is: sorted by free bytes, by what could be freed, by last use.

`State` keeps it up, one change at a time; `decide` only asks. An index narrows down where to look: whatever it leaves out must not be able to
matter, and what it offers is judged again by the rules. It must never decide anything.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from typing import TYPE_CHECKING

from corral.domain.fit import fits_alone, refused_by_pool
from corral.domain.model import Demand, Device, DeviceKey, DeviceKind, Model, Node, Replica, ReplicaState
from corral.domain.policy_lru import last_use
from corral.domain.ranks import NOBODY, Arena, PoolIndex, on_node

if TYPE_CHECKING:
    from corral.domain.snapshot import State
    from corral.domain.standing import Standing

SEVERAL = 60.0  # a replica more than wanted is looked at after this, see `lifecycle`
AT_REST = frozenset({ReplicaState.LOADED, ReplicaState.SLEEPING})


class Index:
    def __init__(self) -> None:
        self.pools: dict[str, PoolIndex] = {}
        self.arenas: dict[DeviceKey, Arena] = {}
        self.attention: set[str] = set()  # models that a decision has to look at, whatever the time
        self.unfit: set[str] = set()  # models that no device could hold, or that their pool refuses
        self.unknown: list[tuple[float, str]] = []  # models whose footprint is not known, the oldest first
        self.estimating: set[str] = set()
        self.vacating: set[DeviceKey] = set()  # devices that some pod is leaving
        self.due: list[tuple[float, str]] = []  # when time alone makes a model worth a look
        self.cached: dict[str, set[str]] = {}  # nodes that have a file, by digest
        self.readings: dict[str, Standing] = {}  # how models stood when a decision last looked; forgotten with every change
        self._due_of: dict[str, float] = {}
        self._last_use: dict[str, tuple[str, int, float]] = {}
        self._shape_changed = False
        self._with_selector: set[str] = set()

    def pool(self, name: str) -> PoolIndex:
        found = self.pools.get(name)
        if found is None:
            found = self.pools[name] = PoolIndex()
        return found

    def _forget(self, state: State, replicas: Iterable[str]) -> None:
        """Something changed where these replicas are."""
        for each in replicas:
            self.readings.pop(state.replicas[each].model, None)

    # Devices.

    def device_changed(self, state: State, old: Device | None, new: Device | None) -> None:
        if old is not None:
            self._unrank(old)
        if new is not None:
            self.arenas[new.key] = Arena()
            self._measure(state, new)
            pool = self.pool(new.pool)
            arena = self.arenas[new.key]
            pool.free.replace(None, (arena.free, new.key))
            pool.idle_room.replace(None, (arena.idle_room, new.key))
            pool.turn_room.replace(None, (arena.turn_room, new.key))
            pool.usable.replace(None, (_best(new), new.key))
        self._rank_node(state, (new or old))  # type: ignore[arg-type]
        self._forget(state, state.by_device.get((new or old).key, ()))  # type: ignore[union-attr]
        same = old is not None and new is not None and (_best(old), old.pool) == (_best(new), new.pool)
        self._shape_changed |= not same
        if old is None or new is None or (old.no_execute, old.vanished_since) != (new.no_execute, new.vanished_since):
            key = (new or old).key  # type: ignore[union-attr]
            for each in state.by_device.get(key, ()):
                self.review(state, state.replicas[each].model)

    def _unrank(self, old: Device) -> None:
        arena = self.arenas.pop(old.key)
        self.vacating.discard(old.key)
        pool = self.pool(old.pool)
        pool.free.replace((arena.free, old.key), None)
        pool.idle_room.replace((arena.idle_room, old.key), None)
        pool.turn_room.replace((arena.turn_room, old.key), None)
        pool.usable.replace((_best(old), old.key), None)

    def _measure(self, state: State, device: Device) -> None:
        """Count a device anew. It holds few replicas with bytes; the many that sleep on a GPU take none."""
        key = device.key
        arena = self.arenas[key]
        stuck = stuck_in_turns = models = 0
        weakest = NOBODY
        leaving = []
        going = models_going = 0
        for each in state.by_device.get(key, ()):
            replica = state.replicas[each]
            uses = replica.uses(key)
            if replica.committed.get(key, 0):
                models += 1
            if replica.deleting or replica.ordered in ("Evict", "Delete"):
                leaving.append(each)
                deleted = replica.deleting or replica.ordered == "Delete"
                going += freed(replica, device, state.models.get(replica.model), deleted=deleted)
                models_going += 1 if replica.committed.get(key, 0) else 0
                continue
            if not uses:
                continue
            model = state.models.get(replica.model)
            if _stuck(replica, model):
                stuck += uses
                stuck_in_turns += uses
                continue
            weakest = min(weakest, model.priority if model is not None else -NOBODY)
            if replica.in_flight or replica.queued:
                stuck += uses
        arena.models, arena.leaving, arena.weakest = models, frozenset(leaving), weakest
        arena.going = (going, models_going)
        (self.vacating.add if leaving else self.vacating.discard)(key)
        arena.free = device.usable - state.used.get(key, 0)
        arena.idle_room = device.usable - stuck
        arena.turn_room = device.usable - stuck_in_turns

    def touched(self, state: State, key: DeviceKey) -> None:
        """Something on this device changed."""
        device = state.devices.get(key)
        if device is None:
            return
        arena = self.arenas[key]
        before = (arena.free, arena.idle_room, arena.turn_room)
        self._measure(state, device)
        pool = self.pool(device.pool)
        for ranked, old, new in zip((pool.free, pool.idle_room, pool.turn_room), before, (arena.free, arena.idle_room, arena.turn_room), strict=True):
            if old != new:
                ranked.replace((old, key), (new, key))
        if arena.free != before[0]:
            self._rank_node(state, device)

    def _rank_node(self, state: State, device: Device) -> None:
        """Something is free now on a GPU that was not, or the other way round."""
        node = device.key.node
        gpus = (key for key in on_node(state.by_pool.get(device.pool, ()), node) if state.devices[key].kind is DeviceKind.GPU)
        self.pool(device.pool).rank_node(node, [self.arenas[key].free for key in gpus])

    # Nodes and pools.

    def node_changed(self, state: State, old: Node | None, new: Node | None) -> None:
        if old is not None and (new is None or old.cached != new.cached):
            for digest in old.cached - (new.cached if new is not None else frozenset()):
                self.cached[digest].discard(old.name)
        if new is not None and (old is None or old.cached != new.cached):
            for digest in new.cached - (old.cached if old is not None else frozenset()):
                self.cached.setdefault(digest, set()).add(new.name)
        if old != new:
            self._forget(state, state.by_node.get((new or old).name, ()))  # type: ignore[union-attr]
        if old is None or new is None or (old.labels, old.pool) != (new.labels, new.pool):
            self._shape_changed = True
        if old is None or new is None or (old.ready, old.not_ready_since) != (new.ready, new.not_ready_since):
            name = (new or old).name  # type: ignore[union-attr]
            for each in state.by_node.get(name, ()):
                self.review(state, state.replicas[each].model)

    def pool_changed(self) -> None:
        self._shape_changed = True

    # Models and replicas.

    def settle(self, state: State) -> None:
        """Judge anew who fits at all, when devices, labels or pools changed."""
        if not self._shape_changed:
            return
        self._shape_changed = False
        for model in state.models.values():
            self._judge(state, model)
            if model.key in self.unfit or model.key in self.attention:
                self.review(state, model.key)

    def _judge(self, state: State, model: Model) -> None:
        if model.footprint is not None and (refused_by_pool(model, state.pools) is not None or not fits_alone(state, model)):
            self.unfit.add(model.key)
        else:
            self.unfit.discard(model.key)

    def model_changed(self, state: State, key: str, old: Model | None, new: Model | None) -> None:
        if new is None:
            self.unfit.discard(key)
        elif old is None or (old.footprint, old.pool, old.node_selector, old.max_devices, old.priority, old.pinned) != (
            new.footprint,
            new.pool,
            new.node_selector,
            new.max_devices,
            new.priority,
            new.pinned,
        ):
            self._judge(state, new)
        self._note_unknown(key, old, new)
        if _rank(old) != _rank(new):
            for each in state.by_model.get(key, ()):
                self._rank_use(state, each, state.replicas[each])
                for device in {*state.replicas[each].committed, *state.replicas[each].held}:
                    self.touched(state, device)
        self.review(state, key)

    def _note_unknown(self, key: str, old: Model | None, new: Model | None) -> None:
        before = (old.created, key) if old is not None and to_estimate(old) else None
        after = (new.created, key) if new is not None and to_estimate(new) else None
        if before != after:
            if before is not None:
                del self.unknown[bisect_left(self.unknown, before)]
            if after is not None:
                insort(self.unknown, after)
        (self.estimating.add if new is not None and new.estimating else self.estimating.discard)(key)

    def replica_changed(self, state: State, old: Replica | None, new: Replica | None) -> None:
        devices = {key for each in (old, new) if each is not None for key in (*each.devices, *each.committed, *each.held)}
        for key in devices:
            self.touched(state, key)
        replica_id = (new or old).id  # type: ignore[union-attr]
        self._rank_use(state, replica_id, new)
        for model in {each.model for each in (old, new) if each is not None}:
            self.review(state, model)

    def _rank_use(self, state: State, replica_id: str, replica: Replica | None) -> None:
        before = self._last_use.pop(replica_id, None)
        after: tuple[str, int, float] | None = None
        if replica is not None and replica.devices and not replica.ordered and not replica.deleting and any(replica.uses(k) for k in replica.devices):
            device, model = state.devices.get(replica.devices[0]), state.models.get(replica.model)
            idle = not replica.in_flight and not replica.queued
            if device is not None and idle and not _stuck(replica, model):
                after = (device.pool, model.priority if model is not None else -NOBODY, last_use(replica))
        if before != after:
            if before is not None:
                rows = self.pool(before[0]).last_use[before[1]]
                del rows[bisect_left(rows, (before[2], replica_id))]
                if not rows:
                    del self.pool(before[0]).last_use[before[1]]
            if after is not None:
                insort(self.pool(after[0]).last_use.setdefault(after[1], []), (after[2], replica_id))
        if after is not None:
            self._last_use[replica_id] = after

    def review(self, state: State, key: str) -> None:
        """Something about it changed: whether it needs a look in every decision now, or when the next one is due."""
        self.readings.pop(key, None)
        model = state.models.get(key)
        replicas = [state.replicas[each] for each in state.by_model.get(key, ())]
        due: float | None = None
        if model is None:
            look = bool(replicas)
        else:
            look = self._restless(state, model, replicas, state.demand.get(key))
            if not look:
                due = _due(model, replicas)
        (self.attention.add if look else self.attention.discard)(key)
        before = self._due_of.pop(key, None)
        if before != due:
            if before is not None:
                del self.due[bisect_left(self.due, (before, key))]
            if due is not None:
                insort(self.due, (due, key))
        if due is not None:
            self._due_of[key] = due

    def _restless(self, state: State, model: Model, replicas: list[Replica], demand: Demand | None) -> bool:
        if model.deleting or model.blocked is not None or model.key in self.unfit or (model.footprint is None and replicas):
            return True
        if model.queue_since is not None or model.queue_until is not None:
            return True
        if demand is not None and (demand.waiting or demand.wish or demand.returning_until is not None):
            return True
        floor = max(model.min_replicas, 1 if model.pinned else 0)
        if len(replicas) > max(1, model.max_replicas, floor):
            return True
        loaded = busy = 0
        for replica in replicas:
            if replica.state not in AT_REST or replica.ordered or replica.deleting or not replica.scheduled:
                return True
            if (model.revision and replica.revision != model.revision) or not _well(state, replica):
                return True
            if replica.state is ReplicaState.LOADED:
                loaded += 1
                busy += replica.in_flight + replica.queued
            elif replica.committed:
                return True
        return (loaded < floor and model.footprint is not None) or (busy > model.target_in_flight * loaded and loaded < model.max_replicas)

    def looks(self, now: float) -> list[str]:
        """Models to look at now, in the order of their keys."""
        end = bisect_right(self.due, (now, "\U0010ffff"))
        return sorted(self.attention.union(key for _, key in self.due[:end])) if end else sorted(self.attention)

    def next_due(self, now: float) -> float | None:
        at = bisect_right(self.due, (now, "\U0010ffff"))
        return self.due[at][0] if at < len(self.due) else None


def to_estimate(model: Model) -> bool:
    return model.footprint is None and model.blocked is None and not model.estimating and not model.deleting


def _rank(model: Model | None) -> tuple[bool, int, int]:
    """What arenas look at."""
    return (model.pinned, model.priority, model.residue) if model is not None else (False, -NOBODY, 0)


def freed(replica: Replica, device: Device | None, model: Model | None, *, deleted: bool) -> int:
    """Bytes of the device that the end of this replica gives back: on host memory a sleeping one keeps its residue."""
    if device is None:
        return 0
    uses = replica.uses(device.key)
    if deleted or device.kind is not DeviceKind.HOST:
        return uses
    return max(0, uses - (model.residue if model is not None else 0))


def _best(device: Device) -> int:
    return max(device.capacity, device.largest) - device.margin


def _stuck(replica: Replica, model: Model | None) -> bool:
    """It cannot be a victim as it is, whoever asks and whatever turn is over."""
    return (
        replica.state is ReplicaState.LOADING
        or replica.ordered in ("Load", "Create")
        or not replica.reachable
        or (model is not None and model.pinned)
    )


def _well(state: State, replica: Replica) -> bool:
    for key in replica.devices:
        node, device = state.nodes.get(key.node), state.devices.get(key)
        if node is None or not node.ready or device is None or device.no_execute or device.vanished_since is not None:
            return False
    return True


def _due(model: Model, replicas: list[Replica]) -> float | None:
    """When the first of its replicas has been idle for long enough."""
    floor = max(model.min_replicas, 1 if model.pinned else 0)
    loaded = [each for each in replicas if each.state is ReplicaState.LOADED]
    times = []
    if len(loaded) > floor:
        after = min(model.sleep_after, SEVERAL) if len(loaded) > 1 else model.sleep_after
        times += [last_use(each) + after for each in loaded if not each.in_flight and not each.queued and each.reachable]
    if len(loaded) >= floor:
        times += [max(last_use(each), each.created) + model.stop_after for each in replicas if each.state is ReplicaState.SLEEPING]
    return min(times, default=None)
