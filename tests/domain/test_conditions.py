"""Conditions as kstatus reads them, for each state that a model can be in."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.domain.builders import NOW, asleep, cluster, loaded, model, waiting

from corral.domain import reasons
from corral.domain.backoff import FORGOTTEN_AFTER, after_failure, after_success, delay
from corral.domain.conditions import TYPES, conditions, summary, to_write
from corral.domain.decide import decide
from corral.domain.model import Backoff, Blocked, ReplicaState


def told(one, replicas=(), verdict=None, previous=()):
    return {each.type: each for each in conditions(one, list(replicas), verdict, NOW, previous)}


def kstatus(found) -> str:
    """The verdict of kstatus over an observed generation."""
    if found["Reconciling"].status == "True":
        return "InProgress"
    if found["Stalled"].status == "True":
        return "Failed"
    return "Current" if found["Ready"].status == "True" else "InProgress"


CASES = {
    "at rest": (model("a"), [], None, "Current", reasons.IDLE),
    "asleep": (model("a"), [asleep("a-0", "a")], None, "Current", reasons.SLEEPING),
    "loaded": (model("a"), [loaded("a-0", "a", 8)], None, "Current", reasons.LOADED),
    "loading": (model("a"), [loaded("a-0", "a", 8, state=ReplicaState.LOADING)], None, "Current", reasons.LOADING),
    "not estimated yet": (model("a", None), [], None, "InProgress", reasons.IDLE),
    "rolling out": (model("a", revision="r2"), [loaded("a-0", "a", 8)], None, "InProgress", reasons.LOADED),
    "blocked": (model("a", None, blocked=Blocked(reasons.NOT_A_GGUF, "a PNG")), [], None, "Failed", reasons.IDLE),
    "backing off": (model("a", backoff=(Backoff("n1", 2, NOW + 9, reasons.LOAD_FAILED, "no"),)), [], None, "InProgress", reasons.IDLE),
    "failed for good": (
        model("a"),
        [asleep("a-0", "a", state=ReplicaState.FAILED, error=Blocked(reasons.CHECKSUM_MISMATCH, "x is not y"))],
        None,
        "Failed",
        reasons.CHECKSUM_MISMATCH,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_kstatus_says(case):
    one, replicas, verdict, status, residency = CASES[case]
    found = told(one, replicas, verdict)
    assert tuple(found) == TYPES
    assert kstatus(found) == status
    assert found["Loaded"].reason == residency
    assert not (found["Reconciling"].status == "True" and found["Stalled"].status == "True")


def test_a_request_does_not_change_ready():
    one = model("a", 20)
    state = cluster(models=[one, model("b", 20)], replicas=[loaded("b-0", "b", 20, in_flight=1), asleep("a-0", "a")], demand={"a": waiting()})
    before = told(one, [asleep("a-0", "a")])
    plan = decide(state.snapshot(), NOW)
    after = told(one, [asleep("a-0", "a")], plan.verdicts["m/a"])
    assert after["Ready"] == before["Ready"]
    assert after["Loaded"].reason == reasons.WAITING_FOR_TURN
    assert "b in flight (1)" in after["Loaded"].message


def test_what_can_never_fit_is_stalled():
    one = model("a", 96)
    plan = decide(cluster(models=[one]).snapshot(), NOW)
    found = told(one, [], plan.verdicts["m/a"])
    assert kstatus(found) == "Failed"
    assert found["Ready"].reason == found["Stalled"].reason == reasons.DOES_NOT_FIT


def test_pinned_models_that_overflow_are_stalled():
    state = cluster(models=[model("a", 20, pinned=True), model("b", 20, pinned=True)], replicas=[loaded("a-0", "a", 20)])
    verdict = decide(state.snapshot(), NOW).verdicts["m/b"]
    assert verdict.stalled
    assert verdict.explanation.reason == reasons.PINNED_DOES_NOT_FIT
    assert verdict.explanation.message.startswith("Pinned models alone overflow pool default: needs 20Gi on one device")


def test_a_transition_time_changes_with_the_status_alone():
    one = model("a")
    first = conditions(one, [], None, NOW - 100)
    second = conditions(one, [loaded("a-0", "a", 8)], None, NOW, first)
    times = {each.type: each.last_transition for each in second}
    assert times["Loaded"] == NOW
    assert times["Ready"] == NOW - 100


def test_a_message_alone_is_written_seldom():
    before = conditions(model("a"), [], None, NOW)
    same = [replace(each, message="another") if each.type == "Loaded" else each for each in before]
    assert not to_write(before, before, NOW, NOW + 60)
    assert not to_write(before, same, NOW, NOW + 9)
    assert to_write(before, same, NOW, NOW + 10)
    assert to_write(before, [replace(each, reason="Other") for each in before], NOW, NOW)


def test_the_figures_of_the_status():
    found = summary(model("a"), [loaded("a-0", "a", 8), asleep("a-1", "a")], None)
    assert (found["replicas"], found["loadedReplicas"], found["sleepingReplicas"], found["state"]) == (2, 1, 1, reasons.LOADED)
    assert found["nodes"] == ["n1"]


def test_back_off_doubles_and_is_forgotten():
    one = model("a")
    for failures, pause in ((1, 10), (2, 20), (3, 40)):
        one = replace(one, backoff=after_failure(one, "n1", reasons.LOAD_FAILED, "no", NOW))
        assert one.backoff == (Backoff("n1", failures, NOW + pause, reasons.LOAD_FAILED, "no"),)
    assert delay(50) == 600
    later = after_failure(one, "n1", reasons.LOAD_FAILED, "no", NOW + FORGOTTEN_AFTER + 50)
    assert later[0].failures == 1
    assert after_success(one.backoff, "n1") == ()
    assert after_success(one.backoff, "n2") == one.backoff


def test_the_first_out_of_memory_is_tried_again_at_once():
    one = model("a")
    first = after_failure(one, "n1", reasons.OUT_OF_MEMORY, "no", NOW)
    assert first[0].until == NOW
    second = after_failure(replace(one, backoff=first), "n1", reasons.OUT_OF_MEMORY, "no", NOW)
    assert second[0].until > NOW
