"""Requests in flight: nothing evicts them before the turn is over; then they may end, and the other model gets its turn."""

import pytest
from tests.support.fake_world import MI, Running, World

from corral.domain import reasons

ROOM_FOR_ONE = 150 * MI


async def busy(world: World, running: Running, key: str):
    await world.answered(key)
    await world.until(lambda: world.condition(key, "Loaded").get("status") == "True")
    return world.hold(key)


async def test_a_busy_model_is_not_evicted_and_the_waiter_reads_why(world, lead):
    world.pool(fairness={"maxWait": "100s", "turn": "50s"}, hold={"timeout": "1000s"}, eviction={"minResidency": "0s"})
    world.node("n1", ROOM_FOR_ONE)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    pod = await busy(world, running, a)
    waiter = world.ask(b)
    await world.until(lambda: world.condition(b, "Loaded").get("reason") in (reasons.WAITING_FOR_MEMORY, reasons.WAITING_FOR_TURN))
    assert "a in flight (1)" in world.condition(b, "Loaded")["message"] or "a in its turn" in world.condition(b, "Loaded")["message"]
    assert world.status(b)["explanation"]["candidates"][0]["node"] == "n1"
    assert world.status(b)["queueSince"]
    assert [call for call, _ in pod.supervisor.calls] == ["wake"]
    world.end(pod)
    await world.until(waiter.done.is_set)
    assert world.loaded() == {b}


async def test_when_the_turn_is_over_new_requests_wait_and_the_stream_may_end(world, lead):
    world.node("n1", ROOM_FOR_ONE)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    pod = await busy(world, running, a)
    waiter = world.ask(b)
    await world.until(lambda: pod.supervisor.life.state.value == "Draining")
    assert not pod.supervisor.admit()
    assert not waiter.done.is_set()
    world.end(pod)
    await world.until(waiter.done.is_set)
    assert world.faults == []
    assert reasons.TURN_ENDED in {reason for name, reason, _ in world.events if name == "a"}


@pytest.mark.parametrize("step", ["drain:heard", "drain:done", "sleep:heard", "sleep:done"])
async def test_killed_at_the_end_of_a_turn(world, lead, step):
    world.node("n1", ROOM_FOR_ONE)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    first = lead()
    pod = await busy(world, first, a)
    first.client.die_at(step)
    waiter = world.ask(b)
    if step.startswith("sleep"):
        await world.until(lambda: pod.supervisor.life.state.value == "Draining")
        world.end(pod)
    await world.until(first.client.dead.is_set)
    await first.drop()
    second = lead(2)
    if not step.startswith("sleep"):
        await world.until(lambda: pod.supervisor.life.state.value == "Draining" and ("drain", 2) in pod.supervisor.calls)
        world.end(pod)
    await world.until(waiter.done.is_set)
    await world.answered(a)
    assert world.faults == []
    assert second.client.epoch == 2


async def test_a_request_that_comes_between_plan_and_drain_keeps_the_model(world, lead):
    """The drain is refused by the pod, which alone knows; the plan is made again."""
    world.node("n1", ROOM_FOR_ONE)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    await world.answered(a)
    await world.until(lambda: not running.controller.plan_view()["underWay"])
    pod = world.pods_of(a)[0]
    asked = running.client.step

    async def step(name: str) -> None:
        if name == "drain:heard" and not pod.supervisor.life.in_flight and not late:
            late.append(pod)
            pod.supervisor.life.admit(__import__("time").time())
        await asked(name)

    late: list = []
    running.client.step = step
    waiter = world.ask(b)
    await world.until(lambda: bool(late))
    await world.until(lambda: running.controller.store.pods[f"m/{pod.record.name}"].status.in_flight == 1)
    assert pod.supervisor.life.state.value == "Loaded"
    pod.supervisor.release()
    await world.until(waiter.done.is_set)
    assert world.faults == []


async def test_a_floor_is_loaded_unasked_and_comes_back_into_free_room(world, lead):
    world.node("n1", ROOM_FOR_ONE)
    a = world.model("a", 100 * MI, scaling={"minReplicas": 1})
    b = world.model("b", 100 * MI, scaling={"sleepAfter": "0s", "stopAfter": "0s"})
    lead()
    await world.until(lambda: world.loaded() == {a})
    await world.answered(b)
    await world.until(lambda: world.loaded() == {a})
    assert world.faults == []


async def test_a_wish_is_done_and_acknowledged(world, lead):
    world.node("n1", ROOM_FOR_ONE)
    a = world.model("a", 100 * MI)
    lead()
    for number, action in ((7, "Load"), (9, "Unload")):
        world.wishes[a] = {"action": action, "id": number}
        world.report()
        await world.until(lambda: (world.status(a).get("wish") or {}).get("id") == number)  # noqa: B023
        assert (world.loaded() == {a}) is (action == "Load")
    assert world.status(a)["wish"] == {"id": 9, "action": "Unload", "gateway": "gw"}
