"""Replicas that come and go: scaling, lost nodes and devices, taints, selectors, several devices, places in the queue."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.domain.builders import NOW, asleep, cluster, gib, key, loaded, model, put, shorts, waiting

from corral.domain import reasons
from corral.domain.decide import decide
from corral.domain.footprint import after_out_of_memory, need_on
from corral.domain.model import Demand, Device, DeviceKind, Footprint, Node, Pool, Taint, Toleration
from corral.domain.plan import Delete, Load


def test_a_busy_model_gets_one_more_replica_where_there_is_room():
    busy = loaded("a-0", "a", 8, in_flight=9, used=0)
    state = cluster({"n1/gpu0": 12, "n2/gpu0": 12}, models=[model("a", max_replicas=2, target_in_flight=8)], replicas=[busy])
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n2/gpu0", "ScaleUp")]
    put(state, busy, in_flight=8)
    assert decide(state.snapshot(), NOW).actions == ()


def test_one_more_replica_evicts_nobody_of_the_same_priority():
    busy = loaded("a-0", "a", 8, in_flight=9, used=0)
    state = cluster(
        {"n1/gpu0": 10, "n2/gpu0": 10},
        models=[model("a", max_replicas=2), model("b", 8)],
        replicas=[busy, loaded("b-0", "b", 8, node="n2")],
    )
    assert decide(state.snapshot(), NOW).actions == ()


def test_a_replica_too_many_sleeps_after_a_minute():
    replicas = [loaded("a-0", "a", 8, used=59), loaded("a-1", "a", 8, node="n2", used=20)]
    state = cluster({"n1/gpu0": 12, "n2/gpu0": 12}, models=[model("a", max_replicas=2)], replicas=replicas)
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    assert plan.wake_at == NOW + 1
    assert shorts(decide(state.snapshot(), NOW + 1)) == [("Evict", "m/a-0", "ScaleDown")]


def test_one_of_several_goes_before_the_last_of_another():
    state = cluster(
        {"n1/gpu0": 24, "n2/gpu0": 12},
        models=[model("a", 10, max_replicas=2), model("b", 10), model("new", 12)],
        replicas=[
            loaded("a-0", "a", 10, used=10),
            loaded("a-1", "a", 10, node="n2", used=10),
            loaded("b-0", "b", 10, used=200),
            asleep("new-0", "new"),
        ],
        demand={"new": waiting()},
    )
    assert ("Evict", "m/a-0", "Evicted") in shorts(decide(state.snapshot(), NOW))


def test_a_lost_node_takes_its_replicas_with_it():
    state = cluster({"n1/gpu0": 24, "n2/gpu0": 24}, models=[model("a")], replicas=[loaded("a-0", "a", 8)], demand={"a": waiting()})
    state.remove_device(key("n1"))
    state.remove_node("n1")
    assert shorts(decide(state.snapshot(), NOW)) == [("Delete", "m/a-0", "NodeLost"), ("Create", "n2/gpu0", "Requested")]


def test_a_node_that_is_not_ready_is_waited_for_and_then_done_without():
    state = cluster({"n1/gpu0": 24, "n2/gpu0": 24}, models=[model("a")], replicas=[loaded("a-0", "a", 8)], demand={"a": waiting()})
    state.put_node(Node("n1", "default", ready=False, not_ready_since=NOW - 59))
    assert decide(state.snapshot(), NOW).actions == ()
    assert shorts(decide(state.snapshot(), NOW + 1)) == [("Create", "n2/gpu0", "Requested")], "its pod and its commitment stay"


def test_a_device_that_is_absent_for_ten_minutes_is_emptied():
    state = cluster(models=[model("a")], replicas=[loaded("a-0", "a", 8, used=10)])
    device = state.devices[key("n1")]
    state.put_device(replace(device, vanished_since=NOW - 599))
    assert decide(state.snapshot(), NOW).actions == ()
    assert shorts(decide(state.snapshot(), NOW + 1)) == [("Delete", "m/a-0", "DeviceLost")]


def test_a_no_execute_taint_moves_residents_within_the_drain_timeout():
    state = cluster(models=[model("a")], replicas=[loaded("a-0", "a", 8, in_flight=1)])
    state.put_device(replace(state.devices[key("n1")], no_execute=True))
    (action,) = decide(state.snapshot(), NOW).actions
    assert isinstance(action, Delete)
    assert (action.reason, action.deadline) == (reasons.TAINTED, NOW + 30)


@pytest.mark.parametrize(
    ("toleration", "goes"),
    [
        (Toleration("gpu", "Equal", "only"), True),
        (Toleration("gpu", "Exists"), True),
        (Toleration("", "Exists"), True),
        (Toleration("gpu", "Equal", "other"), False),
        (Toleration("gpu", "Exists", effect="NoExecute"), False),
        (None, False),
    ],
)
def test_taints_are_respected(toleration, goes):
    one = model("a", tolerations=(toleration,) if toleration else ())
    state = cluster(models=[one], demand={"a": waiting()}, nodes={"n1": Node("n1", "default", taints=(Taint("gpu", "only"),))})
    assert bool(decide(state.snapshot(), NOW).actions) is goes


def test_the_selector_is_respected_also_when_evicting():
    state = cluster(
        {"n1/gpu0": 24, "n2/gpu0": 24},
        nodes={"n2": Node("n2", "default", labels={"disk": "fast"})},
        models=[model("old", 20), model("b", 20), model("new", 20, node_selector={"disk": "fast"})],
        replicas=[loaded("old-0", "old", 20, used=250), loaded("b-0", "b", 20, node="n2", used=100), asleep("new-0", "new", node="n2")],
        demand={"new": waiting()},
    )
    assert shorts(decide(state.snapshot(), NOW)) == [("Evict", "m/b-0", "Evicted")]
    state.put_model(model("new", 20, node_selector={"disk": "slow"}))
    told = decide(state.snapshot(), NOW).verdicts["m/new"]
    assert (told.stalled, told.explanation.reason) == (True, reasons.NO_DEVICES)
    assert told.explanation.message == "Pool default has no device on a node with disk=slow."


def test_layers_are_split_over_the_fewest_devices():
    big = Footprint(weights=gib(40), kv=0, compute=gib(1), layers=((40, gib(1), 0),))
    state = cluster({f"n1/gpu{index}": 24 for index in range(4)}, models=[model("a", footprint=big, max_devices=4)], demand={"a": waiting()})
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n1/gpu0,n1/gpu1", "Requested")]
    put(state, replace(asleep("a-0", "a"), devices=(key("n1", "gpu0"), key("n1", "gpu1"))))
    (load,) = decide(state.snapshot(), NOW).actions
    assert isinstance(load, Load)
    assert load.commitment == {key("n1", "gpu0"): gib(21), key("n1", "gpu1"): gib(21)}
    assert load.split == (20.0, 21.0), "the output counts as a layer of the last"


def test_several_devices_are_freed_together():
    big = Footprint(weights=gib(40), kv=0, compute=0, layers=((40, gib(1), 0),))
    state = cluster(
        {"n1/gpu0": 24, "n1/gpu1": 24},
        models=[model("new", footprint=big, max_devices=2), model("x", 10), model("y", 10)],
        replicas=[
            loaded("x-0", "x", 10),
            loaded("y-0", "y", 10, device="gpu1"),
            replace(asleep("new-0", "new"), devices=(key("n1", "gpu0"), key("n1", "gpu1"))),
        ],
        demand={"new": waiting()},
    )
    assert sorted(shorts(decide(state.snapshot(), NOW))) == [("Evict", "m/x-0", "Evicted"), ("Evict", "m/y-0", "Evicted")]


def test_an_out_of_memory_makes_the_next_try_larger():
    small = Footprint(weights=gib(20), kv=0, compute=0)
    raised = after_out_of_memory(small, gib(20))
    assert need_on(raised, DeviceKind.GPU) == int(gib(20) * 1.15)
    assert after_out_of_memory(raised, gib(20), measured=gib(30)).measured == gib(30)


def test_what_was_measured_counts_when_it_is_more():
    measured = Footprint(weights=gib(8), kv=0, compute=0, measured=gib(9))
    state = cluster(models=[model("a", footprint=measured)], replicas=[asleep("a-0", "a")], demand={"a": waiting()})
    (load,) = decide(state.snapshot(), NOW).actions
    assert isinstance(load, Load)
    assert load.commitment == {key("n1"): gib(9)}


def queue_of(one, demand, pool=None):
    plan = decide(cluster(models=[one], demand={"a": demand}, pool=pool).snapshot(), NOW)
    verdict = plan.verdicts.get("m/a")
    return (verdict.queue_since, verdict.queue_until) if verdict else (None, None)


def test_a_place_in_the_queue():
    pool = Pool("default", hold_timeout=100.0)
    assert queue_of(model("a"), waiting(7)) == (NOW - 7, None)
    assert queue_of(model("a", queue_since=NOW - 8), waiting(7)) == (NOW - 8, None), "the same arrival, rounded otherwise"
    assert queue_of(model("a", queue_since=NOW - 50), waiting(7), pool) == (NOW - 7, None), "the first one left"
    assert queue_of(model("a", queue_since=NOW - 100), waiting(7), pool) == (NOW - 100, NOW + 60), "its hold was over: it comes back"
    assert queue_of(model("a", queue_since=NOW - 100, queue_until=NOW + 10), Demand(wish_id="x"), pool) == (NOW - 100, NOW + 10)
    assert queue_of(model("a", queue_since=NOW - 200, queue_until=NOW - 1), Demand(wish_id="x"), pool) == (None, None)
    told = Demand(returning_until=NOW + 20)
    assert queue_of(model("a", queue_since=NOW - 30), told, pool) == (NOW - 30, NOW + 20), "a gateway told when it comes back"


def test_a_kept_place_is_ahead_of_later_waiters():
    state = cluster(
        models=[model("a", 20, queue_since=NOW - 100, queue_until=NOW + 30), model("b", 20)],
        replicas=[asleep("a-0", "a"), asleep("b-0", "b")],
        demand={"b": waiting(50)},
    )
    assert shorts(decide(state.snapshot(), NOW)) == [("Load", "m/a-0", "Requested")]


def test_priority_comes_before_waiting_and_waiting_before_floors():
    state = cluster(
        models=[model("late", 20, priority=1), model("early", 20), model("floor", 20, min_replicas=1)],
        replicas=[asleep(f"{name}-0", name) for name in ("late", "early", "floor")],
        demand={"late": waiting(1), "early": waiting(100)},
    )
    assert shorts(decide(state.snapshot(), NOW)) == [("Load", "m/late-0", "Requested")]
    state.put_demand("m/late", Demand())
    assert shorts(decide(state.snapshot(), NOW)) == [("Load", "m/early-0", "Requested")]
    state.put_demand("m/early", Demand())
    assert shorts(decide(state.snapshot(), NOW)) == [("Load", "m/floor-0", "Floor")]


def test_foreign_use_is_not_for_ever():
    """A device that foreign pods fill now is still big enough for a model that may come later."""
    state = cluster(models=[model("a", 20)], demand={"a": waiting()})
    state.put_device(Device(key("n1"), "default", DeviceKind.GPU, gib(4), gib(1)))
    told = decide(state.snapshot(), NOW).verdicts["m/a"]
    assert not told.stalled
    assert told.explanation.reason == reasons.WAITING_FOR_MEMORY
