"""Concurrent clients over models that do not fit together: every request is answered, loads and evictions stay few. Real processes throughout."""

import asyncio

import pytest
from tests.local.herd import ROOM, SAYS, stream


async def ask_all(herd, names):
    return await asyncio.gather(*(herd.ask(name) for name in names))


def said(names):
    return [SAYS[name] for name in names]


async def test_room_for_one_two_models_three_requests_each_at_once(shared):
    herd = await shared(1)
    before = herd.swaps()
    names = ["a", "b"] * 3
    assert await ask_all(herd, names) == said(names)
    assert herd.swaps() - before <= 2  # no swapping to and fro between them


async def test_room_for_two_three_models_two_requests_each_at_once(shared):
    herd = await shared(2)
    before = herd.swaps()
    names = ["a", "b", "c"] * 2
    assert await ask_all(herd, names) == said(names)
    assert herd.swaps() - before <= 3


async def test_room_for_one_two_models_in_turns(shared):
    herd = await shared(1)
    assert await herd.ask("b") == SAYS["b"]
    before = herd.swaps()
    for name in ["a", "b"] * 3:
        assert await herd.ask(name) == SAYS[name]
    await herd.until(lambda: herd.swaps() - before == 6)


async def test_room_for_one_six_requests_at_once_for_one_model_are_one_load(shared):
    herd = await shared(1)
    assert await herd.ask("b") == SAYS["b"]
    loads, swaps = herd.loads("a"), herd.swaps()
    assert await ask_all(herd, ["a"] * 6) == said(["a"] * 6)
    assert herd.loads("a") == loads + 1
    await herd.until(lambda: herd.swaps() == swaps + 1)


async def test_three_waiters_for_one_missing_model_cost_one_eviction_and_a_busy_model_stays(herd):
    herd.pool(ROOM[2], fairness={"maxWait": "40s", "turn": "1s"}, hold={"timeout": "120s"})
    herd.model("a", "I am alpaca, and I go on.", loop=True)
    for name in ("b", "c"):
        herd.model(name, SAYS[name])
    herd.start()
    await herd.ready("a", "b", "c")
    async with herd.openai() as client:
        busy = stream(client, "a", max_tokens=60000)
        await anext(busy)
        assert await herd.ask("b") == SAYS["b"]
        assert await ask_all(herd, ["c"] * 3) == said(["c"] * 3)
        await anext(busy)
        await busy.aclose()
    await herd.until(lambda: herd.evictions() == {"a": 0, "b": 1, "c": 0})


async def test_a_waiting_client_that_leaves_costs_nobody_a_place(herd):
    herd.pool(ROOM[1], fairness={"maxWait": "40s", "turn": "1s"}, hold={"timeout": "120s"})
    herd.model("a", "I am alpaca, and I go on.", loop=True)
    for name in ("b", "c"):
        herd.model(name, SAYS[name])
    herd.start()
    await herd.ready("a", "b", "c")
    async with herd.openai() as client:
        busy = stream(client, "a", max_tokens=60000)
        await anext(busy)
        leaving = asyncio.create_task(herd.ask("b"))
        await herd.until(lambda: herd.waits("b"), "b to wait")
        staying = asyncio.create_task(herd.ask("c"))
        await herd.until(lambda: herd.waits("c"), "c to wait")
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await herd.until(lambda: not herd.waits("b"), "b to be wanted by nobody")
        await busy.aclose()
        assert await staying == SAYS["c"]
    assert herd.pods("b") == [] or herd.supervisor("b")["loads"] == 0


async def test_the_queue_is_served_in_the_order_of_arrival(herd):
    herd.pool(ROOM[1], fairness={"maxWait": "40s", "turn": "1s"}, hold={"timeout": "120s"})
    herd.model("a", "I am alpaca, and I go on.", loop=True)
    for name in ("b", "c"):
        herd.model(name, SAYS[name])
    herd.start()
    await herd.ready("a", "b", "c")
    ends: list[str] = []

    async def ask(name):
        assert await herd.ask(name) == SAYS[name]
        ends.append(name)

    async with herd.openai() as client:
        busy = stream(client, "a", max_tokens=60000)
        await anext(busy)
        waiting = []
        for name in ("c", "b"):
            waiting.append(asyncio.create_task(ask(name)))
            await herd.until(lambda name=name: herd.waits(name), f"{name} to wait")
        # Its pod is ready before there is room: the order does not hang on whose pod starts faster.
        await herd.until(lambda: herd.status("c").get("sleepingReplicas") == 1, "c to sleep")
        await busy.aclose()
        await asyncio.gather(*waiting)
    assert ends == ["c", "b"]


async def test_two_models_queued_while_one_idle_model_is_resident_are_both_served(shared):
    herd = await shared(1)
    assert await herd.ask("a") == SAYS["a"]
    assert await ask_all(herd, ["b", "c"]) == said(["b", "c"])


async def test_a_request_for_a_model_that_is_being_put_to_sleep_is_served_by_its_next_engine(shared):
    herd = await shared(1)
    for _ in range(3):
        # b's request makes a go to sleep; a's next one comes right into that.
        assert await herd.ask("a") == SAYS["a"]
        first = asyncio.create_task(herd.ask("b"))
        await asyncio.sleep(0)
        assert await ask_all(herd, ["a", "a"]) == said(["a", "a"])
        assert await first == SAYS["b"]


async def test_a_model_just_loaded_serves_its_waiter_before_it_can_go(shared):
    herd = await shared(1)
    assert await herd.ask("c") == SAYS["c"]
    before, loads = herd.swaps(), {name: herd.loads(name) for name in SAYS}
    for _ in range(3):
        names = ["a", "b"]
        assert await ask_all(herd, names) == said(names)
    await herd.until(lambda: all(not herd.waits(name) for name in SAYS))
    # One load for each answer at most: nobody was loaded and thrown out again unserved.
    assert sum(herd.loads(name) - loads[name] for name in SAYS) <= 6
    assert herd.swaps() - before <= 6


async def test_loads_at_once_never_pass_the_room_and_a_loading_model_is_never_the_victim(herd):
    names = [f"model-{number}" for number in range(6)]
    herd.pool("1040Mi", hold={"timeout": "120s"})
    for name in names:
        herd.model(name, f"I am {name}.")
    herd.start()
    await herd.ready(*names)
    held: list[int] = []
    unserved: list[str] = []
    before: dict[str, str] = {}

    def look() -> None:
        """What all replicas have been given, and who was loading and is not any more without having been loaded."""
        state = herd.state()
        held.append(sum(pod["memoryRequest"] for pod in state["pods"]))
        for each in (found for model in state["models"] for found in model.get("status", {}).get("placements", [])):
            if before.get(each["replica"]) == "Loading" and each["state"] in {"Draining", "Sleeping"}:
                unserved.append(each["replica"])
            before[each["replica"]] = each["state"]

    answers = asyncio.ensure_future(ask_all(herd, names))
    while not answers.done():
        await asyncio.to_thread(look)
        await asyncio.sleep(0.01)
    assert answers.result() == [f"I am {name}." for name in names]
    assert 0 < max(held) <= 1040 << 20
    assert unserved == []


async def test_an_engine_that_dies_by_itself_blocks_nobody(herd):
    herd.pool(ROOM[1])
    for name in ("a", "b"):
        herd.model(name, SAYS[name])
    herd.start()
    await herd.ready("a", "b")
    assert await herd.ask("a") == SAYS["a"]
    herd.engine("a").kill()
    assert await herd.ask("b") == SAYS["b"]
