"""What a router for models on one machine is held to, by name; here over the simulated cluster, `limit` models at a time on one device."""

from __future__ import annotations

from itertools import pairwise

import pytest

from corral.domain.model import Pool
from corral.simulate.scenario import GI, Fault, Latencies, ModelSpec, NodeSpec, RequestSpec, Scenario
from corral.simulate.world import World, resident


def world(limit: int, requests: list[RequestSpec], *, names: str = "abc", faults: tuple[Fault, ...] = (), until: float = 200.0, **pool) -> World:
    """`limit` models fit. Loads take about a second, pods and downloads next to nothing."""
    settings = {"min_residency": 0.0, "max_wait": 5.0, "turn": 5.0, "drain_timeout": 5.0, "hold_timeout": 120.0} | pool
    models = tuple(ModelSpec(name, 10 * GI, load=1.0, download=0.1, sleep_after=1000.0, stop_after=2000.0) for name in names)
    node = NodeSpec("n1", {"gpu0": (10 * limit + 2) * GI})
    return World(
        Scenario(1, (node,), models, tuple(requests), faults, Pool("default", **settings), until, latencies=Latencies(watch=0.02, pod=0.1, exit=0.1))
    )


def ask(model: str, at: float, service: float = 1.0, patience: float = 600.0) -> RequestSpec:
    return RequestSpec(at, f"m/{model}", service, patience)


def loads(result, model: str | None = None) -> int:
    return sum(text.endswith(" is loaded") and (model is None or text.startswith(f"{model} ")) for _, text in result.history)


def run(one: World):
    result = one.run()
    assert result.failure is None, result.failure
    return result


def served_order(one: World) -> list[str]:
    done = sorted((each for each in one.requests.all if each.first_byte), key=lambda each: each.first_byte)
    return [each.spec.model.removeprefix("m/") for each in done]


def test_limit_1_two_models_three_and_three_at_once():
    one = world(1, [ask(model, 5.0 + 0.01 * number) for number in range(3) for model in "ab"])
    result = run(one)
    assert result.outcomes == {"answered": 6}
    assert loads(result) == 2, "no endless swapping: one load each"


def test_limit_2_three_models_two_requests_each_at_once():
    result = run(world(2, [ask(model, 5.0 + 0.01 * number) for number in range(2) for model in "abc"]))
    assert result.outcomes == {"answered": 6}
    assert loads(result) == 3


def test_limit_1_three_rounds_alternating():
    result = run(world(1, [ask("ab"[number % 2], 5.0 + 15.0 * number) for number in range(6)]))
    assert result.outcomes == {"answered": 6}
    assert loads(result) == 6


def test_limit_1_six_requests_at_once_for_one_model_are_one_load():
    result = run(world(1, [ask("a", 5.0 + 0.001 * number) for number in range(6)]))
    assert result.outcomes == {"answered": 6}
    assert loads(result) == 1


def test_limit_2_the_oldest_goes():
    one = world(2, [ask("a", 5.0), ask("b", 15.0), ask("c", 25.0)])
    run(one)
    assert resident(one) == ["b", "c"]


def test_use_refreshes_the_order():
    one = world(2, [ask("a", 5.0), ask("b", 15.0), ask("a", 25.0), ask("c", 35.0)])
    run(one)
    assert resident(one) == ["a", "c"]


def test_a_busy_model_is_not_evicted_and_the_other_waits_and_is_served():
    one = world(1, [ask("a", 5.0, service=8.0), ask("b", 10.0)], max_wait=60.0, hold_timeout=120.0)
    result = run(one)
    assert result.outcomes == {"answered": 2}
    first, second = one.requests.all
    assert second.first_byte > first.ended_at


def test_three_waiters_for_one_missing_model_cost_one_eviction():
    one = world(2, [ask("a", 5.0, service=30.0), ask("b", 6.0), *(ask("c", 15.0 + 0.01 * number) for number in range(3))])
    result = run(one)
    assert result.outcomes == {"answered": 5}
    assert result.evictions == 1
    assert loads(result, "a") == 1, "the busy one stayed"


def test_a_queued_client_that_leaves_costs_nobody_a_slot():
    one = world(1, [ask("a", 5.0, service=6.0), ask("b", 8.0, patience=1.0), ask("c", 9.0)], max_wait=60.0)
    result = run(one)
    assert result.outcomes == {"answered": 2, "left": 1}
    assert loads(result, "b") == 0


def test_the_queue_is_served_in_the_order_of_arrival():
    one = world(1, [ask("a", 5.0, service=6.0), ask("c", 8.0), ask("b", 9.5), ask("d", 11.0)], names="abcd")
    run(one)
    assert served_order(one) == ["a", "c", "b", "d"]


def test_a_model_just_loaded_serves_its_waiter_before_it_can_go():
    one = world(1, [ask("a", 5.0), ask("b", 5.5), ask("a", 6.0), ask("b", 6.5)])
    result = run(one)
    assert result.outcomes == {"answered": 4}
    assert served_order(one)[0] == "a"


def test_a_request_for_a_model_that_is_being_stopped_is_served_by_its_next_instance():
    one = world(1, [ask("a", 5.0), ask("b", 10.0), *(ask("a", 10.0 + 0.02 * number, service=0.1) for number in range(40))])
    result = run(one)
    assert result.outcomes == {"answered": 42}


def test_two_different_models_queued_behind_one_idle_one_are_both_served():
    one = world(1, [ask("a", 5.0), ask("b", 15.0), ask("c", 15.01)])
    result = run(one)
    assert result.outcomes == {"answered": 3}
    assert loads(result) == 3


def test_a_loading_model_is_never_the_victim():
    one = world(1, [ask("a", 5.0), ask("b", 5.6), ask("c", 5.7)])
    result = run(one)
    assert result.outcomes == {"answered": 3}
    ended = {text.split()[0] for _, text in result.history if text.startswith("Evict")}
    assert ended == {"Evict"}, "there were evictions"
    begun: dict[str, float] = {}
    for at, text in result.history:
        name = text.split(" ", 1)[0]
        if text.endswith(" loads"):
            begun[name] = at
        elif text.endswith(" is loaded"):
            begun.pop(name, None)
        elif " admits no more" in text:
            assert name not in begun


def test_loads_at_once_never_exceed_the_limit():
    one = world(2, [ask(model, 5.0 + 0.001 * number) for number, model in enumerate("abcdef")], names="abcdef")
    most = 0

    def watch():
        nonlocal most
        most = max(most, sum(bool(each.memory) for each in one.cluster.supervisors.values()))

    check = one.watchdog.after_event
    one.watchdog.after_event = lambda: (check(), watch())
    result = run(one)
    assert most == 2
    assert result.outcomes == {"answered": 6}


def test_an_engine_that_dies_by_itself_blocks_nobody():
    one = world(1, [ask("a", 5.0, service=20.0), ask("b", 30.0), ask("a", 40.0)], faults=(Fault(12.0, "engine-crash", "0"),))
    result = run(one)
    assert result.outcomes == {"answered": 2, "engine_crashed": 1}


def test_a_b_a_b_on_room_for_one_ends_in_bounded_swaps_and_both_make_progress():
    requests = [ask("ab"[number % 2], 5.0 + 0.5 * number, service=1.0) for number in range(200)]
    one = world(1, requests, min_residency=5.0, turn=10.0, max_wait=5.0, until=300.0)
    result = run(one)
    assert result.outcomes == {"answered": 200}
    begins = [at for at, text in result.history if text.endswith(" is loaded")]
    assert all(later - earlier >= 5.0 for earlier, later in pairwise(begins)), "never faster than minResidency"
    assert {"a", "b"} == set(served_order(one))


@pytest.mark.parametrize("limit", [1, 2])
def test_ten_at_once_for_a_model_at_rest_are_one_load(limit):
    result = run(world(limit, [ask("a", 5.0) for _ in range(10)]))
    assert result.outcomes == {"answered": 10}
    assert loads(result) == 1
