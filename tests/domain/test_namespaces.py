"""Devices that are claimed for one namespace at a time: nobody plans a pod that could not start, and only a deletion hands a device on."""

from __future__ import annotations

from dataclasses import replace

from tests.domain.builders import NOW, asleep, cluster, gib, key, loaded, model, shorts, waiting

from corral.domain import reasons
from corral.domain.decide import decide
from corral.domain.model import Blocked, Demand, ReplicaState
from corral.domain.plan import Delete


def claimed(devices, **more):
    state = cluster(devices, **more)
    for device in list(state.devices.values()):
        state.put_device(replace(device, namespaced=True))
    return state


def other(name: str, size: float = 8.0, **more):
    return model(name, size, namespace="other", **more)


def test_one_plan_makes_pods_of_one_namespace_on_a_device():
    state = claimed({"n1/gpu0": 24}, models=[model("a", 4), other("b", 4)], demand={"a": waiting(2), "b": waiting(1)})
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n1/gpu0", "Requested")]
    state = claimed({"n1/gpu0": 24, "n2/gpu0": 24}, models=[model("a", 4), other("b", 4)], demand={"a": waiting(2), "b": waiting(1)})
    assert {each[1] for each in shorts(decide(state.snapshot(), NOW))} == {"n1/gpu0", "n2/gpu0"}
    state = claimed({"n1/gpu0": 24}, models=[model("a", 4), model("b", 4)], demand={"a": waiting(2), "b": waiting(1)})
    assert len(decide(state.snapshot(), NOW).actions) == 2


def test_a_split_model_plans_no_pod_where_another_namespace_got_one():
    state = claimed(
        {"n1/gpu0": 24, "n1/gpu1": 24},
        models=[model("a", 4), other("b", 30, max_devices=2)],
        demand={"a": waiting(2), "b": waiting(1)},
    )
    assert [each[0] for each in shorts(decide(state.snapshot(), NOW))] == ["Create"]


def test_a_busy_model_of_another_namespace_is_deleted_at_the_end_of_its_turn_before_a_pod_is_made():
    busy = loaded("x-0", "x", 8, in_flight=1, used=0, namespace="other", namespace_claim=True, turn_started=NOW - 100)
    state = claimed({"n1/gpu0": 24}, models=[model("a"), other("x")], replicas=[busy], demand={"a": waiting(60), "x": Demand(in_flight=1)})
    [action] = decide(state.snapshot(), NOW).actions
    assert isinstance(action, Delete)
    assert (action.replica, action.reason, action.deadline) == ("other/x-0", reasons.TURN_ENDED, NOW + 30)


def test_no_pod_is_made_while_the_last_one_of_another_namespace_leaves():
    leaving = asleep("x-0", "x", namespace="other", namespace_claim=True, deleting=True)
    state = claimed({"n1/gpu0": 24}, models=[model("a"), other("x")], replicas=[leaving], demand={"a": waiting()})
    assert decide(state.snapshot(), NOW).actions == ()


def test_one_device_is_handed_over_while_others_stay_as_they_are():
    leaving = asleep("x-0", "x", namespace="other", namespace_claim=True, deleting=True)
    staying = asleep("y-0", "y", node="n2", namespace="other", namespace_claim=True)
    state = claimed({"n1/gpu0": 24, "n2/gpu0": 24}, models=[model("a"), other("x"), other("y")], replicas=[leaving, staying], demand={"a": waiting()})
    assert decide(state.snapshot(), NOW).actions == ()
    state.put_replica(replace(leaving, deleting=False, ordered="Delete", state=ReplicaState.LOADED, committed={key("n1"): gib(20)}))
    assert decide(state.snapshot(), NOW).actions == ()
    # Where even that would not make enough room, the other one is taken.
    state.put_device(replace(state.devices[key("n1")], capacity=gib(8)))
    assert shorts(decide(state.snapshot(), NOW)) == [("Delete", "other/y-0", "ClaimInTheWay")]


def test_a_failed_pod_of_another_namespace_gives_its_device_up():
    failed = asleep("x-0", "x", namespace="other", namespace_claim=True, state=ReplicaState.FAILED)
    state = claimed({"n1/gpu0": 24}, models=[model("a"), other("x")], replicas=[failed], demand={"a": waiting()})
    assert shorts(decide(state.snapshot(), NOW)) == [("Delete", "other/x-0", "ClaimInTheWay")]


def test_a_pod_that_was_given_another_device_is_deleted():
    wrong = asleep("a-0", "a", state=ReplicaState.FAILED, error=Blocked(reasons.BINDING_DIFFERS, "the scheduler allocated GPU-9"))
    state = claimed({"n1/gpu0": 24, "n2/gpu0": 24}, models=[model("a")], replicas=[wrong], demand={"a": waiting()})
    assert ("Delete", "m/a-0", "BindingDiffers") in shorts(decide(state.snapshot(), NOW))
    assert key("n1") in state.devices
