"""The decisions, without a network and without a clock: time is a number."""

import pytest

from corral.gateway.balance import choose
from corral.gateway.effects import Arrival, Grant, LoadError, Reject, ReplicaStatus, Unwatch, Wait, Watch
from corral.gateway.machine import Machine
from corral.gateway.ports import Hold, ModelView, ReplicaView, Wish

KEY = "models/small"
LOADED = ReplicaStatus("Loaded", admitting=True)
LOADING = ReplicaStatus("Loading", admitting=False, progress=0.5)


def model(name="small", **changes):
    fields = {"namespace": "models", "name": name, "served_names": (name,), "state": "Sleeping", "ready": True}
    return ModelView(**(fields | changes))


def replica(uid="a", **changes):
    fields = {"model": KEY, "pod": uid, "uid": uid, "host": "10.0.0.1", "state": "Sleeping"}
    return ReplicaView(**(fields | changes))


def machine(*replicas, **changes):
    one = Machine()
    one.model_changed(model(**changes), 0)
    for view in replicas:
        one.replica_changed(view, 0)
    return one


def kinds(effects):
    return [type(effect).__name__ for effect in effects]


def granted(effects):
    return [(effect.request, effect.replica.uid) for effect in effects if isinstance(effect, Grant)]


def test_resident_granted():
    one = machine(replica(state="Loaded"))
    assert granted(one.arrive(Arrival("1", KEY), 1)) == [("1", "a")]
    assert one.in_flight(KEY) == 1
    assert one.ended("1", 2) == []
    assert one.in_flight() == 0
    assert one.ended("1", 2) == []  # a second end is none


def test_cold_queued_then_joined_then_granted_in_order():
    one = machine(replica())
    first = one.arrive(Arrival("1", KEY), 1)
    assert first == [Wait("1", joined=False), Watch(replica())]
    assert one.replica_status("a", LOADING, 2) == []
    assert one.arrive(Arrival("2", KEY), 3) == [Wait("2", joined=True)]
    effects = one.replica_status("a", LOADED, 4)
    assert granted(effects) == [("1", "a"), ("2", "a")]
    assert effects[-1] == Unwatch("a")
    assert one.waiting() == 0


def test_unknown_model_rejected():
    (effect,) = Machine().arrive(Arrival("1", KEY), 1)
    assert (effect.rejection.status, effect.rejection.code) == (404, "model_not_found")


def test_refused_by_a_draining_pod_keeps_its_place():
    one = machine(replica(state="Loaded"))
    one.arrive(Arrival("1", KEY), 1)
    one.arrive(Arrival("2", KEY), 2)
    assert kinds(one.refused("2", 3)) == ["Wait", "Watch"]
    assert kinds(one.arrive(Arrival("3", KEY), 4)) == ["Wait"]
    assert kinds(one.refused("1", 5)) == ["Wait"]
    assert [request for request, _ in granted(one.replica_status("a", LOADED, 6))] == ["1", "2", "3"]


def test_refused_goes_to_another_open_replica_at_once():
    one = machine(replica("a", state="Loaded"), replica("b", state="Loaded"))
    ((request, first),) = granted(one.arrive(Arrival("1", KEY), 1))
    second = "b" if first == "a" else "a"
    assert granted(one.refused(request, 2)) == [("1", second)]


def test_the_hint_opens_once_and_a_refusal_outweighs_it():
    one = machine(replica(state="Loaded"))
    one.arrive(Arrival("1", KEY), 1)
    one.refused("1", 2)
    assert granted(one.replica_changed(replica(state="Loaded", node="n1"), 3)) == []  # nothing new about its state
    assert granted(one.replica_changed(replica(state="Sleeping"), 4)) == []
    assert granted(one.replica_changed(replica(state="Loaded"), 5)) == [("1", "a")]


def test_a_lagging_hint_does_not_close_what_the_pod_itself_opened():
    one = machine(replica())
    one.arrive(Arrival("1", KEY), 1)
    one.replica_status("a", LOADED, 2)
    one.replica_changed(replica(state="Loading"), 3)
    assert granted(one.arrive(Arrival("2", KEY), 4)) == [("2", "a")]


def test_a_pod_that_admits_and_refuses_is_tried_ever_more_slowly():
    one = machine(replica(state="Loaded"))
    one.arrive(Arrival("1", KEY), 0)
    one.refused("1", 0)
    now, tries = 0.0, 0
    while now < 4:
        if granted(one.replica_status("a", LOADED, now)):
            tries += 1
            one.refused("1", now)
            continue
        now = max(one.wake_at(reports=False), now)
        if granted(one.tick(now)):
            tries += 1
            one.refused("1", now)
    assert 5 < tries < 12


def test_deleting_and_hostless_replicas_are_neither_used_nor_watched():
    one = machine(replica("a", state="Loaded", deleting=True), replica("b", host="", state="Loaded"))
    assert one.arrive(Arrival("1", KEY), 1) == [Wait("1", joined=False)]
    assert granted(one.replica_changed(replica("b", state="Loaded"), 2)) == [("1", "b")]


@pytest.mark.parametrize(
    ("reason", "code"), [("DoesNotFit", "does_not_fit"), ("PinnedDoesNotFit", "does_not_fit"), ("ChecksumMismatch", "load_failed")]
)
def test_stalled_rejected_at_once_and_waiters_with_it(reason, code):
    one = machine()
    one.arrive(Arrival("1", KEY), 1)
    (effect,) = one.model_changed(model(ready=False, stalled=True, stalled_reason=reason, stalled_message="because"), 2)
    assert (effect.request, effect.rejection.status, effect.rejection.code, effect.rejection.reason) == ("1", 503, code, reason)
    assert "because" in effect.rejection.message
    (effect,) = one.arrive(Arrival("2", KEY), 3)
    assert effect.rejection.code == code


def test_stalled_but_still_resident_serves():
    one = machine(replica(state="Loaded"), stalled=True, stalled_reason="DoesNotFit")
    assert granted(one.arrive(Arrival("1", KEY), 1)) == [("1", "a")]


def test_a_taken_name_stalls_nobody():
    one = machine(stalled=True, stalled_reason="NameTaken")
    assert kinds(one.arrive(Arrival("1", KEY), 1)) == ["Wait"]


def test_a_failed_load_ends_the_waits_of_its_time_and_not_later_ones():
    one = machine()
    one.arrive(Arrival("1", KEY), 1)
    failed = model(ready=False, reason="LoadFailed", message="the engine ended with 1")
    (effect,) = one.model_changed(failed, 2)
    assert (effect.rejection.code, effect.rejection.retry_after) == ("load_failed", 10)
    assert kinds(one.arrive(Arrival("2", KEY), 3)) == ["Wait"]  # another try is coming
    assert one.model_changed(failed, 4) == []


@pytest.mark.parametrize(("reason", "retry", "ends"), [("NotAGGUF", False, True), ("LoadFailed", True, False), ("OutOfMemory", False, False)])
def test_a_supervisors_error_ends_waits_when_no_retry_can_help(reason, retry, ends):
    one = machine(replica())
    one.arrive(Arrival("1", KEY), 100)
    old = ReplicaStatus("Sleeping", admitting=False, error=LoadError("NotAGGUF", "an old story", retry=False, at=50))
    assert one.replica_status("a", old, 101) == []
    effects = one.replica_status("a", ReplicaStatus("Failed", admitting=False, error=LoadError(reason, "text", retry, at=102)), 102)
    assert any(isinstance(effect, Reject) for effect in effects) is ends


def test_one_replicas_failure_ends_nothing_while_another_loads():
    one = machine(replica("a"), replica("b"))
    one.arrive(Arrival("1", KEY), 1)
    one.replica_status("b", LOADING, 2)
    error = LoadError("NotAGGUF", "text", retry=False, at=3)
    assert one.replica_status("a", ReplicaStatus("Failed", admitting=False, error=error), 3) == []


def test_hold_ends_in_time():
    one = machine(hold=Hold(timeout=10), state="WaitingForMemory")
    one.arrive(Arrival("1", KEY), 5)
    one.arrive(Arrival("2", KEY), 6)
    assert one.wake_at(reports=False) == 15
    assert one.tick(14.9) == []
    (effect,) = one.tick(15)
    assert (effect.request, effect.rejection.code) == ("1", "hold_timeout")
    assert "WaitingForMemory" in effect.rejection.message
    assert one.wake_at(reports=False) == 16


def test_a_place_is_kept_for_twice_what_a_client_was_told_to_wait():
    one = machine(hold=Hold(timeout=10), state="WaitingForMemory")
    one.arrive(Arrival("1", KEY), 5)
    one.report(5)
    (effect,) = one.tick(15)
    assert effect.rejection.retry_after == 10
    (entry,) = one.report(15).models
    assert (entry.waiting, entry.returning_seconds) == (0, 20)
    assert entry.as_json()["returningSeconds"] == 20
    assert one.report(40) is None, "said once; nothing has to be renewed for it"
    one.arrive(Arrival("2", KEY), 50)
    assert one.report(50).models[0].returning_seconds == 0


def test_a_client_that_leaves_by_itself_keeps_no_place():
    one = machine(hold=Hold(timeout=10), state="WaitingForMemory")
    one.arrive(Arrival("1", KEY), 5)
    one.report(5)
    one.left("1", 9)
    assert one.report(9).models[0].returning_seconds == 0


def test_a_refused_request_keeps_its_deadline():
    one = machine(replica(state="Loaded"), hold=Hold(timeout=10))
    one.arrive(Arrival("1", KEY), 0)
    assert kinds(one.refused("1", 9)) == ["Wait", "Watch"]
    assert kinds(one.tick(10)) == ["Reject", "Unwatch"]
    one.replica_status("a", LOADED, 11)
    one.arrive(Arrival("2", KEY), 12)
    assert kinds(one.refused("2", 23)) == ["Reject"]


def test_bounds_by_count_bytes_and_key():
    one = Machine(held_bytes_max=100)
    one.model_changed(model(hold=Hold(per_model=4)), 0)
    one.arrive(Arrival("1", KEY, size=60, key="k", key_share=0.25), 1)
    (effect,) = one.arrive(Arrival("2", KEY, size=41), 1)
    assert (effect.rejection.status, effect.rejection.code) == (429, "hold_full")
    (effect,) = one.arrive(Arrival("3", KEY, key="k", key_share=0.25), 1)
    assert effect.rejection.code == "hold_full"
    one.left("1", 2)
    assert one.held_bytes == 0
    for number in range(4):
        assert kinds(one.arrive(Arrival(f"b{number}", KEY, key="k"), 3)) == ["Wait"]
    assert kinds(one.arrive(Arrival("b4", KEY), 3)) == ["Reject"]


def test_left_frees_the_place_and_stops_the_watching():
    one = machine(replica(), hold=Hold(per_model=1))
    one.arrive(Arrival("1", KEY), 1)
    assert one.left("1", 2) == [Unwatch("a")]
    assert kinds(one.arrive(Arrival("2", KEY), 3)) == ["Wait", "Watch"]
    one.replica_status("a", LOADED, 4)
    assert one.left("2", 5) == []
    assert one.in_flight() == 0


def test_autoload_off_and_keys_that_may_not_wake():
    one = machine()
    (effect,) = one.arrive(Arrival("1", KEY, autoload=False), 1)
    assert (effect.rejection.status, effect.rejection.code) == (400, "model_not_loaded")
    (effect,) = one.arrive(Arrival("2", KEY, may_wake=False), 1)
    assert effect.rejection.status == 403
    one.replica_changed(replica(state="Loaded"), 2)
    assert granted(one.arrive(Arrival("3", KEY, autoload=False, may_wake=False), 3)) == [("3", "a")]


SLEEPING = ReplicaStatus("Sleeping", admitting=False)


def test_a_replica_is_asked_before_a_request_that_may_not_wake_is_refused():
    """Another gateway woke the model a moment ago: the status that says so may not be here yet."""
    one = machine(replica("a"), replica("b"))
    assert one.arrive(Arrival("1", KEY, may_wake=False), 1) == [Wait("1", joined=False), Watch(replica("a")), Watch(replica("b"))]
    assert one.replica_status("a", SLEEPING, 1.1) == []
    assert granted(one.replica_status("b", LOADED, 1.2)) == [("1", "b")]
    one.ended("1", 2)


def test_it_is_refused_when_every_replica_has_said_no():
    one = machine(replica("a"), replica("b"))
    one.arrive(Arrival("1", KEY, may_wake=False), 1)
    one.replica_status("a", SLEEPING, 1.1)
    effects = one.replica_unreachable("b", 1.2)
    assert [effect.rejection.status for effect in effects if isinstance(effect, Reject)] == [403]
    assert kinds(effects)[1:] == ["Unwatch", "Unwatch"]
    assert one.waiting() == 0


def test_it_is_refused_in_time_when_no_replica_says_anything():
    one = machine(replica())
    one.arrive(Arrival("1", KEY, autoload=False), 1)
    assert one.tick(2.9) == []
    effect, _ = one.tick(3.0)
    assert (effect.rejection.status, effect.rejection.code) == (400, "model_not_loaded")
    assert one.report(10).models[0].returning_seconds == 0


def test_who_only_asks_is_no_demand_and_does_not_outlive_its_answer():
    one = machine(replica())
    one.arrive(Arrival("1", KEY, may_wake=False), 1)
    assert one.report(1.5).models[0].waiting == 0
    one.arrive(Arrival("2", KEY), 1.6)  # this one wakes
    assert one.wake_at() == 1.6
    (demand,) = one.report(1.6).models
    assert (demand.waiting, demand.oldest_wait_seconds) == (1, 0)
    assert [effect.request for effect in one.replica_status("a", LOADING, 1.7)] == ["1"]
    one.arrive(Arrival("3", KEY, may_wake=False), 1.8)
    assert one.waiting() == 1  # what the replica says is known by now: no
    assert granted(one.replica_status("a", LOADED, 2)) == [("2", "a")]


def test_a_drained_request_that_may_not_wake_does_not():
    one = machine(replica())
    one.arrive(Arrival("1", KEY, may_wake=False), 1)
    one.replica_status("a", LOADED, 1.1)
    (effect,) = one.refused("1", 1.2)
    assert effect.rejection.status == 403
    assert not one.waiting()


def test_removal_of_a_model_ends_its_waits_and_not_its_streams():
    one = machine(replica(state="Loaded"))
    one.arrive(Arrival("1", KEY), 1)
    one.arrive(Arrival("2", KEY), 1)
    one.refused("2", 2)
    effects = one.model_removed(KEY, 3)
    assert [effect.rejection.code for effect in effects if isinstance(effect, Reject)] == ["model_not_found"]
    assert one.in_flight() == 1
    one.replica_removed("a", 4)
    one.ended("1", 5)
    assert one._models == {}


def test_close_refuses_whoever_waits():
    one = machine(replica())
    one.arrive(Arrival("1", KEY), 1)
    assert kinds(one.close(2)) == ["Reject", "Unwatch"]


# Balance


class Candidate:
    def __init__(self, uid, in_flight=0):
        self.uid = uid
        self.in_flight = in_flight


def test_least_in_flight():
    assert choose([Candidate("a", 2), Candidate("b", 1), Candidate("c", 1)]).uid == "b"


def test_what_is_kept_is_found_however_loaded_its_replica_is():
    candidates = [Candidate("a"), Candidate("b", 9)]
    assert {choose(candidates, affinity, "b").uid for affinity in range(9)} == {"b"}
    assert choose(candidates, 0, "gone").uid == "a"
    assert choose(candidates[:1], 0, "b").uid == "a"


def test_a_conversation_finds_its_replica_again_within_the_bound():
    candidates = [Candidate(name) for name in "abcd"]
    homes = {affinity: choose(candidates, affinity).uid for affinity in range(1, 200)}
    assert set(homes.values()) == set("abcd")
    fewer = candidates[1:]
    moved = [affinity for affinity, home in homes.items() if home != "a" and choose(fewer, affinity).uid != home]
    assert moved == []  # only the conversations of the replica that went away move
    home = next(affinity for affinity, name in homes.items() if name == "b")
    candidates[1].in_flight = 6
    assert choose(candidates, home).uid != "b"
    for candidate in candidates:
        candidate.in_flight = 6
    assert choose(candidates, home).uid == "b"


# Demand


def demands(report):
    return {(demand.name, demand.waiting, demand.in_flight) for demand in report.models}


def test_reports_at_once_each_second_each_five_and_never_at_rest():
    one = machine(replica())
    assert one.wake_at() is None
    one.arrive(Arrival("1", KEY), 10)
    assert one.wake_at() == 10
    first = one.report(10)
    assert demands(first) == {(KEY, 1, 0)}
    assert one.report(10) is None
    assert one.wake_at() == 15
    one.arrive(Arrival("2", KEY), 10.2)
    assert one.wake_at() == 11
    second = one.report(11)
    assert (second.sequence, demands(second)) == (first.sequence + 1, {(KEY, 2, 0)})
    third = one.report(16)
    assert (demands(third), third.models[0].oldest_wait_seconds) == ({(KEY, 2, 0)}, 6)
    one.replica_status("a", LOADED, 17)
    assert one.wake_at() == 17
    assert demands(one.report(17)) == {(KEY, 0, 2)}
    one.ended("1", 18)
    one.ended("2", 18)
    last = one.report(18)
    assert (demands(last), last.models[0].last_used) == ({(KEY, 0, 0)}, 18)
    assert one.wake_at() is None
    assert one.report(100) is None


def test_the_first_that_joins_a_load_is_reported_at_once():
    one = machine(replica(), state="Loading")
    one.report(1)
    one.arrive(Arrival("1", KEY), 10)
    one.report(10)
    one.left("1", 10.1)
    one.report(11.1)
    one.arrive(Arrival("2", KEY), 11.2)
    assert one.wake_at() == 11.2


def test_a_lost_report_is_due_again():
    one = machine()
    one.arrive(Arrival("1", KEY), 10)
    report = one.report(10)
    one.left("1", 10.1)
    one.report_lost(report, 10.2)
    again = one.report(11.2)
    assert (again.sequence, demands(again)) == (report.sequence + 1, {(KEY, 0, 0)})


def test_a_wish_is_reported_until_it_is_acknowledged_or_old():
    one = machine()
    assert one.wish(KEY, "Load", 7, 1)
    assert not one.wish("models/none", "Load", 8, 1)
    assert one.report(1).models[0].wish == Wish("Load", 7)
    assert one.report(6).models[0].wish == Wish("Load", 7)
    one.model_changed(model(acknowledged_wish=7), 7)
    assert one.report(7).models[0].wish is None
    assert one.wake_at() is None
    one.wish(KEY, "Unload", 9, 10)
    one.tick(70)
    one.report(70)
    assert one.wake_at() is None


def test_report_json_is_that_of_the_resource():
    one = Machine(wall_offset=1_700_000_000)
    one.model_changed(model(), 0)
    one.wish(KEY, "Load", 7, 1)
    one.replica_changed(replica(state="Loaded"), 1)
    one.arrive(Arrival("1", KEY), 2.5)
    assert one.report(3).as_json() == {
        "sequence": 1,
        "models": [
            {
                "name": KEY,
                "waiting": 0,
                "oldestWaitSeconds": 0,
                "inFlight": 1,
                "lastUsed": "2023-11-14T22:13:22.500Z",
                "wish": {"action": "Load", "id": 7},
            }
        ],
    }


# Names


def test_names_go_to_their_holder_and_adapters_last():
    one = Machine()
    one.model_changed(model("a", served_names=("a", "x:y"), adapters=("y",), created=2), 0)
    one.model_changed(model("x", served_names=("x",), adapters=("y",), created=1), 0)
    assert one.resolve("models/x").key == "models/x"
    assert one.resolve("x:y").key == "models/a"
    route = one.resolve("models/x:y")
    assert (route.key, route.adapter, route.asked) == ("models/x", "y", "models/x:y")
    assert one.resolve("x:z") is None
    one.model_changed(model("a", served_names=("a", "x"), created=2), 0)
    assert one.resolve("x").key == "models/x"  # two claim it while a watch lags: the older has it
    one.model_removed("models/x", 1)
    assert one.resolve("x").key == "models/a"
