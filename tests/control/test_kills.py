"""A controller killed at any step: its successor, knowing only the objects, goes on. The request is served and no byte is given twice."""

import pytest
from tests.support.fake_world import MI, Running, World

from corral.kube.ports import COMMIT

ROOM_FOR_ONE = 150 * MI
SWAP = ("create", "drain", "sleep", "clear", "resize", "commit", "resize", "wake")


def kills(steps: tuple[str, ...]) -> list[tuple[str, int]]:
    """Before and after each call takes effect; a call that comes twice is hit at both times."""
    found = []
    for index, step in enumerate(steps):
        before = "heard" if step in ("drain", "sleep", "wake") else "asked"
        found += [(f"{step}:{when}", steps[: index + 1].count(step)) for when in (before, "done")]
    return found


async def two_models(gpu: bool) -> tuple[World, str, str]:
    world = World()
    world.pool()
    world.node("n1", (700 if gpu else 150) * MI, gpus=("g0",) if gpu else ())
    return world, world.model("a", 100 * MI), world.model("b", 100 * MI)


async def settled(world: World, running: Running, key: str) -> None:
    """The model is loaded, has served, and nothing more is being done."""
    await world.answered(key)
    await world.until(lambda: not running.controller.plan_view()["underWay"] and world.loaded() == {key})


async def test_a_swap_takes_the_steps_that_are_killed_below():
    world, a, b = await two_models(gpu=False)
    running = Running(world)
    await settled(world, running, a)
    before = len(running.client.steps)
    await settled(world, running, b)
    asked = [step.partition(":")[0] for step in running.client.steps[before:] if step.endswith((":asked", ":heard"))]
    await running.drop()
    await world.close()
    assert tuple(step for step in asked if step in SWAP) == SWAP


ON_HOST = [(*kill, False) for kill in kills(SWAP)]
ON_GPU = [(*kill, True) for kill in kills(tuple(step for step in SWAP if step != "resize"))]


@pytest.mark.parametrize(("step", "times", "gpu"), ON_HOST + ON_GPU)
async def test_killed_at_every_step_of_a_swap(step, times, gpu):
    world, a, b = await two_models(gpu)
    first, second = Running(world), None
    try:
        await settled(world, first, a)
        first.client.die_at(step, times)
        waiter = world.ask(b)
        await world.until(first.client.dead.is_set)
        await first.drop()
        second = Running(world, epoch=2)
        await world.until(waiter.done.is_set)
        await settled(world, second, a)
        assert world.faults == []
        assert [COMMIT in pod.record.annotations for pod in world.pods_of(b)] == [False]
    finally:
        for running in (first, second):
            if running is not None:
                await running.drop()
        await world.close()


@pytest.mark.parametrize(("step", "times"), kills(("estimate", "create", "commit", "resize", "wake")))
async def test_killed_at_every_step_of_a_first_load(step, times):
    world, a, _ = await two_models(gpu=False)
    first, second = Running(world), None
    first.client.die_at(step, times)
    try:
        waiter = world.ask(a)
        await world.until(first.client.dead.is_set)
        await first.drop()
        second = Running(world, epoch=2)
        await world.until(waiter.done.is_set)
        assert world.faults == []
        assert len(world.pods_of(a)) == 1
    finally:
        for running in (first, second):
            if running is not None:
                await running.drop()
        await world.close()


async def test_killed_while_the_newcomer_loads():
    world, a, b = await two_models(gpu=False)
    first = Running(world)
    await settled(world, first, a)
    waiter = world.ask(b)
    await world.until(lambda: world.pods_of(b))
    world.pods_of(b)[0].supervisor.load_gate.clear()
    await world.until(lambda: world.pods_of(b)[0].supervisor.life.state.value == "Loading")
    await first.drop()
    second = Running(world, epoch=2)
    world.pods_of(b)[0].supervisor.load_gate.set()
    await world.until(waiter.done.is_set)
    await settled(world, second, a)
    await second.drop()
    assert world.faults == []
    await world.close()


async def test_a_former_leader_that_goes_on_is_refused_by_the_pods():
    """It was paused past its lease and believes that it leads: what it orders after a newer leader has spoken has no effect."""
    world, a, b = await two_models(gpu=False)
    first = Running(world)
    await settled(world, first, a)
    second = Running(world, epoch=2)
    for key in (b, a, b):
        await settled(world, second, key)
    await first.drop()
    await second.drop()
    assert world.faults == []
    for key in (a, b):
        epochs = [epoch for _, epoch in world.pods_of(key)[0].supervisor.calls]
        assert epochs == sorted(epochs)
        assert epochs[-1] == 2
    await world.close()
