"""What holds for any cluster: nothing beyond the margin, no victim too many, nobody who must not go, and layers that add up."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.domain.builders import GI, NOW, asleep, cluster, gib, key, loaded, model

from corral.domain.decide import decide
from corral.domain.eviction import Lack, Victim, cheapest
from corral.domain.footprint import layers_of, need_on, split
from corral.domain.model import Demand, DeviceKind, Footprint, Pool, ReplicaState
from corral.domain.plan import Delete, Evict, Load

sizes = st.integers(1, 12)


@st.composite
def clusters(draw):
    """Up to three nodes with up to two devices; loaded, sleeping and waiting models of all sorts."""
    devices = {
        f"n{node}/gpu{index}": float(draw(st.integers(6, 24))) for node in range(draw(st.integers(1, 3))) for index in range(draw(st.integers(1, 2)))
    }
    names = list(devices)
    models, replicas, demand, used = [], [], {}, dict.fromkeys(names, 0)
    for number in range(draw(st.integers(1, 9))):
        name, size, place = f"r{number}", draw(sizes), draw(st.sampled_from(names))
        node, _, device = place.partition("/")
        models.append(
            model(
                name,
                size,
                priority=draw(st.sampled_from((0, 0, 1))),
                pinned=draw(st.integers(0, 9)) == 0,
                min_replicas=draw(st.sampled_from((0, 0, 0, 1))),
            )
        )
        if used[place] + size <= devices[place] - 1:
            used[place] += size
            replicas.append(
                loaded(
                    f"{name}-0",
                    name,
                    size,
                    node=node,
                    device=device,
                    used=float(draw(st.integers(0, 290))),
                    age=float(draw(st.integers(1, 400))),
                    in_flight=draw(st.sampled_from((0, 0, 1))),
                    reachable=draw(st.integers(0, 9)) > 0,
                    ordered=draw(st.sampled_from(("", "", "", "Evict"))),
                    turn_started=draw(st.sampled_from((None, NOW - 40, NOW - 5))),
                )
            )
    for number in range(draw(st.integers(1, 4))):
        name, size, place = f"w{number}", draw(sizes), draw(st.sampled_from(names))
        node, _, device = place.partition("/")
        models.append(model(name, size, priority=draw(st.sampled_from((0, 0, 1)))))
        if draw(st.booleans()):
            replicas.append(asleep(f"{name}-0", name, node=node, device=device))
        demand[name] = Demand(waiting=1, oldest=NOW - draw(st.integers(0, 100)))
    pool = Pool("default", policy=draw(st.sampled_from(("LRU", "CostAware"))), max_models_per_device=draw(st.sampled_from((1, 2, 16))))
    return cluster(devices, models=models, replicas=replicas, demand=demand, pool=pool)


@settings(max_examples=120, deadline=None)
@given(clusters())
def test_a_plan_never_goes_beyond_the_margin(state):
    plan = decide(state.snapshot(), NOW)
    used = dict(state.used)
    count: dict = {}
    for action in plan.actions:
        if isinstance(action, Load):
            for device, size in action.commitment.items():
                used[device] = used.get(device, 0) + size - state.replicas[action.replica].uses(device)
                count[device] = count.get(device, 0) + 1
    for device, size in used.items():
        assert size <= state.devices[device].usable or device not in count


@settings(max_examples=120, deadline=None)
@given(clusters())
def test_nobody_goes_who_must_not(state):
    for action in decide(state.snapshot(), NOW).actions:
        if not isinstance(action, Evict | Delete) or not action.reason.startswith(("Evicted", "TurnEnded")):
            continue
        victim = state.replicas[action.replica]
        owner = state.models[victim.model]
        assert not owner.pinned
        assert not victim.ordered
        assert victim.reachable
        assert victim.state is not ReplicaState.LOADING
        if victim.loaded_at is not None and victim.resident:
            assert NOW - victim.loaded_at >= 30
        if victim.in_flight:
            assert action.deadline is not None
            assert NOW - victim.turn_started >= 30
        if isinstance(action, Evict) and action.evicting_for:
            assert state.models[action.evicting_for].priority >= owner.priority


@settings(max_examples=120, deadline=None)
@given(clusters())
def test_a_decision_does_not_change_what_it_was_given_and_is_repeatable(state):
    before = (dict(state.used), dict(state.replicas), dict(state.demand))
    first, second = decide(state.snapshot(), NOW), decide(state.snapshot(), NOW)
    assert first == second
    assert before == (dict(state.used), dict(state.replicas), dict(state.demand))


@settings(max_examples=150, deadline=None)
@given(clusters())
def test_no_victim_of_a_set_can_be_left_out(state):
    plan = decide(state.snapshot(), NOW)
    newcomers = {action.evicting_for for action in plan.actions if isinstance(action, Evict) and action.evicting_for}
    if len(newcomers) != 1:
        return
    (newcomer,) = newcomers
    victims = [action for action in plan.actions if isinstance(action, Evict) and action.evicting_for == newcomer]
    replica = state.replicas[next(iter(state.by_model[newcomer]))]
    (device,) = replica.devices
    leaving = sum(each.uses(device) for each in state.snapshot().on_device(device) if each.ordered == "Evict")
    loads = sum(a.commitment.get(device, 0) for a in plan.actions if isinstance(a, Load))
    free = state.devices[device].usable - state.used.get(device, 0) + leaving - loads
    need = need_on(state.models[newcomer].footprint, DeviceKind.GPU)
    total = sum(state.replicas[each.replica].uses(device) for each in victims)
    if state.pools["default"].max_models_per_device == 16 and len(state.demand) == 1:
        assert free + total >= need
        assert all(free + total - state.replicas[each.replica].uses(device) < need for each in victims)


@given(st.integers(-5, 40), st.lists(st.tuples(st.integers(1, 20), st.integers(0, 100)), max_size=8))
def test_the_put_back_step_leaves_a_minimal_set(lack, offers):
    at = key("n1")
    victims = [Victim(loaded(f"v{number}", f"v{number}", size), {at: size}, worth, deleted=False) for number, (size, worth) in enumerate(offers)]
    victims.sort(key=lambda each: (each.worth, each.replica.id))
    chosen = cheapest({at: Lack(lack, 0)}, victims)
    total = sum(size for size, _ in offers)
    if chosen is None:
        assert total < lack
        return
    freed = sum(each.freed[at] for each in chosen)
    assert freed >= lack
    assert all(freed - each.freed[at] < lack for each in chosen)
    assert (chosen == []) == (lack <= 0)


@given(st.integers(2, 60), st.lists(st.integers(1, 40), min_size=2, max_size=4), st.integers(0, 2), st.integers(0, 40))
def test_a_split_adds_up_and_fits(layers, rooms, overhead, measured):
    footprint = Footprint(
        weights=layers * GI, kv=0, compute=0, device_overhead=overhead * GI, layers=((layers, GI, 0),), output=GI // 2, measured=measured * GI
    )
    room = [each * GI for each in rooms]
    found = split(footprint, room)
    if found is None:
        return
    assert all(size <= have for size, have in zip(found.bytes, room, strict=True))
    assert sum(found.shares) == layers_of(footprint) + 1, "the output counts as a layer"
    assert all(share >= 1 for share in found.shares)
    raised = max(1.0, footprint.measured / (layers * GI + GI // 2 + overhead * GI))
    least = layers * GI + GI // 2 + len(rooms) * overhead * GI
    assert sum(found.bytes) >= int(least * raised) - len(rooms)


@given(st.integers(2, 40))
def test_a_split_is_even_over_equal_devices(layers):
    footprint = Footprint(weights=layers * GI, kv=0, compute=0, layers=((layers, GI, 0),))
    found = split(footprint, [layers * GI] * 2)
    assert found is not None
    assert abs(found.bytes[0] - found.bytes[1]) <= GI


@settings(max_examples=100, deadline=None)
@given(clusters(), st.data())
def test_the_ledger_is_what_the_replicas_use_whatever_came_and_went(state, data):
    for _ in range(6):
        replica = data.draw(st.sampled_from(sorted(state.replicas))) if state.replicas else None
        if replica is None:
            break
        if data.draw(st.booleans()):
            state.remove_replica(replica)
        else:
            state.put_replica(replace(state.replicas[replica], committed={}, state=ReplicaState.SLEEPING))
    for device in state.devices:
        assert state.used.get(device, 0) == sum(each.uses(device) for each in state.replicas.values())
        assert state.index.arenas[device].free == state.devices[device].usable - state.used.get(device, 0)
    assert gib(1) == GI
