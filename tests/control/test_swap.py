"""The whole loop on a world in memory: wake on demand, swap in order of use, and what is told of it."""

from dataclasses import replace

from tests.support.fake_world import MI, QUICK

ROOM_FOR_ONE = 150 * MI


async def test_a_model_is_estimated_started_loaded_and_answers(world, lead):
    world.node("n1", ROOM_FOR_ONE)
    key = world.model("a", 100 * MI)
    lead()
    await world.until(lambda: world.condition(key, "Ready").get("status") == "True")
    assert not world.pods, "nobody asked for it"
    await world.answered(key)
    await world.until(lambda: world.condition(key, "Loaded").get("status") == "True")
    status = world.status(key)
    assert (status["replicas"], status["loadedReplicas"]) == (1, 1)
    assert status["placements"][0]["node"] == "n1"
    assert status["servedNames"] == ["m/a", "a"]
    assert status["memory"]["estimated"]["total"] == "100Mi"
    assert world.faults == []


async def test_two_models_on_room_for_one_replace_each_other(world, lead):
    world.node("n1", ROOM_FOR_ONE)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    lead()
    for key in (a, b, a, b):
        await world.answered(key)
        assert world.loaded() == {key}
    assert world.faults == []
    await world.until(lambda: world.status(a).get("evictions") == 2 and world.status(b).get("evictions") == 1)
    assert {len(world.pods_of(key)) for key in (a, b)} == {1}, "an evicted replica sleeps and is woken again"


async def test_a_pod_that_made_way_keeps_its_request_while_there_is_room_for_it(world, lead):
    world.pool(max_models_per_device=1)
    world.node("n1", 400 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 90 * MI)
    running = lead(settings=replace(QUICK, keep_memory=30.0))
    for key in (a, b):
        await world.answered(key)
    (pod,) = world.pods_of(a)
    assert pod.record.memory_request == 100 * MI, "nobody needs what it keeps"
    asked = running.client.steps.count("resize:asked")
    for key in (a, b, a):
        await world.answered(key)
        assert world.loaded() == {key}
    assert running.client.steps.count("resize:asked") == asked, "it is there already"
    assert world.faults == []


async def test_what_is_kept_is_given_back_before_somebody_else_gets_it(world, lead):
    world.node("n1", ROOM_FOR_ONE)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    lead(settings=replace(QUICK, keep_memory=30.0))
    for key in (a, b, a, b):
        await world.answered(key)
    (pod,) = world.pods_of(a)
    assert pod.record.memory_request == 10 * MI
    assert world.faults == [], "at no moment was more allocated than there is"


async def test_what_is_kept_is_given_back_after_a_while(world, lead):
    world.pool(max_models_per_device=1)
    world.node("n1", 400 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    lead()
    for key in (a, b):
        await world.answered(key)
    (pod,) = world.pods_of(a)
    await world.until(lambda: pod.record.memory_request == 10 * MI)
