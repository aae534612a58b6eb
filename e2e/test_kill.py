"""The operator and the gateways die at the worst moments; requests are answered all the same, and no byte is committed twice."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from e2e.support.ask import ask, stream
from e2e.support.kubectl import until
from e2e.support.ledger import Witness
from e2e.support.world import MODELS, SYSTEM, World, deployment

TRIO = ("alpaca", "badger", "camel")


@pytest.fixture
def two_loaded(world: World):
    world.apply(*(deployment(name, world.sources[name]) for name in TRIO))
    world.wait_ready(*TRIO)
    for name in TRIO:  # every model has a pod with its file; camel and badger end up loaded
        ask(world, name)
    yield
    operator_ready(world)
    world.remove_models()


def operator_ready(world: World) -> None:
    world.kubectl.run("rollout", "status", "deployment", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--timeout=90s", timeout=100)


def commitment(pod: dict[str, Any]) -> str:
    return (pod["metadata"].get("annotations") or {}).get("corral.dev/commit", "")


def evictions(world: World) -> set[tuple[str, int]]:
    """Whoever is the victim: one entry for each time that an eviction was told."""
    events = world.kubectl.json("get", "events", "-n", MODELS)["items"]
    return {(each["metadata"]["uid"], each.get("count") or 1) for each in events if each.get("reason", "").startswith("Evict")}


MOMENTS = {
    "before anything": lambda _world, _told: True,
    "between drain and sleep, or just after": lambda world, told: bool(evictions(world) - told),
    "between commitment and wake, or just after": lambda world, _told: any(commitment(p) for p in world.pods("alpaca")),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_operator_is_deleted_in_the_middle_of_a_swap(world: World, witness: Witness, two_loaded, moment: str):
    told = evictions(world)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, world, "alpaca")
        until(moment, lambda: MOMENTS[moment](world, told), 30, every=0.01)
        world.kill_operator()
        assert answer.result(120) == "I am alpaca."
    witness.assert_clean()
    assert len([p for p in world.pods() if commitment(p)]) <= len(world.nodes)


@pytest.mark.parametrize("delay", [0.02, 0.1, 0.2, 0.3])
def test_the_operator_dies_at_any_moment_of_a_swap(world: World, witness: Witness, two_loaded, delay: float):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, world, "alpaca")
        time.sleep(delay)
        world.kill_operator()
        assert answer.result(120) == "I am alpaca."
    witness.assert_clean()


def test_an_operator_paused_past_its_lease_changes_nothing_when_it_goes_on(world: World, witness: Witness, two_loaded, local_cluster):
    paused = operator_processes()
    assert paused, "the operator's process is not on this machine"
    lease = world.kubectl.list("leases", SYSTEM)[0]
    duration = lease["spec"]["leaseDurationSeconds"]
    transitions = lease["spec"].get("leaseTransitions", 0)
    for pid in paused:
        os.kill(pid, signal.SIGSTOP)
    try:
        world.kubectl.run("scale", "deployment", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--replicas=2")
        until(
            "another one leads",
            lambda: world.kubectl.list("leases", SYSTEM)[0]["spec"].get("leaseTransitions", 0) > transitions,
            duration + 90,
        )
        assert ask(world, "alpaca") == "I am alpaca."
        before = at_rest(world)
        for pid in paused:
            os.kill(pid, signal.SIGCONT)
        time.sleep(3)
        assert at_rest(world) == before
        assert world.kubectl.list("leases", SYSTEM)[0]["spec"]["leaseTransitions"] == transitions + 1
        witness.assert_clean()
    finally:
        for pid in paused:
            with contextlib.suppress(ProcessLookupError):  # it ended when it went on and saw that it leads no more
                os.kill(pid, signal.SIGCONT)
        world.kubectl.run("scale", "deployment", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--replicas=1")


def at_rest(world: World) -> dict[str, str]:
    """Commitments by pod, once the leader has done all that followed from the last request: a spare pod takes a while to go."""
    seen: list[dict[str, str]] = []

    def still() -> bool:
        pods = world.pods()
        seen.append({p["metadata"]["uid"]: commitment(p) for p in pods})
        return len(seen) > 3 and seen[-1] == seen[-2] == seen[-3] and not any(p["metadata"].get("deletionTimestamp") for p in pods)

    until("the pods are at rest", still, 60, every=1)
    return seen[-1]


def test_resident_models_answer_while_the_operator_is_down(world: World, two_loaded):
    world.kubectl.run("scale", "deployment", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--replicas=0")
    try:
        until("no operator", lambda: not world.operators(), 60)
        for name in sorted(world.loaded()):
            assert ask(world, name) == f"I am {name}."
    finally:
        world.kubectl.run("scale", "deployment", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--replicas=1")


def test_a_stream_goes_on_while_the_other_gateway_is_deleted(world: World):
    world.apply(deployment("alpaca", world.sources["alpaca-for-ever"]))
    world.wait_ready("alpaca")
    gateways = world.kubectl.list("pods", SYSTEM, "app.kubernetes.io/component=gateway")
    assert len(gateways) == 2
    stop = threading.Event()
    mine, other = gateways
    watched = stream(world, "alpaca", stop, base=f"http://{mine['status']['podIP']}:8080", max_tokens=100_000)
    until("it streams", lambda: watched.pieces > 3, 60)
    world.kubectl.delete("pod", other["metadata"]["name"], "--grace-period=0", "--force", namespace=SYSTEM, wait=False)
    seen = watched.pieces
    until("it goes on", lambda: watched.pieces > seen + 20, 30)
    assert not watched.ended
    stop.set()
    watched.join(20)
    assert watched.error is None
    world.kubectl.run("rollout", "status", "deployment", "-n", SYSTEM, "-l", "app.kubernetes.io/component=gateway", "--timeout=90s", timeout=100)
    world.remove_models()


def operator_processes() -> list[int]:
    """Process ids on this machine whose command line is the operator's (the local cluster's pods are processes here)."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word.endswith("/corral") for word in words) and "operator" in words:
            found.append(int(folder.name))
    return found
