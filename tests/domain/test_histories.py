"""What a state keeps between decisions never matters: after any history it decides what one decides that was built just now with the same content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from unittest.mock import patch

import pytest
from tests.domain.builders import GI, NOW, gib, model, rebuilt

from corral.domain import eviction, placement
from corral.domain.decide import decide
from corral.domain.draft import Draft
from corral.domain.model import Backoff, Blocked, Demand, Device, DeviceKey, DeviceKind, Node, Pool, Replica, ReplicaState, Taint
from corral.domain.plan import Create, Delete, Evict, Load, Plan
from corral.domain.snapshot import State

NODES = ("n1", "n2")
KEYS = (DeviceKey("n1", "gpu0"), DeviceKey("n1", "gpu1"), DeviceKey("n2", "gpu0"), DeviceKey("n2", "host"))
MODELS = tuple(f"m/{name}" for name in "abcdefgh")
REPLICAS = tuple((key, f"{key[2:]}-{number}") for key in MODELS for number in range(2))


def seldom(chance: Random) -> bool:
    return chance.random() < 0.12


def start() -> State:
    state = State()
    state.put_pool(Pool("default"))
    for name in NODES:
        state.put_node(Node(name, "default"))
    for key in KEYS:
        state.put_device(Device(key, "default", DeviceKind.HOST if key.id == "host" else DeviceKind.GPU, 24 * GI, GI, namespaced=key.id == "gpu1"))
    for key in MODELS:
        state.put_model(model(key[2:], 12))
    return state


# One step each.


def change_replica(state: State, chance: Random, now: float) -> None:
    owner, name = chance.choice(REPLICAS)
    device = chance.choice(KEYS)
    devices = KEYS[:2] if seldom(chance) else (device,)
    committed = chance.choice((0, 4, 12))
    last_load = now - chance.choice((1, 31, 400))
    asleep_on_host = {device: GI} if device.id == "host" and seldom(chance) else {}
    state.put_replica(
        Replica(
            name=name,
            namespace="m",
            model=owner,
            revision=chance.choice(("r1", "r1", "r1", "r0")),
            devices=devices,
            state=chance.choice((*ReplicaState, *(ReplicaState.LOADED, ReplicaState.SLEEPING) * 5)),
            created=now - 500,
            committed=dict.fromkeys(devices, gib(committed)) if committed else {},
            held=asleep_on_host,
            admitting=True,
            reachable=not seldom(chance),
            in_flight=chance.choice((0, 0, 1, 20)),
            served=chance.choice((0, 3)),
            last_used=now - chance.choice((0, 40, 350)),
            loaded_at=last_load,
            loaded_for=last_load - 1 if seldom(chance) else None,
            turn_started=last_load + 1 if seldom(chance) else None,
            ordered=chance.choice(("Evict", "Load", "Delete")) if seldom(chance) else "",
            scheduled=not seldom(chance),
            unschedulable_since=now - 15 if seldom(chance) else None,
            error=Blocked("NoSpace", "full") if seldom(chance) else None,
            deleting=seldom(chance),
            namespace_claim=seldom(chance),
        )
    )


def remove_replica(state: State, chance: Random, now: float) -> None:
    _, name = chance.choice(REPLICAS)
    state.remove_replica(f"m/{name}")


def change_model(state: State, chance: Random, now: float) -> None:
    key = chance.choice(MODELS)
    if seldom(chance):
        state.remove_model(key)
        return
    state.put_model(
        model(
            key[2:],
            chance.choice((None, 4, 12, 20, 40)),
            priority=chance.choice((0, 0, 1)),
            pinned=seldom(chance),
            min_replicas=chance.choice((0, 0, 1, 2)),
            max_replicas=chance.choice((1, 2)),
            revision=chance.choice(("r1", "r1", "r2")),
            residue=chance.choice((0, GI)),
            max_devices=chance.choice((1, 2)),
            deleting=seldom(chance),
            queue_since=now - 5 if seldom(chance) else None,
            queue_until=now + 20 if seldom(chance) else None,
            backoff=(Backoff(chance.choice(("", "n1")), 1, now + chance.choice((-5, 15)), "LoadFailed", "it failed."),) if seldom(chance) else (),
            node_selector={"zone": "a"} if seldom(chance) else {},
        )
    )


def change_demand(state: State, chance: Random, now: float) -> None:
    count = chance.choice((0, 1, 30))
    wish = chance.choice(("", "", "Load", "Unload"))
    state.put_demand(chance.choice(MODELS), Demand(waiting=count, oldest=now - chance.choice((0, 10, 100, 100)) if count else None, wish=wish))


def change_node(state: State, chance: Random, now: float) -> None:
    name = chance.choice(NODES)
    if seldom(chance):
        state.remove_node(name)
        return
    ready = not seldom(chance)
    taints = (Taint("busy"),) if seldom(chance) else ()
    labels = {"zone": chance.choice(("a", "b"))}
    slots = chance.choice((110, 110, 1))
    since = None if ready else now - chance.choice((0, 50, 70))
    state.put_node(Node(name, "default", labels, taints, ready, schedulable=not seldom(chance), not_ready_since=since, pod_slots=slots))


def change_device(state: State, chance: Random, now: float) -> None:
    key = chance.choice(KEYS)
    if seldom(chance):
        state.remove_device(key)
        return
    state.put_device(
        Device(
            key,
            "default",
            DeviceKind.HOST if key.id == "host" else DeviceKind.GPU,
            chance.choice((6, 16, 24)) * GI,
            GI,
            closed="Closed" if seldom(chance) else "",
            no_execute=seldom(chance),
            vanished_since=now - chance.choice((0, 590, 610)) if seldom(chance) else None,
            namespaced=key.id == "gpu1",
        )
    )


def change_pool(state: State, chance: Random, now: float) -> None:
    if seldom(chance):
        state.remove_pool("default")
        return
    state.put_pool(Pool("default", max_models_per_device=chance.choice((1, 16)), policy=chance.choice(("LRU", "CostAware")), min_residency=30.0))


STEPS = (*(change_replica,) * 6, remove_replica, change_model, *(change_demand,) * 6, change_node, change_device, change_pool)


def carry_out(state: State, plan: Plan, now: float) -> None:
    """Lay the orders of a plan over the state, as the control loop does."""
    for action in plan.actions:
        if isinstance(action, Load | Evict | Delete):
            replica = state.replicas[action.replica]
            committed = dict(action.commitment) if isinstance(action, Load) else replica.committed
            state.put_replica(replace(replica, ordered=type(action).__name__, committed=committed))
        elif isinstance(action, Create):
            name = f"{action.model[2:]}-{len(state.replicas)}"
            state.put_replica(Replica(name, "m", action.model, action.revision, action.devices, ReplicaState.PENDING, created=now, ordered="Create"))
    for key, at in plan.turns.items():
        state.put_replica(replace(state.replicas[key], turn_started=at))


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Everything is found out anew within a decision too."""
    room, prospect = Draft.room, eviction.prospect

    def measured_room(draft, device, own=None):
        draft._rooms.clear()
        return room(draft, device, own)

    def new_prospect(draft, *arguments, **more):
        draft.prospects.clear()
        draft._takers.clear()
        return prospect(draft, *arguments, **more)

    with patch.object(Draft, "room", measured_room), patch.object(placement, "prospect", new_prospect):
        yield


def told(plan: Plan) -> Iterator[tuple[object, ...]]:
    for key, verdict in sorted(plan.verdicts.items()):
        yield key, verdict.explanation.message, verdict


@pytest.mark.parametrize("seed", range(10))
def test_a_state_of_any_age_decides_what_a_new_one_decides(seed):
    chance, state, now = Random(seed), start(), NOW
    for number in range(300):
        step = chance.choice(STEPS)
        step(state, chance, now)
        now += chance.choice((0, 0, 0, 1, 20, 60, -30))
        plan = decide(state.snapshot(), now)
        with nothing_kept():
            anew = decide(rebuilt(state, State()).snapshot(), now)
        assert plan.actions == anew.actions, f"step {number}: {step.__name__}"
        assert list(told(plan)) == list(told(anew)), f"step {number}: {step.__name__}"
        assert (plan.turns, plan.wake_at) == (anew.turns, anew.wake_at), f"step {number}: {step.__name__}"
        if chance.random() < 0.5:
            carry_out(state, plan, now)
