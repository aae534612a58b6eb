"""What a pool's status says of its nodes and devices, and whom the pool takes."""

from tests.support.fake_world import MI

from corral.domain import reasons
from corral.domain.model import Device, DeviceKey, DeviceKind, Node


def told(world, name: str = "default", kind: str = "Ready") -> dict:
    status = world.pools[name].get("status") or {}
    return next((it for it in status.get("conditions", ()) if it["type"] == kind), {})


def node(name: str, pool: str, *overlapping: str) -> tuple[Node, list[Device]]:
    return Node(name, pool, overlapping=overlapping), [Device(DeviceKey(name, "host"), pool, DeviceKind.HOST, 100 * MI, 10 * MI)]


async def test_a_pool_whose_nodes_another_one_has_says_which(world, lead):
    world.pool("gold")
    running = lead()
    store = running.controller.store
    for name in ("n2", "n3"):
        store.put_node(*node(name, "gold", "default"))
    await world.until(lambda: told(world, kind="Overlapping").get("status") == "True")
    assert told(world, kind="Overlapping")["reason"] == reasons.OVERLAPPING
    assert "n2 to gold, n3 to gold." in told(world, kind="Overlapping")["message"]
    assert told(world)["reason"] == reasons.NO_DEVICES, "none of them is its own"
    await world.until(lambda: told(world, "gold").get("status") == "True")
    assert told(world, "gold", "Overlapping") == {}
    store.put_node(*node("n2", "gold"))
    await world.until(lambda: "n2" not in told(world, kind="Overlapping")["message"])
    store.remove_node("n3")
    await world.until(lambda: told(world, kind="Overlapping") == {})


async def test_many_nodes_are_named_up_to_a_count(world, lead):
    running = lead()
    for number in range(10):
        running.controller.store.put_node(*node(f"n{number}", "gold", "default"))
    await world.until(lambda: "n7 to gold and 2 more." in told(world, kind="Overlapping").get("message", ""))


async def test_devices_are_listed_as_the_decision_counts_them(world, lead):
    world.node("n1", 150 * MI, margin=20 * MI)
    a = world.model("a", 100 * MI)
    lead()
    await world.answered(a)
    await world.until(lambda: (world.pools["default"].get("status") or {}).get("committed") == "100Mi")
    status = world.pools["default"]["status"]
    (device,) = status["devices"]
    assert device == {"node": "n1", "id": "host", "product": "", "capacity": "150Mi", "committed": "100Mi", "free": "30Mi", "models": 1}
    assert (status["nodes"], status["deviceCount"], status["models"]) == (1, 1, 1)


async def test_a_namespace_that_the_pool_does_not_take_is_told_and_let_in_once_it_does(world, lead):
    world.node("n1", 150 * MI)
    world.pool(allowed={"namespaces": ["team-b"], "maxPriority": 1000, "pinned": True})
    a = world.model("a", 100 * MI)
    lead()
    await world.until(lambda: world.condition(a, "Stalled").get("reason") == reasons.POOL_NOT_ALLOWED)
    assert world.condition(a, "Stalled")["message"] == "namespace m may not use pool default; its allowed.namespaces are: team-b"
    waiter = world.ask(a)
    world.pool(allowed={"namespaces": ["team-b", "m"], "maxPriority": 1000, "pinned": True})
    await world.until(waiter.done.is_set)


async def test_a_pool_that_is_deleted_stalls_its_models_and_leaves_what_runs(world, lead):
    world.node("n1", 400 * MI)
    world.pool("gold")
    a = world.model("a", 100 * MI)
    running = lead()
    await world.answered(a)
    running.controller.store.remove_pool("default")
    await world.until(lambda: world.condition(a, "Stalled").get("reason") == reasons.POOL_NOT_FOUND)
    assert world.loaded() == {a}, "a resident model keeps answering"
    running.controller.store.put_pool(world.pools["default"])
    await world.until(lambda: world.condition(a, "Ready").get("status") == "True")
    assert world.faults == []
