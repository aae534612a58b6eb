"""What comes between two steps: pods, models and pools that go or change in the middle, replicas side by side, gateways that disagree."""

import asyncio
import itertools
import json

import pytest
from tests.support.fake_world import MI

from corral.control.create import planned
from corral.domain import reasons
from corral.domain.model import DeviceKey
from corral.domain.plan import Create
from corral.kube.ports import COMMIT, TURN

ROOM_FOR_ONE = 150 * MI


async def quiet(world, running) -> None:
    await world.until(lambda: not running.controller.plan_view()["underWay"])


async def loading(world, key: str):
    """A request that waits for a load which does not end before `load_gate` opens; the pod and the waiter."""
    waiter = world.ask(key)
    await world.until(lambda: world.pods_of(key))
    pod = world.pods_of(key)[-1]
    pod.supervisor.load_gate.clear()
    await world.until(lambda: pod.supervisor.life.state.value == "Loading")
    return pod, waiter


async def test_a_pod_that_is_deleted_while_it_loads_is_replaced_and_its_bytes_count_until_it_is_gone(world, lead):
    world.node("n1", ROOM_FOR_ONE)
    a = world.model("a", 100 * MI)
    running = lead()
    pod, waiter = await loading(world, a)
    world.remove(pod)
    await world.until(waiter.done.is_set)
    assert pod.record.uid not in {it.record.uid for it in world.pods_of(a)}
    assert world.faults == []
    await quiet(world, running)


async def test_a_pod_that_is_deleted_while_it_drains_is_no_obstacle(world, lead):
    world.node("n1", ROOM_FOR_ONE)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    lead()
    await world.answered(a)
    pod = world.hold(a)
    waiter = world.ask(b)
    await world.until(lambda: pod.supervisor.life.state.value == "Draining")
    world.remove(pod)
    await world.until(waiter.done.is_set)
    assert world.faults == []


async def test_a_model_that_is_deleted_while_it_loads_leaves_nothing(world, lead):
    world.node("n1", ROOM_FOR_ONE)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    pod, waiter = await loading(world, a)
    world.waiters.remove(waiter)
    world.delete_model(a)
    world.report()
    pod.supervisor.load_gate.set()
    await world.until(lambda: not world.pods_of(a))
    await world.answered(b)
    await quiet(world, running)
    assert world.faults == []
    assert a not in running.controller.store.facts


@pytest.mark.parametrize("gone", ["newcomer", "victim"])
async def test_a_model_that_is_deleted_in_the_middle_of_a_swap(world, lead, gone):
    world.node("n1", ROOM_FOR_ONE)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    await world.answered(a)
    pod = world.hold(a)
    waiter = world.ask(b)
    await world.until(lambda: pod.supervisor.life.state.value == "Draining")
    if gone == "newcomer":
        world.waiters.remove(waiter)
        world.delete_model(b)
        world.report()
    else:
        world.delete_model(a)
    world.end(pod)
    if gone == "newcomer":
        await world.until(lambda: not world.pods_of(b))
        await world.answered(a)
    else:
        await world.until(waiter.done.is_set)
        await world.until(lambda: not world.pods_of(a))
    await quiet(world, running)
    assert world.faults == []


async def test_a_pool_that_is_deleted_in_the_middle_of_a_swap_stops_it_and_loses_nothing(world, lead):
    world.pool("other")
    world.node("n1", ROOM_FOR_ONE)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    await world.answered(a)
    pod = world.hold(a)
    waiter = world.ask(b)
    await world.until(lambda: pod.supervisor.life.state.value == "Draining")
    running.controller.store.remove_pool("default")
    world.end(pod)
    await world.until(lambda: world.condition(b, "Stalled").get("reason") == reasons.POOL_NOT_FOUND)
    await quiet(world, running)
    assert not waiter.done.is_set()
    running.controller.store.put_pool(world.pools["default"])
    await world.until(waiter.done.is_set)
    assert world.faults == []


async def test_a_spec_that_changes_while_its_model_loads_still_serves_the_waiter_and_ends_with_the_new_revision(world, lead):
    world.node("n1", 400 * MI)
    a = world.model("a", 100 * MI)
    running = lead()
    pod, waiter = await loading(world, a)
    world.model("a", 100 * MI, engine={"slots": 2})
    await world.until(lambda: world.status(a).get("observedGeneration") == 2)
    pod.supervisor.load_gate.set()
    await world.until(waiter.done.is_set)
    revision = running.controller.store.state.models[a].revision
    assert revision != pod.record.revision
    await world.until(lambda: {it.record.revision for it in world.pods_of(a)} <= {revision})
    await world.answered(a)
    assert world.faults == []
    await world.until(lambda: world.condition(a, "Ready").get("status") == "True" and world.condition(a, "Reconciling").get("status") == "False")


async def test_a_spec_that_makes_a_model_too_large_while_it_loads_is_told(world, lead):
    world.node("n1", 150 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    lead()
    pod, waiter = await loading(world, a)
    world.model("a", 300 * MI, model={"source": "https://models.test/larger.gguf"})
    pod.supervisor.load_gate.set()
    await world.until(lambda: world.condition(a, "Stalled").get("reason") == reasons.DOES_NOT_FIT)
    if waiter in world.waiters:
        world.waiters.remove(waiter)
        world.report()
    await world.answered(b)
    assert world.faults == []


async def test_two_replicas_of_one_model_load_side_by_side_and_give_way_one_at_a_time(world, lead):
    world.node("n1", 240 * MI)
    a = world.model("a", 100 * MI, scaling={"minReplicas": 2, "maxReplicas": 2})
    b = world.model("b", 100 * MI)
    running = lead()
    await world.until(lambda: world.status(a).get("loadedReplicas") == 2)
    assert len({pod.record.name for pod in world.pods_of(a)}) == 2
    await world.answered(b)
    assert len([pod for pod in world.pods_of(a) if pod.supervisor.life.state.value == "Loaded"]) == 1
    await quiet(world, running)
    assert world.faults == []


async def test_one_replica_of_two_that_is_deleted_comes_back_beside_the_other(world, lead):
    world.node("n1", 400 * MI)
    a = world.model("a", 100 * MI, scaling={"minReplicas": 2, "maxReplicas": 2})
    lead()
    await world.until(lambda: world.status(a).get("loadedReplicas") == 2)
    first, second = world.pods_of(a)
    kept = second.record.uid
    world.remove(first)
    await world.until(lambda: world.status(a).get("loadedReplicas") == 2 and first.record.uid not in {it.record.uid for it in world.pods_of(a)})
    assert kept in {it.record.uid for it in world.pods_of(a)}
    assert world.faults == []


def report(store, gateway: str, *models: dict, numbers=itertools.count(1)) -> None:  # noqa: B008 - one count for all
    metadata = {"namespace": "corral", "name": gateway, "uid": gateway}
    store.put_report({"metadata": metadata, "spec": {"sequence": next(numbers), "models": list(models)}})


async def test_a_gateway_that_sees_nobody_does_not_take_another_ones_waiters_away(world, lead):
    world.node("n1", ROOM_FOR_ONE)
    a = world.model("a", 100 * MI)
    running = lead()
    store = running.controller.store
    report(store, "gw-1", {"name": a, "waiting": 1, "oldestWaitSeconds": 0})
    for _ in range(3):
        report(store, "gw-2", {"name": a, "waiting": 0, "inFlight": 0})
        await asyncio.sleep(0)
    assert store.demand.demand(a, None).waiting == 1
    await world.until(lambda: world.loaded() == {a})


async def test_a_later_wish_of_another_gateway_counts_and_both_are_taken_note_of(world, lead):
    world.node("n1", ROOM_FOR_ONE)
    a = world.model("a", 100 * MI)
    running = lead()
    store = running.controller.store
    report(store, "gw-1", {"name": a, "wish": {"action": "Load", "id": 100}})
    await world.until(lambda: world.loaded() == {a})
    report(store, "gw-2", {"name": a, "wish": {"action": "Unload", "id": 200}})
    await world.until(lambda: (world.status(a).get("wish") or {}).get("id") == 200)
    assert world.loaded() == set()
    await quiet(world, running)
    assert world.loaded() == set(), "the older wish, still reported, wakes nothing any more"


async def test_a_commitment_that_nobody_ordered_is_taken_back(world, lead):
    """As a leader leaves it that was paused between commitment and wake."""
    world.node("n1", ROOM_FOR_ONE)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    await world.answered(a)
    await world.answered(b)
    await quiet(world, running)
    (pod,) = world.pods_of(a)
    world.put(pod, annotations={**pod.record.annotations, COMMIT: '{"epoch": 1, "devices": {"host": 1048576}}'})
    await world.until(lambda: COMMIT not in pod.record.annotations)
    assert world.loaded() == {b}
    assert world.faults == []


async def test_a_pod_gets_no_name_under_which_something_is_still_under_way(world, lead):
    """Else the new pod would be waited for and never be made."""
    world.node("n1", ROOM_FOR_ONE)
    a = world.model("a", 100 * MI)
    running = lead()
    await world.until(lambda: world.condition(a, "Ready").get("status") == "True")
    shell = running.controller._applier._shell
    action = Create(a, reasons.REQUESTED, "", (DeviceKey("n1", "host"),), running.controller.store.state.models[a].revision)
    first = planned(shell, action)
    assert first is not None
    assert first.name.endswith("-0")
    second = planned(shell, action, {f"m/{first.name}"})
    assert second is not None
    assert second.name.endswith("-1")


async def test_a_turn_that_begins_while_another_mark_is_written_is_marked_too(world, lead):
    """The start of a turn has to outlive the leader, whatever else was being written to the pod at that moment."""
    world.node("n1", ROOM_FOR_ONE)
    a = world.model("a", 100 * MI)
    running = lead()
    await world.answered(a)
    await quiet(world, running)
    (pod,) = world.pods_of(a)
    key = f"m/{pod.record.name}"
    applier, hold = running.controller._applier, asyncio.Event()
    applier._run(f"mark {key}", hold.wait())
    applier._turn(key, 1_800_000_000.25)
    hold.set()
    pod.supervisor.told()
    world.put(pod)  # any news of it
    await world.until(lambda: TURN in pod.record.annotations)
    assert json.loads(pod.record.annotations[TURN]) == {"started": "2027-01-15T08:00:00.250000Z"}


async def test_a_place_is_kept_for_clients_that_were_told_to_come_back_also_by_the_next_leader(world, lead):
    world.pool(fairness={"maxWait": "100s", "turn": "50s"}, hold={"timeout": "1000s"}, eviction={"minResidency": "0s"})
    world.node("n1", ROOM_FOR_ONE)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    await world.answered(a)
    pod = world.hold(a)
    store = running.controller.store
    report(store, "gw-1", {"name": b, "waiting": 1, "oldestWaitSeconds": 5})
    await world.until(lambda: "queueSince" in world.status(b))
    since = world.status(b)["queueSince"]
    report(store, "gw-1", {"name": b, "waiting": 0, "returningSeconds": 30})
    await world.until(lambda: "queueUntil" in world.status(b))
    report(store, "gw-1")
    await quiet(world, running)
    assert world.status(b)["queueSince"] == since
    await running.drop()
    second = lead(2)
    await world.until(lambda: second.controller.store.facts.get(b) is not None)
    await world.until(lambda: second.controller.store.facts[b].queue_until is not None)
    report(second.controller.store, "gw-1", {"name": b, "waiting": 1, "oldestWaitSeconds": 0})
    await quiet(world, second)
    assert world.status(b)["queueSince"] == since, "who comes back in time stands where it stood"
    world.end(pod)
    await world.until(lambda: world.loaded() == {b})
