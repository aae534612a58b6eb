"""At rest nothing is written, and a successor finds everything as it should be."""

import asyncio
from dataclasses import replace

from tests.support.fake_world import MI, QUICK

RESYNCS_OFTEN = replace(QUICK, resync=0.1)


async def quiet(world, running) -> None:
    """Until nothing is under way and no status has been written for a moment."""
    count = -1
    while count != len(world.status_writes) or running.controller.plan_view()["underWay"]:
        count = len(world.status_writes)
        await asyncio.sleep(0.15)


async def test_nothing_is_written_at_rest(world, lead):
    world.node("n1", 400 * MI)
    keys = [world.model(name, 100 * MI) for name in "abc"]
    running = lead(settings=RESYNCS_OFTEN)
    for key in keys:
        await world.answered(key)
    await quiet(world, running)
    statuses, steps = len(world.status_writes), len(running.client.steps)
    await asyncio.sleep(0.5)
    assert (world.status_writes[statuses:], running.client.steps[steps:]) == ([], [])


async def test_a_new_leader_writes_nothing_where_nothing_changed(world, lead):
    world.node("n1", 400 * MI)
    keys = [world.model(name, 100 * MI) for name in "ab"]
    first = lead()
    for key in keys:
        await world.answered(key)
    await quiet(world, first)
    await first.drop()
    statuses = {key: world.status(key) for key in keys}
    second = lead(2)
    await quiet(world, second)
    assert {key: world.status(key) for key in keys} == statuses
    assert [step for step in second.client.steps if step != "status"] == []


async def test_ready_does_not_move_when_a_request_wakes_a_model(world, lead):
    world.node("n1", 150 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    await world.until(lambda: world.condition(a, "Ready").get("status") == world.condition(b, "Ready").get("status") == "True")
    world.status_writes.clear()
    for key in (a, b, a):
        await world.answered(key)
    await quiet(world, running)
    told = [it for _, status in world.status_writes for it in status["conditions"] if it["type"] in ("Ready", "Stalled", "Reconciling")]
    assert {(it["type"], it["status"]) for it in told} == {("Ready", "True"), ("Stalled", "False"), ("Reconciling", "False")}


async def test_an_operator_that_lost_its_lease_changes_nothing(world, lead):
    world.node("n1", 150 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    await world.answered(a)
    await quiet(world, running)
    running.client.leading = False
    steps = len(running.client.steps)
    waiter = world.ask(b)
    await asyncio.sleep(0.3)
    assert len(running.client.steps) == steps
    assert not waiter.done.is_set()
    lead(2)
    await world.until(waiter.done.is_set)


async def test_deleting_a_model_takes_its_pods_along_and_leaves_the_others(world, lead):
    world.node("n1", 400 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    await world.answered(a)
    await world.answered(b)
    await quiet(world, running)
    world.delete_model(a)
    await world.until(lambda: not world.pods_of(a))
    assert world.loaded() == {b}


async def test_a_model_that_was_made_anew_does_not_inherit_the_pods_of_the_old_one(world, lead):
    world.node("n1", 400 * MI)
    a = world.model("a", 100 * MI)
    lead()
    await world.answered(a)
    old = world.pods_of(a)[0].record.uid
    world.model("a", 100 * MI, uid="another")
    await world.until(lambda: old not in {pod.record.uid for pod in world.pods_of(a)})
    await world.answered(a)


async def test_a_supervisor_that_has_heard_a_higher_epoch_is_told_of_and_not_ordered_about(world, lead):
    """A Lease that was made anew too low: whoever keeps it has to learn how far to go up."""
    world.node("n1", 400 * MI)
    a = world.model("a", 100 * MI)
    first = lead(7)
    await world.answered(a)
    await quiet(world, first)
    await first.drop()
    low = lead(3)
    await world.until(lambda: low.client.heard == 7)
    assert world.loaded() == {a}
    assert world.faults == []
