"""What supervisors tell of their node's cache: placement goes where the file is; and likely next models are warmed."""

from dataclasses import replace

from tests.support.fake_world import MI, World

from corral.control.supervisors import Supervisors
from corral.control.translate import read_deployment
from corral.control.warming import AGAIN, Warming
from corral.domain.model import Node


def key_of_file(world: World, model: str) -> str:
    found = read_deployment(world.models[model])
    return found.file_key  # type: ignore[union-attr]


async def test_a_model_goes_to_the_node_whose_cache_has_its_file(world, lead):
    """Best fit alone would take the smaller node."""
    world.node("large", 500 * MI)
    world.node("small", 150 * MI)
    on_large, cold, warm = world.model("on-large", 200 * MI), world.model("cold", 100 * MI), world.model("warm", 90 * MI)
    world.estimates[warm] = {"ok": True, "weights": 90 * MI, "total": 90 * MI, "perLayer": [[1, 90 * MI, 0]], "fileBytes": 10_000 * MI}
    running = lead()
    await world.answered(on_large)
    (pod,) = world.pods_of(on_large)
    assert pod.record.node == "large"
    assert running.controller.store.state.nodes["large"].cached == frozenset()
    pod.supervisor.cache_has(key_of_file(world, warm))
    await world.until(lambda: running.controller.store.state.nodes["large"].cached == {key_of_file(world, warm)})
    await world.answered(warm)
    assert [it.record.node for it in world.pods_of(warm)] == ["large"]
    await world.answered(cold)
    assert [it.record.node for it in world.pods_of(cold)] == ["small"]


async def test_what_is_known_of_a_cache_outlives_a_change_of_its_node_and_ends_with_it(world, lead):
    world.node("n", 400 * MI)
    a = world.model("a", 100 * MI)
    store = lead().controller.store
    await world.answered(a)
    (pod,) = world.pods_of(a)
    pod.supervisor.cache_has("k1", "k2")
    await world.until(lambda: store.state.nodes["n"].cached == {"k1", "k2"})
    devices = [it for key, it in store.state.devices.items() if key.node == "n"]
    store.put_node(replace(store.state.nodes["n"], labels={"new": "label"}, cached=frozenset()), devices)
    assert store.state.nodes["n"].cached == {"k1", "k2"}
    pod.supervisor.cache_has("k2")
    await world.until(lambda: store.state.nodes["n"].cached == {"k2"})
    store.remove_node("n")
    store.put_node(Node("n", "default"), devices)
    assert store.state.nodes["n"].cached == frozenset()


async def test_the_sleeping_models_that_were_used_last_are_warmed_and_not_too_often(world, lead):
    world.pool(cache={"warm": 2}, idle={"sleepAfter": "0s", "stopAfter": "1h"})
    world.node("n", 1000 * MI)
    keys = [world.model(name, 100 * MI) for name in ("a", "b", "c")]
    running = lead()
    for key in keys:
        await world.answered(key)
    await world.until(lambda: all(it.supervisor.life.state.value == "Sleeping" for it in world.pods.values()) and len(world.pods) == 3)
    await world.until(lambda: all(it.state.value == "Sleeping" for it in running.controller.store.state.replicas.values()))
    now = 1_000_000.0
    controller = running.controller
    warming = Warming(controller.store, supervisors_of(controller), lambda: now)

    def count() -> list[int]:
        return [sum(call == "warm" for call, _ in world.pods_of(key)[0].supervisor.calls) for key in keys]

    await warming.round()
    assert count() == [0, 1, 1]
    await warming.round()
    assert count() == [0, 1, 1]
    now += AGAIN
    await warming.round()
    assert count() == [0, 2, 2]


def supervisors_of(controller) -> Supervisors:
    return controller._supervisors
