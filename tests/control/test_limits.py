"""A pod's memory limit was set from an estimate; what is measured later must not get the pod killed."""

from dataclasses import replace

from tests.support.fake_world import MI, QUICK

from corral.kube.ports import Refused


async def settled(world, running) -> None:
    await world.until(lambda: not running.controller.plan_view()["underWay"])


async def test_a_limit_goes_up_while_the_model_is_loaded_when_it_uses_more_than_foreseen(world, lead):
    world.node("n1", 800 * MI)
    a = world.model("a", 100 * MI)
    running = lead()
    await world.answered(a)
    await settled(world, running)
    pod = world.pods_of(a)[0]
    assert pod.record.memory_limit == 125 * MI
    pod.supervisor.life.memory["total"] = 120 * MI
    pod.supervisor.life.version += 1
    pod.supervisor.told()
    await world.until(lambda: pod.record.memory_limit == 150 * MI)
    assert pod.record.memory_request == 100 * MI, "the request is the commitment's, and that has not changed"
    assert [call for call, _ in pod.supervisor.calls] == ["wake"], "in place, without a restart"
    await settled(world, running)
    resizes = running.client.steps.count("resize:asked")
    pod.supervisor.told()
    await world.answered(a)
    assert running.client.steps.count("resize:asked") == resizes


async def test_the_next_load_has_the_limit_that_the_measurement_asks_for(world, lead):
    """Else the pod would be killed in the middle of each load from then on."""
    world.node("n1", 320 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 220 * MI)
    running = lead()
    await world.answered(a)
    await settled(world, running)
    pod = world.pods_of(a)[0]
    pod.supervisor.life.memory["total"] = 110 * MI
    pod.supervisor.life.version += 1
    pod.supervisor.told()
    await world.until(lambda: world.status(a)["memory"].get("required") == "110Mi")
    assert pod.record.memory_limit == 125 * MI, "near enough to bear it"
    await world.answered(b)
    assert world.loaded() == {b}
    await world.answered(a)
    await settled(world, running)
    assert pod.record.memory_limit == 138 * MI
    assert world.faults == []


async def test_a_limit_that_the_api_will_not_raise_is_not_asked_for_with_every_news(world, lead):
    world.node("n1", 800 * MI)
    a = world.model("a", 100 * MI)
    running = lead(settings=replace(QUICK, action_backoff=60.0))
    await world.answered(a)
    await settled(world, running)
    asked = []

    async def refuse(pod, memory_request, memory_limit=0):
        asked.append(memory_limit)
        raise Refused("no")

    running.client.resize = refuse
    pod = world.pods_of(a)[0]
    pod.supervisor.life.memory["total"] = 120 * MI
    pod.supervisor.life.version += 1
    pod.supervisor.told()
    await world.until(lambda: asked)
    for _ in range(3):
        await world.answered(a)
        await settled(world, running)
    assert asked == [150 * MI]
    assert world.loaded() == {a}
