"""Short ways to say a cluster. Bytes in GiB; `State` in, so that tests exercise the indexes too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from corral.domain.model import Demand, Device, DeviceKey, DeviceKind, Footprint, Model, Node, Pool, Replica, ReplicaState
from corral.domain.plan import Action, Plan
from corral.domain.snapshot import Snapshot, State

GI = 1 << 30
NOW = 1_750_000_000.0


def gib(value: float) -> int:
    return int(value * GI)


def model(name: str, size: float | None = 8.0, **more: Any) -> Model:
    footprint = None if size is None else Footprint(weights=gib(size), kv=0, compute=0)
    values: dict[str, Any] = {"namespace": "m", "footprint": footprint, "created": NOW - 86_400, "revision": "r1"}
    return Model(key=f"m/{name}", **(values | more))


def key(node: str, device: str = "gpu0") -> DeviceKey:
    return DeviceKey(node, device)


def loaded(
    name: str, of: str, size: float, node: str = "n1", device: str = "gpu0", *, used: float = 120.0, age: float = 3600.0, **more: Any
) -> Replica:
    """`used`: seconds since the last request; `age`: seconds since the load."""
    at = key(node, device)
    values: dict[str, Any] = {
        "namespace": "m",
        "revision": "r1",
        "state": ReplicaState.LOADED,
        "committed": {at: gib(size)},
        "admitting": True,
        "last_used": NOW - used,
        "loaded_at": NOW - age,
        "created": NOW - age - 60,
        "served": 5,
    }
    return Replica(name=name, model=f"m/{of}", devices=(at,), **(values | more))


def asleep(name: str, of: str, node: str = "n1", device: str = "gpu0", **more: Any) -> Replica:
    values: dict[str, Any] = {"namespace": "m", "revision": "r1", "state": ReplicaState.SLEEPING, "created": NOW - 7200, "last_used": NOW - 1000}
    return Replica(name=name, model=f"m/{of}", devices=(key(node, device),), **(values | more))


def waiting(since: float = 1.0, count: int = 1) -> Demand:
    """`since`: seconds that the oldest has waited."""
    return Demand(waiting=count, oldest=NOW - since)


def cluster(
    devices: dict[str, float] | None = None,
    *,
    models: Iterable[Model] = (),
    replicas: Iterable[Replica] = (),
    demand: dict[str, Demand] | None = None,
    pool: Pool | None = None,
    kind: DeviceKind = DeviceKind.GPU,
    margin: float = 1.0,
    nodes: dict[str, Node] | None = None,
) -> State:
    """`devices`: `{"n1/gpu0": 24}`; host devices are named `n1/host`."""
    state = State()
    state.put_pool(pool or Pool(name="default"))
    for name, size in (devices if devices is not None else {"n1/gpu0": 24.0}).items():
        node, _, device = name.partition("/")
        if node not in state.nodes:
            state.put_node((nodes or {}).get(node, Node(node, "default")))
        state.put_device(Device(DeviceKey(node, device), "default", kind, gib(size), gib(margin)))
    for each in models:
        state.put_model(each)
    for replica in replicas:
        state.put_replica(replica)
    for name, wish in (demand or {}).items():
        state.put_demand(f"m/{name}", wish)
    return state


def put(state: State, replica: Replica, /, **changes: Any) -> Replica:
    changed = replace(replica, **changes)
    state.put_replica(changed)
    return changed


def short(action: Action) -> tuple[str, ...]:
    """`("Evict", "m/a-0", "Evicted")`: what tests compare."""
    subject = getattr(action, "replica", "") or ",".join(str(each) for each in getattr(action, "devices", ())) or action.model
    return type(action).__name__, subject, action.reason


def shorts(plan: Plan) -> list[tuple[str, ...]]:
    return [short(each) for each in plan.actions]


def rebuilt(snapshot: Snapshot | State, state: State) -> State:
    """The same content, put into this empty state."""
    for pool in snapshot.pools.values():
        state.put_pool(pool)
    for node in snapshot.nodes.values():
        state.put_node(node)
    for device in snapshot.devices.values():
        state.put_device(device)
    for each in snapshot.models.values():
        state.put_model(each)
    for replica in snapshot.replicas.values():
        state.put_replica(replica)
    for key, demand in snapshot.demand.items():
        state.put_demand(key, demand)
    return state
