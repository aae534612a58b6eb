"""`corral explain` against the real API server, word for word: for each thing that can be in a model's way, the arithmetic that a reader needs."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from e2e.support.ask import ask, stream
from e2e.support.kubectl import until
from e2e.support.ledger import quantity
from e2e.support.world import MIB, MODELS, World, deployment
from tests.support.explained import explained

CAPACITY, MARGIN = 900, 64
OPERATOR = Path(__file__).resolve().parents[1] / "operator"


def told(world: World, name: str, *, margin: int = MARGIN) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "corral.cli", "explain", name, "-n", MODELS, "--kubeconfig", world.kubectl.kubeconfig],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONPATH": str(OPERATOR), "COLUMNS": "200"},
    )
    memory = world.model(name)["status"]["memory"]
    # `required` is the larger of the two, but rounded to a tenth of its unit.
    need = max(quantity(memory[kind]["total"]) for kind in ("estimated", "measured") if kind in memory) / MIB
    room = CAPACITY - margin
    return explained(done.stdout, {"need": need, "room": room, "rest": room - need, "short": need - room})


def test_fits_now_must_evict_and_waits_for_a_turn(world: World, settings: Any) -> None:
    settings(fairness={"maxWait": "90s", "turn": "20s"})
    world.apply(*(deployment(name, world.sources[f"{name}-for-ever"]) for name in ("alpaca", "badger")), deployment("camel", world.sources["camel"]))
    world.wait_ready("alpaca", "badger", "camel")
    first, second = sorted(world.nodes)
    assert told(world, "camel") == [
        "models/camel is Idle",
        "  Loaded=False (Idle): At rest; a request wakes it.",
        f"  a request would load it now: needs <need>; {first} has <room> free of 900Mi, margin taken off, 0 committed",
    ]
    stop = threading.Event()
    streams = [stream(world, name, stop, max_tokens=100_000) for name in ("alpaca", "badger")]
    until("both stream", lambda: all(s.pieces > 3 for s in streams), 60)
    where = {name: world.pods(name)[0]["spec"]["nodeName"] for name in ("alpaca", "badger")}
    until("the pool's status has caught up", lambda: "; there: " in "".join(told(world, "camel")), 20)
    there = {node: name for name, node in where.items()}
    assert told(world, "camel") == [
        "models/camel is Idle",
        "  Loaded=False (Idle): At rest; a request wakes it.",
        "  a request would have to make room: needs <need>",
        f"    {first} has <rest> free of 900Mi, margin taken off, <need> committed; there: {there[first]} (Loaded)",
        f"    {second} has <rest> free of 900Mi, margin taken off, <need> committed; there: {there[second]} (Loaded)",
    ]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        late = pool.submit(ask, world, "camel")
        until("camel waits for a turn", lambda: "  next: the turn of " in "".join(told(world, "camel")), 60)
        lines = told(world, "camel")
        assert lines[0] in ("models/camel is WaitingForTurn", "models/camel is WaitingForMemory")
        assert lines[1].endswith(": needs <need> on one device; margin 64Mi per device.")
        assert "  needs <need>:" in lines
        for node, name in there.items():
            at = lines.index(next(line for line in lines if line.startswith(f"    {node} (host): ")))
            assert lines[at].startswith(f"    {node} (host): 900Mi less 64Mi margin, free ")
            assert lines[at].endswith(", needed <need>, could free 0")
            assert lines[at + 1] == f"      models/{name} stays: InFlight"
        stop.set()
        assert late.result(90) == "I am camel."


def test_pinned_in_the_way(world: World) -> None:
    world.apply(*(deployment(name, world.sources[name], pinned=True) for name in ("alpaca", "badger")), deployment("camel", world.sources["camel"]))
    until("both pinned ones are loaded", lambda: world.loaded() == {"alpaca", "badger"}, 120)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        late = pool.submit(ask, world, "camel")
        world.wait_condition("camel", "Loaded", "False", "WaitingForMemory")
        lines = told(world, "camel")
        assert lines[0] == "models/camel is WaitingForMemory"
        assert sum(line.strip() in {"models/alpaca stays: Pinned", "models/badger stays: Pinned"} for line in lines) == 2
        assert sum(line.endswith(" (host): 900Mi less 64Mi margin, free <rest>, needed <need>, could free 0") for line in lines) == 2
        world.kubectl.delete("md", "alpaca", namespace=MODELS)
        assert late.result(90) == "I am camel."


def test_never_fits_and_only_the_margin_is_in_the_way(world: World, settings: Any) -> None:
    first, second = sorted(world.nodes)
    world.apply(deployment("whale", world.sources["whale"]), deployment("camel", world.sources["camel"]))
    world.wait_ready("camel")
    for name, margin in (("whale", MARGIN), ("camel", 700)):
        settings(memoryMargin=f"{margin}Mi")
        world.wait_condition(name, "Stalled", "True", "DoesNotFit")
        until("the margin is told", lambda name=name, margin=margin: f"{margin}Mi stay free" in world.condition(name, "Stalled")["message"], 20)
        lines = told(world, name, margin=margin)
        node = first if f" is {first} with " in lines[1] else second  # they are alike
        message = (
            f"needs <need>; the largest device of pool default is {node} with 900Mi, of which {margin}Mi stay free as margin: <short> too little."
        )
        assert lines[:4] == [
            f"models/{name} is DoesNotFit",
            f"  Stalled=True (DoesNotFit): {message}",
            f"  Loaded=False (DoesNotFit): {message}",
            f"  Ready=False (DoesNotFit): {message}",
        ]
        assert f"    {second} (host): 900Mi less {margin}Mi margin, free <room>, needed <need>, could free 0" in lines
