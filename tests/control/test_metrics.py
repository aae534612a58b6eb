"""What the operator's endpoint tells, scraped over HTTP from a loop that works: figures from its plans, labels that do not grow with the models."""

import re
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.fake_world import MI

from corral.domain import reasons
from corral.domain.model import ReplicaState
from corral.health import HealthServer
from corral_server.lifecycle import Problem

WAITING = (reasons.WAITING_FOR_MEMORY, reasons.WAITING_FOR_TURN)


@pytest.fixture
async def scrape():
    servers = []

    async def scraped(running) -> dict:
        if not servers:
            server = HealthServer(0, lambda: "", lambda: "")
            server.registry = running.controller.metrics
            await server.start()
            servers.append(server)
        port = servers[0]._runner.addresses[0][1]  # the port that the system chose
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert answer.status == 200
            families = text_string_to_metric_families(await answer.text())
            return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}

    yield scraped
    for server in servers:
        await server.stop()


def of(found: dict, name: str, **labels: str) -> float | None:
    return found.get((name, tuple(sorted(labels.items()))))


async def idle(world, running) -> None:
    await world.until(lambda: not running.controller.plan_view()["underWay"])


def waits_asleep(running, key) -> bool:
    """Its pod is ready, so that the wait for memory is the last word: before, it waits for that pod in between."""
    told = running.controller.plan_view()["verdicts"].get(key, {}).get("reason")
    replicas = running.controller.store.state.replicas.values()
    return told in WAITING and any(it.model == key and it.state is ReplicaState.SLEEPING for it in replicas)


async def test_a_swap_is_told_in_figures(world, lead, scrape):
    world.node("n1", 150 * MI, margin=20 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    device = {"pool": "default", "node": "n1", "device": "host"}
    for key in (a, b, a):
        await world.answered(key)
    await idle(world, running)
    found = await scrape(running)
    assert of(found, "corral_device_capacity_bytes", **device) == 150 * MI
    assert of(found, "corral_device_margin_bytes", **device) == 20 * MI
    committed = 100 * MI + 10 * MI  # one loaded, one asleep
    assert of(found, "corral_device_committed_bytes", **device) == committed
    assert of(found, "corral_device_free_bytes", **device) == 130 * MI - committed
    assert of(found, "corral_replicas", state="Loaded") == 1
    assert of(found, "corral_replicas", state="Sleeping") == 1
    assert of(found, "corral_swaps_total") == 2
    assert sum(value for (name, _), value in found.items() if name == "corral_evictions_total") == 2
    assert of(found, "corral_load_seconds_count") == 3
    assert of(found, "corral_load_phase_seconds_count", phase="load") == 3
    assert of(found, "corral_load_phase_seconds_count", phase="schedule") == 2, "the third load found its pod asleep"
    assert of(found, "corral_wait_seconds_count") == 3
    assert of(found, "corral_estimate_ratio_sum") == pytest.approx(3.0), "three loads that measured what was estimated"
    assert of(found, "corral_plan_seconds_count") > 0
    assert of(found, "corral_actions_total", action="Create", reason=reasons.REQUESTED) == 2


async def test_gauges_are_true_at_the_moment_of_the_scrape(world, lead, scrape):
    world.pool(fairness={"maxWait": "100s", "turn": "50s"}, hold={"timeout": "1000s"}, eviction={"minResidency": "0s"})
    world.node("n1", 150 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    await world.answered(a)
    pod = world.hold(a)
    waiter = world.ask(b)
    await world.until(lambda: waits_asleep(running, b))
    found = await scrape(running)
    assert sum(of(found, "corral_waiting_models", reason=reason) or 0 for reason in WAITING) == 1
    world.end(pod)
    await world.until(waiter.done.is_set)
    await idle(world, running)
    after = await scrape(running)
    assert not any(name == "corral_waiting_models" for name, _ in after)
    world.node("n2", 70 * MI)
    found = await scrape(running)
    assert of(found, "corral_device_free_bytes", pool="default", node="n2", device="host") == 70 * MI
    for sink in world.sinks:
        sink.remove_node("n2")
    assert of(await scrape(running), "corral_device_free_bytes", pool="default", node="n2", device="host") is None


async def test_turns_and_failures_are_counted(world, lead, scrape):
    world.node("n1", 150 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    await world.answered(a)
    pod = world.hold(a)
    waiter = world.ask(b)
    await world.until(lambda: pod.supervisor.life.state.value == "Draining")
    world.end(pod)
    await world.until(waiter.done.is_set)
    world.pods_of(a)[0].supervisor.fail_next = [Problem("LoadFailed", "it broke", True, 1_800_000_000.0)]
    await world.answered(a)
    found = await scrape(running)
    assert of(found, "corral_turns_total") >= 1
    assert of(found, "corral_failures_total", reason="LoadFailed") == 1
    assert of(found, "corral_evictions_total", reason=reasons.TURN_ENDED) == 1


async def test_no_label_names_a_model(world, lead, scrape):
    world.node("n1", 150 * MI)
    keys = [world.model(name, 100 * MI) for name in ("anton", "berta", "caesar")]
    running = lead()
    counts = []
    for key in keys:
        await world.answered(key)
        await idle(world, running)
        found = await scrape(running)
        told = " ".join(value for _, labels in found for _, value in labels)
        assert not any(name in told for name in ("anton", "berta", "caesar"))
        counts.append(len([name for name, _ in found if name.startswith("corral_")]))
    assert counts[2] == counts[1], "a third model adds no series"


async def test_the_phases_of_a_load_are_in_the_status(world, lead):
    world.node("n1", 150 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    running = lead()
    await world.answered(a)
    await world.until(lambda: "lastLoad" in world.status(a))
    cold = world.status(a)["lastLoad"]
    assert set(cold) == {"total", "schedule", "download", "load"}
    await world.answered(b)
    await idle(world, running)
    await world.answered(a)
    await world.until(lambda: set(world.status(a)["lastLoad"]) == {"total", "load"})


async def test_the_page_on_metrics_names_them_all_and_no_other(lead):
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text().split("# The gateway's metrics")[0]
    listed = re.findall(r"^\| `(corral_\w+)` \| ([^|]*)\|", page, re.MULTILINE)
    metrics = lead().controller.metrics
    there = {family.name + ("_total" if family.type == "counter" else "") for family in metrics.collect()}
    assert {name for name, _ in listed} == there
    for name, labels in listed:
        names = re.findall(r"`(\w+)`", labels)
        assert not {"model", "pod", "replica"} & set(names), name
