"""What fails: sources, loads, grants, manifests. Each is told with its own reason, heals where it can, and disturbs no other model."""

import time

from tests.support.fake_world import MI

from corral.domain import reasons
from corral.kube.ports import COMMIT
from corral_server.lifecycle import Problem


def problem(reason: str, *, retry: bool = True) -> Problem:
    return Problem(reason, f"{reason} happened", retry, time.time())


async def stalled(world, key: str, reason: str) -> None:
    await world.until(lambda: (world.condition(key, "Stalled").get("status"), world.condition(key, "Stalled").get("reason")) == ("True", reason))
    assert world.condition(key, "Ready")["status"] == "False"
    assert world.condition(key, "Reconciling")["status"] == "False"


async def test_a_source_that_will_not_do_stalls_its_model_alone_until_the_spec_changes(world, lead):
    world.node("n1", 400 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    world.estimates[a] = {"ok": False, "reason": "NotAGGUF", "message": "a.gguf starts with <htm", "retry": False}
    running = lead()
    await stalled(world, a, reasons.NOT_A_GGUF)
    assert "starts with <htm" in world.condition(a, "Stalled")["message"]
    await world.answered(b)
    assert running.client.steps.count("estimate:asked") == 2
    del world.estimates[a]
    world.model("a", 100 * MI, model={"source": "https://models.test/better.gguf"})
    await world.until(lambda: world.condition(a, "Ready").get("status") == "True")
    assert world.condition(a, "Stalled")["status"] == "False"


async def test_an_unreachable_source_stalls_is_retried_and_heals_by_itself(world, lead):
    world.node("n1", 400 * MI)
    a = world.model("a", 100 * MI)
    world.estimates[a] = {"ok": False, "reason": "SourceUnreachable", "message": "connection refused", "retry": True}
    running = lead()
    await stalled(world, a, reasons.SOURCE_UNREACHABLE)
    await world.until(lambda: running.client.steps.count("estimate:asked") >= 3)
    assert world.condition(a, "Stalled")["status"] == "True", "a retry does not make it look well"
    del world.estimates[a]
    await world.until(lambda: world.condition(a, "Ready").get("status") == "True")
    assert "backoff" not in world.status(a)


async def test_a_blocked_model_stays_blocked_for_the_next_leader(world, lead):
    world.node("n1", 400 * MI)
    a = world.model("a", 100 * MI)
    world.estimates[a] = {"ok": False, "reason": "UnsupportedModel", "message": "architecture mamba9", "retry": False}
    first = lead()
    await stalled(world, a, reasons.UNSUPPORTED_MODEL)
    await first.drop()
    second = lead(2)
    await stalled(world, a, reasons.UNSUPPORTED_MODEL)
    assert "estimate:asked" not in second.client.steps


async def test_a_wrong_checksum_found_by_the_download_stalls(world, lead):
    world.node("n1", 400 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    world.download_errors[a] = problem("ChecksumMismatch", retry=False)
    lead()
    waiter = world.ask(a)
    await stalled(world, a, reasons.CHECKSUM_MISMATCH)
    await world.answered(b)
    assert not waiter.done.is_set()


async def test_a_failed_load_gives_everything_back_and_is_tried_again(world, lead):
    world.node("n1", 150 * MI)
    a = world.model("a", 100 * MI)
    lead()
    await world.answered(a)
    b = world.model("b", 100 * MI)
    waiter = world.ask(b)
    await world.until(lambda: world.pods_of(b))
    world.pods_of(b)[0].supervisor.fail_next = [problem("LoadFailed"), problem("EngineCrashed")]
    await world.until(waiter.done.is_set)
    assert world.faults == []
    await world.until(lambda: {reason for name, reason, _ in world.events if name == "b"} >= {"LoadFailed", "EngineCrashed", "Loaded"})
    await world.until(lambda: "backoff" not in world.status(b) and world.condition(b, "Ready").get("status") == "True")


async def test_out_of_memory_makes_more_room_and_tries_once_more_at_once(world, lead):
    world.node("n1", 400 * MI)
    a = world.model("a", 100 * MI)
    lead()
    waiter = world.ask(a)
    await world.until(lambda: world.pods_of(a))
    world.pods_of(a)[0].supervisor.fail_next = [problem("OutOfMemory")]
    await world.until(waiter.done.is_set)
    await world.until(lambda: world.status(a)["memory"].get("required") == "115Mi")
    assert world.faults == []


async def test_a_grant_that_the_kubelet_refuses_is_taken_back(world, lead):
    world.node("n1", 400 * MI)
    a = world.model("a", 100 * MI)
    lead()
    waiter = world.ask(a)
    await world.until(lambda: world.pods_of(a))
    name = world.pods_of(a)[0].record.name
    world.refuse_resize.add(name)
    await world.until(lambda: any(it["reason"] == reasons.WAITING_FOR_GRANT for it in world.status(a).get("backoff", ())))
    world.refuse_resize.clear()
    world.grant()
    await world.until(waiter.done.is_set)
    assert world.faults == []


async def test_a_manifest_that_the_api_would_refuse_is_invalid(world, lead):
    world.node("n1", 400 * MI)
    a, b = world.model("a", 100 * MI, priority="high"), world.model("b", 100 * MI)
    lead()
    await stalled(world, a, reasons.INVALID)
    assert "spec.priority" in world.condition(a, "Stalled")["message"]
    await world.answered(b)
    world.model("a", 100 * MI)
    await world.answered(a)


async def test_a_pool_that_is_not_there_or_does_not_want_it(world, lead):
    world.node("n1", 400 * MI)
    world.pool("default", allowed={"namespaces": ["*"], "maxPriority": 10, "pinned": False})
    lost, proud = world.model("lost", 100 * MI, pool="gold"), world.model("proud", 100 * MI, priority=11, pinned=True)
    lead()
    await stalled(world, lost, reasons.POOL_NOT_FOUND)
    await stalled(world, proud, reasons.POOL_NOT_ALLOWED)
    assert "maxPriority" in world.condition(proud, "Stalled")["message"]
    assert "pinned" in world.condition(proud, "Stalled")["message"]
    world.pool("default")
    await world.until(lambda: world.condition(proud, "Loaded").get("status") == "True")


async def test_a_model_that_can_never_fit_says_so_and_evicts_nobody(world, lead):
    world.node("n1", 150 * MI, margin=20 * MI)
    a, big = world.model("a", 100 * MI), world.model("big", 140 * MI)
    lead()
    await world.answered(a)
    world.ask(big)
    await stalled(world, big, reasons.DOES_NOT_FIT)
    assert world.loaded() == {a}


async def test_an_engine_that_crashes_gives_its_memory_back_and_is_loaded_again_for_the_next_request(world, lead):
    world.node("n1", 150 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    lead()
    await world.answered(a)
    pod = world.pods_of(a)[0]
    pod.supervisor.life.load_failed(problem("EngineCrashed"), 10 * MI)
    pod.supervisor.told()
    await world.until(lambda: COMMIT not in pod.record.annotations)
    await world.until(lambda: pod.record.memory_request == 10 * MI)
    await world.answered(b)
    await world.answered(a)
    assert world.faults == []


async def test_a_download_that_gave_up_is_tried_by_a_fresh_pod_once_the_source_answers(world, lead):
    world.node("n1", 400 * MI)
    a = world.model("a", 100 * MI)
    lead()
    await world.until(lambda: world.condition(a, "Ready").get("status") == "True")
    world.estimates[a] = {"ok": False, "reason": "SourceNotFound", "message": "404", "retry": False}
    world.download_errors[a] = problem("SourceNotFound", retry=False)
    waiter = world.ask(a)
    await stalled(world, a, reasons.SOURCE_NOT_FOUND)
    del world.estimates[a]
    del world.download_errors[a]
    await world.until(waiter.done.is_set)
    assert world.faults == []


async def test_a_supervisor_that_falls_silent_counts_in_full(world, lead):
    world.node("n1", 150 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    await world.answered(a)
    await world.until(lambda: not running.controller.plan_view()["underWay"])
    pod = world.pods_of(a)[0]
    await pod.supervisor.stop()
    waiter = world.ask(b)
    await world.until(lambda: world.condition(b, "Loaded").get("reason") == reasons.WAITING_FOR_MEMORY)
    assert "unreachable" in world.condition(b, "Loaded")["message"]
    assert COMMIT in pod.record.annotations
    world.remove(pod)
    await world.until(waiter.done.is_set)
    assert world.faults == []


async def test_a_commitment_whose_answer_was_lost_is_not_given_twice(world, lead):
    world.node("n1", 150 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    annotate, lost = running.client.annotate, []

    async def losing(pod, annotations, *, precondition):
        answer = await annotate(pod, annotations, precondition=precondition)
        if annotations.get(COMMIT) and not lost:
            lost.append(pod.name)
            raise TimeoutError("no answer")
        return answer

    running.client.annotate = losing
    first, second = world.ask(a), world.ask(b)
    await world.until(lambda: first.done.is_set() and second.done.is_set())
    assert lost
    assert world.faults == []
