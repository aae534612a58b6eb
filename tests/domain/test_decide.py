"""One device, one node, several: what is loaded, who goes, what waits, and in which words."""

from __future__ import annotations

import pytest
from tests.domain.builders import NOW, asleep, cluster, gib, key, loaded, model, put, shorts, waiting

from corral.domain import reasons
from corral.domain.decide import decide
from corral.domain.model import Backoff, Blocked, Demand, DeviceKind, Footprint, Node, Pool, ReplicaState
from corral.domain.plan import Create, Delete, Evict, Load
from corral.domain.snapshot import State


def test_nothing_is_done_for_a_model_at_rest():
    state = cluster(models=[model("a")])
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    assert plan.verdicts == {}, "its replicas tell all there is to say"


def test_a_cold_model_gets_a_sleeping_pod_first_and_its_load_when_the_file_is_there():
    state = cluster(models=[model("a")], demand={"a": waiting()})
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n1/gpu0", "Requested")]
    pod = put(state, asleep("a-0", "a", state=ReplicaState.DOWNLOADING))
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    assert plan.verdicts["m/a"].explanation.reason == reasons.DOWNLOADING
    put(state, pod, state=ReplicaState.SLEEPING)
    (load,) = decide(state.snapshot(), NOW).actions
    assert isinstance(load, Load)
    assert load.commitment == {key("n1"): gib(8)}
    assert load.loaded_for == NOW - 1
    assert load.split == (1.0,)


def test_best_fit_over_devices():
    state = cluster({"n1/gpu0": 24, "n1/gpu1": 12, "n2/gpu0": 48}, models=[model("a")], demand={"a": waiting()})
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n1/gpu1", "Requested")]


def test_the_least_recently_used_goes_and_only_as_many_as_needed():
    state = cluster(
        models=[model("a", 7), model("b", 7), model("c", 7), model("new", 8)],
        replicas=[
            loaded("a-0", "a", 7, used=100),
            loaded("b-0", "b", 7, used=250),
            loaded("c-0", "c", 7, used=200),
            asleep("new-0", "new"),
        ],
        demand={"new": waiting()},
    )
    (evict,) = decide(state.snapshot(), NOW).actions
    assert isinstance(evict, Evict)
    assert (evict.replica, evict.evicting_for, evict.deadline) == ("m/b-0", "m/new", None)
    assert NOW - 250 < evict.unused_since < NOW - 249.9


def test_whoever_turns_out_not_to_be_needed_stays():
    state = cluster(
        models=[model("small", 2), model("big", 20), model("new", 20)],
        replicas=[loaded("small-0", "small", 2, used=250), loaded("big-0", "big", 20, used=100), asleep("new-0", "new")],
        demand={"new": waiting()},
    )
    assert shorts(decide(state.snapshot(), NOW)) == [("Evict", "m/big-0", "Evicted")]


def test_a_swap_is_evict_then_load_and_nothing_is_ordered_twice():
    old = loaded("old-0", "old", 20)
    state = cluster(models=[model("old", 20), model("new", 20)], replicas=[old, asleep("new-0", "new")], demand={"new": waiting()})
    assert shorts(decide(state.snapshot(), NOW)) == [("Evict", "m/old-0", "Evicted")]
    put(state, old, ordered="Evict", evicting_for="m/new", state=ReplicaState.DRAINING)
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    assert plan.verdicts["m/new"].explanation.reason == reasons.EVICTING
    put(state, old, state=ReplicaState.SLEEPING, committed={})
    assert shorts(decide(state.snapshot(), NOW)) == [("Load", "m/new-0", "Requested")]


def test_room_that_is_being_made_is_kept_from_those_behind():
    state = cluster(
        models=[model("old", 20), model("new", 20), model("late", 3)],
        replicas=[
            loaded("old-0", "old", 20, ordered="Evict", evicting_for="m/new"),
            asleep("new-0", "new"),
            asleep("late-0", "late"),
        ],
        demand={"new": waiting(5), "late": waiting(1)},
    )
    plan = decide(state.snapshot(), NOW)
    assert ("Load", "m/late-0", "Requested") in shorts(plan), "23 GiB hold both: 20 + 3"
    state.put_model(model("late", 3.5))
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == (), "20 + 3.5 do not fit: the first of the queue goes first"


def test_what_can_never_fit_evicts_nobody_and_says_so():
    state = cluster(models=[model("a", 20), model("huge", 30)], replicas=[loaded("a-0", "a", 20)], demand={"huge": waiting()})
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    verdict = plan.verdicts["m/huge"]
    assert verdict.stalled
    assert verdict.explanation.reason == reasons.DOES_NOT_FIT
    assert verdict.explanation.message == (
        "needs 30Gi; the largest device of pool default is n1/gpu0 with 24Gi, of which 1Gi stay free as margin: 7Gi too little."
    )


@pytest.mark.parametrize(
    ("victim", "reason"),
    [
        ({"in_flight": 2}, reasons.IN_FLIGHT),
        ({"age": 10.0, "used": 5.0}, reasons.YOUNG),
        ({"state": ReplicaState.LOADING}, reasons.LOADING),
        ({"reachable": False}, reasons.UNREACHABLE),
    ],
)
def test_who_is_never_a_victim(victim, reason):
    state = cluster(
        models=[model("a", 20), model("new", 20)], replicas=[loaded("a-0", "a", 20, **victim), asleep("new-0", "new")], demand={"new": waiting()}
    )
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    (candidate,) = plan.verdicts["m/new"].explanation.candidates
    assert [each.reason for each in candidate.refused] == [reason]


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"pinned": True}, reasons.PINNED), ({"priority": 5}, reasons.HIGHER_PRIORITY)],
)
def test_whom_its_model_protects(more, reason):
    state = cluster(
        models=[model("a", 20, **more), model("new", 20)],
        replicas=[loaded("a-0", "a", 20, used=10), asleep("new-0", "new")],
        demand={"new": waiting()},
    )
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    assert plan.verdicts["m/new"].explanation.candidates[0].refused[0].reason == reason


def test_one_just_loaded_for_a_waiter_serves_it_first():
    pool = Pool("default", min_residency=0.0)
    fresh = loaded("a-0", "a", 20, used=2000, age=2.0, loaded_for=NOW - 8, served=0)
    state = cluster(
        models=[model("a", 20), model("new", 20)], replicas=[fresh, asleep("new-0", "new")], demand={"new": waiting(9), "a": waiting(8)}, pool=pool
    )
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    assert plan.verdicts["m/new"].explanation.candidates[0].refused[0].reason == reasons.JUST_LOADED
    put(state, fresh, loaded_for=None, served=1, last_used=NOW - 1)
    state.put_demand("m/a", Demand())
    assert shorts(decide(state.snapshot(), NOW)) == [("Evict", "m/a-0", "Evicted")]


def test_the_message_of_a_waiting_model_is_the_arithmetic():
    state = cluster(
        models=[model("a", 12), model("b", 8), model("new", 20)],
        replicas=[loaded("a-0", "a", 12, in_flight=2), loaded("b-0", "b", 8), asleep("new-0", "new")],
        demand={"new": waiting()},
    )
    assert decide(state.snapshot(), NOW).verdicts["m/new"].explanation.message == (
        "needs 20Gi on one device; margin 1Gi per device.\n"
        "n1/gpu0: 24Gi, free 3Gi; could free 8Gi; not: a in flight (2).\n"
        "Next: the turn of m/a ends at 15:07:10Z."
    )


def test_idle_models_sleep_and_later_lose_their_pod():
    replica = loaded("a-0", "a", 8, used=299)
    state = cluster(models=[model("a")], replicas=[replica])
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    assert plan.wake_at == NOW + 1
    assert shorts(decide(state.snapshot(), NOW + 1)) == [("Evict", "m/a-0", "IdleTimeout")]
    put(state, replica, state=ReplicaState.SLEEPING, committed={})
    assert decide(state.snapshot(), NOW + 1).wake_at == NOW - 299 + 1800
    assert shorts(decide(state.snapshot(), NOW - 299 + 1800)) == [("Delete", "m/a-0", "IdleTimeout")]


def test_a_deleted_model_leaves_nothing():
    state = cluster(models=[model("a", deleting=True)], replicas=[loaded("a-0", "a", 8, in_flight=1), asleep("gone-0", "gone")])
    plan = decide(state.snapshot(), NOW)
    assert sorted(shorts(plan)) == [("Delete", "m/a-0", "Deleted"), ("Delete", "m/gone-0", "Deleted")]
    assert all(isinstance(each, Delete) and each.deadline == NOW + 30 for each in plan.actions)


def test_a_floor_is_loaded_into_free_room_and_stays():
    state = cluster(models=[model("a", min_replicas=1)])
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n1/gpu0", "Floor")]
    put(state, asleep("a-0", "a"))
    assert shorts(decide(state.snapshot(), NOW)) == [("Load", "m/a-0", "Floor")]
    put(state, loaded("a-0", "a", 8, used=90_000, age=90_000))
    assert decide(state.snapshot(), NOW).actions == ()


def test_a_floor_evicts_less_important_models_only():
    state = cluster(models=[model("a", 20), model("f", 20, min_replicas=1)], replicas=[loaded("a-0", "a", 20, used=200), asleep("f-0", "f")])
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    assert plan.verdicts["m/f"].explanation.candidates[0].refused[0].reason == reasons.SAME_PRIORITY
    state.put_model(model("f", 20, min_replicas=1, priority=1))
    assert shorts(decide(state.snapshot(), NOW)) == [("Evict", "m/a-0", "Evicted")]
    state.put_model(model("a", 20, min_replicas=1))
    assert decide(state.snapshot(), NOW).verdicts["m/f"].explanation.candidates[0].refused[0].reason == reasons.FLOOR_OF_SAME_PRIORITY


def test_a_pinned_model_takes_what_is_not_pinned():
    state = cluster(models=[model("a", 20, min_replicas=1), model("p", 20, pinned=True)], replicas=[loaded("a-0", "a", 20), asleep("p-0", "p")])
    assert shorts(decide(state.snapshot(), NOW)) == [("Evict", "m/a-0", "Evicted")]


def test_a_changed_spec_is_rolled_out_beside_the_old_one_when_there_is_room():
    state = cluster({"n1/gpu0": 24}, models=[model("a", revision="r2")], replicas=[loaded("a-0", "a", 8, used=10)])
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n1/gpu0", "RevisionReplaced")]
    put(state, asleep("a-1", "a", revision="r2"))
    assert shorts(decide(state.snapshot(), NOW)) == [("Load", "m/a-1", "RevisionReplaced")]
    put(state, loaded("a-1", "a", 8, revision="r2", used=5, age=5))
    assert shorts(decide(state.snapshot(), NOW)) == [("Delete", "m/a-0", "RevisionReplaced")]


def test_a_changed_spec_is_rolled_out_in_place_when_there_is_not():
    state = cluster(models=[model("a", 20, revision="r2")], replicas=[loaded("a-0", "a", 20, used=10, in_flight=1)])
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n1/gpu0", "RevisionReplaced")]
    put(state, asleep("a-1", "a", revision="r2"))
    (action,) = decide(state.snapshot(), NOW).actions
    assert isinstance(action, Delete)
    assert (action.replica, action.deadline) == ("m/a-0", NOW + 30)


def test_backing_off_is_waited_out():
    failed = Backoff("n1", 2, NOW + 20, reasons.LOAD_FAILED, "The engine said no.")
    state = cluster(models=[model("a", backoff=(failed,))], replicas=[asleep("a-0", "a")], demand={"a": waiting()})
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    assert plan.wake_at == NOW + 20
    explanation = plan.verdicts["m/a"].explanation
    assert (explanation.reason, explanation.message) == (
        reasons.BACKING_OFF,
        "The engine said no. Tried again on n1 at 15:07:00Z (failure 2).",
    )
    assert shorts(decide(state.snapshot(), NOW + 20)) == [("Load", "m/a-0", "Requested")]


def test_a_failed_node_does_not_keep_a_model_from_another():
    failed = Backoff("n1", 1, NOW + 20, reasons.LOAD_FAILED, "The engine said no.")
    state = cluster({"n1/gpu0": 24, "n2/gpu0": 48}, models=[model("a", backoff=(failed,))], demand={"a": waiting()})
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n2/gpu0", "Requested")]


def test_estimates_are_few_at_once_and_waiters_come_first():
    models = [model(name, None, created=NOW - index) for index, name in enumerate("abcdef")]
    state = cluster(models=[*models, model("busy", None, estimating=True)], demand={"a": waiting()})
    plan = decide(state.snapshot(), NOW)
    assert [each.model for each in plan.actions] == ["m/a", "m/f", "m/e"]
    assert plan.verdicts["m/a"].explanation.reason == reasons.ESTIMATING


def test_a_blocked_model_speaks_for_itself():
    state = cluster(models=[model("a", None, blocked=Blocked(reasons.NOT_A_GGUF, "x is a PNG."))], demand={"a": waiting()})
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    assert plan.verdicts["m/a"].stalled


def test_after_a_crash_a_commitment_without_an_engine_is_used_or_released():
    replica = asleep("a-0", "a", committed={key("n1"): gib(8)})
    state = cluster(models=[model("a")], replicas=[replica], demand={"a": waiting()})
    (action,) = decide(state.snapshot(), NOW).actions
    assert isinstance(action, Load)
    assert action.commitment == {key("n1"): gib(8)}
    state.put_demand("m/a", Demand())
    assert shorts(decide(state.snapshot(), NOW)) == [("Evict", "m/a-0", "IdleTimeout")]


def test_sleeping_pods_on_host_memory_make_room_with_their_residue():
    host = key("n1", "host")
    sleeper = asleep("old-0", "old", device="host", held={host: gib(1)})
    new = asleep("new-0", "new", device="host", held={host: gib(1)})
    state = cluster(
        {"n1/host": 16},
        kind=DeviceKind.HOST,
        models=[model("old", 8, residue=gib(1)), model("new", 14.5, residue=gib(1))],
        replicas=[sleeper, new],
        demand={"new": waiting()},
    )
    assert shorts(decide(state.snapshot(), NOW)) == [("Delete", "m/old-0", "ResidueInTheWay")]


def test_a_waiter_has_its_pod_ready_while_the_model_in_its_way_is_busy():
    host = key("n1", "host")
    state = cluster(
        {"n1/host": 16},
        kind=DeviceKind.HOST,
        models=[model("old", 12, residue=gib(1)), model("new", 12, residue=gib(1)), model("late", 12, residue=gib(1))],
        replicas=[loaded("old-0", "old", 12, device="host", in_flight=1)],
        demand={"new": waiting(2), "late": waiting(1)},
    )
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n1", "Requested")], "whoever is behind it has no use for one yet"
    put(state, asleep("new-0", "new", device="host", held={host: gib(1)}))
    assert shorts(decide(state.snapshot(), NOW)) == []


def test_a_claim_of_another_namespace_is_freed_by_deleting_its_pods():
    other = asleep("x-0", "x", namespace="other", namespace_claim=True)
    state = cluster(models=[model("x", 8), model("new", 8)], replicas=[other], demand={"new": waiting()})
    assert shorts(decide(state.snapshot(), NOW)) == [("Delete", "other/x-0", "ClaimInTheWay")]


def test_an_unplaced_pod_is_deleted_after_twenty_seconds():
    pod = asleep("a-0", "a", state=ReplicaState.PENDING, scheduled=False, unschedulable_since=NOW - 19, message="0/3 nodes are available")
    state = cluster(models=[model("a")], replicas=[pod], demand={"a": waiting()})
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    assert plan.wake_at == NOW + 1
    plan = decide(state.snapshot(), NOW + 1)
    assert ("Delete", "m/a-0", "Unschedulable") in shorts(plan)


def test_models_per_device_are_bounded():
    pool = Pool("default", max_models_per_device=1)
    state = cluster(
        models=[model("a", 2), model("new", 2)], replicas=[loaded("a-0", "a", 2), asleep("new-0", "new")], demand={"new": waiting()}, pool=pool
    )
    assert shorts(decide(state.snapshot(), NOW)) == [("Evict", "m/a-0", "Evicted")]


def test_a_turn_ends_for_the_oldest_waiter():
    busy = loaded("a-0", "a", 20, in_flight=3, used=0)
    state = cluster(models=[model("a", 20), model("new", 20)], replicas=[busy, asleep("new-0", "new")], demand={"new": waiting(1)})
    plan = decide(state.snapshot(), NOW)
    assert plan.actions == ()
    assert plan.turns == {"m/a-0": NOW}
    put(state, busy, turn_started=NOW)
    assert decide(state.snapshot(), NOW + 29.5).actions == ()
    (evict,) = decide(state.snapshot(), NOW + 30).actions
    assert isinstance(evict, Evict)
    assert (evict.reason, evict.deadline) == (reasons.TURN_ENDED, NOW + 60)


def test_a_wish_loads_once_and_unloads_when_idle():
    state = cluster(models=[model("a")], demand={"a": Demand(wish="Load", wish_id="1")})
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n1/gpu0", "Wished")]
    replica = put(state, loaded("a-0", "a", 8, used=1, in_flight=1))
    state.put_demand("m/a", Demand(wish="Unload", wish_id="2"))
    assert decide(state.snapshot(), NOW).actions == ()
    put(state, replica, in_flight=0)
    assert shorts(decide(state.snapshot(), NOW)) == [("Evict", "m/a-0", "Wished")]


def test_a_create_takes_the_way_with_one_node_closed():
    state = cluster({"n1/gpu0": 24}, models=[model("a")], demand={"a": waiting()})
    state.put_node(state.nodes["n1"].__class__("n1", "default", schedulable=False))
    plan = decide(state.snapshot(), NOW)
    assert not any(isinstance(each, Create) for each in plan.actions)
    assert "node cordoned (1 device)" in plan.verdicts["m/a"].explanation.message


def test_a_full_node_gives_up_the_pod_that_slept_longest():
    state = cluster(
        models=[model("a"), model("b"), model("new")],
        replicas=[asleep("a-0", "a", last_used=NOW - 500), asleep("b-0", "b", last_used=NOW - 900)],
        demand={"new": waiting()},
    )
    state.put_node(Node("n1", "default", pod_slots=2))
    assert shorts(decide(state.snapshot(), NOW)) == [("Delete", "m/b-0", "PodSlots")]
    put(state, state.replicas["m/b-0"], ordered="Delete")
    assert decide(state.snapshot(), NOW).actions == (), "one leaves already"
    state.remove_replica("m/b-0")
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n1/gpu0", "Requested")]


def test_a_pod_that_was_made_in_this_wait_is_used_though_a_colder_place_came_up():
    def contended(*, victim_used: float) -> State:
        return cluster(
            {"n1/gpu0": 24, "n2/gpu0": 24},
            models=[model("hot", 20), model("cold", 20), model("new", 20)],
            replicas=[
                loaded("hot-0", "hot", 20, used=victim_used),
                loaded("cold-0", "cold", 20, node="n2", used=200),
                asleep("new-0", "new", created=NOW - 4),
            ],
            demand={"new": waiting(5)},
        )

    assert shorts(decide(contended(victim_used=100).snapshot(), NOW)) == [("Evict", "m/hot-0", "Evicted")]
    # Unless somebody has used since what would have to make way.
    assert shorts(decide(contended(victim_used=1).snapshot(), NOW)) == [("Create", "n2/gpu0", "Requested")]


def test_what_a_newcomer_was_promised_is_left_to_it_while_there_is_another_way():
    coming = asleep("first-0", "first", created=NOW - 2, state=ReplicaState.DOWNLOADING)
    state = cluster(
        {"n1/gpu0": 24, "n2/gpu0": 24},
        models=[model("first", 20), model("idle", 20), model("second", 20)],
        replicas=[coming, loaded("idle-0", "idle", 20, node="n2", used=200)],
        demand={"first": waiting(5), "second": waiting(3)},
    )
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n2/gpu0", "Requested")]
    put(state, loaded("idle-0", "idle", 20, node="n2", used=200, in_flight=1))
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n1/gpu0", "Requested")]


def test_a_split_newcomer_goes_beside_what_another_was_promised():
    big = Footprint(weights=gib(40), kv=0, compute=0, layers=((40, gib(1), 0),))
    models = [model("first", footprint=big, max_devices=2), model("second", footprint=big, max_devices=2)]
    state = cluster({f"n1/gpu{index}": 24 for index in range(4)}, models=models, demand={"first": waiting(5), "second": waiting(3)})
    first, second = (action for action in decide(state.snapshot(), NOW).actions if isinstance(action, Create))
    assert set(first.devices).isdisjoint(second.devices)


def test_a_model_that_makes_way_and_is_waited_for_gets_no_second_pod():
    host = key("n1", "host")
    small = {"residue": gib(1)}
    state = cluster(
        {"n1/host": 64},
        kind=DeviceKind.HOST,
        models=[model("a", 12, **small), model("b", 12, **small)],
        replicas=[
            loaded("a-0", "a", 12, device="host", used=0.1, state=ReplicaState.DRAINING, admitting=False, ordered="Evict", evicting_for="m/b"),
            asleep("b-0", "b", device="host", held={host: gib(1)}),
        ],
        demand={"a": waiting(1), "b": waiting(0.1)},
        pool=Pool("default", max_models_per_device=1),
    )
    assert shorts(decide(state.snapshot(), NOW)) == []


def test_a_split_model_finds_the_one_node_that_has_room_in_a_large_fleet():
    big = Footprint(weights=gib(40), kv=0, compute=0, layers=((40, gib(1), 0),))
    nodes = [f"n{number:03}" for number in range(200)]
    taken = [node for node in nodes if node != "n077"]
    state = cluster(
        {f"{node}/gpu{index}": 24 for node in nodes for index in range(2)},
        models=[model("big", footprint=big, max_devices=2), *(model(f"of-{node}", 20) for node in taken)],
        replicas=[loaded(f"of-{node}-0", f"of-{node}", 20, node=node, used=200) for node in taken],
        demand={"big": waiting()},
    )
    assert shorts(decide(state.snapshot(), NOW)) == [("Create", "n077/gpu0,n077/gpu1", "Requested")]
