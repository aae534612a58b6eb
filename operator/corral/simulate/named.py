"""Scenarios that aim at one rule each: where a random one would meet it too seldom, or too late."""

from __future__ import annotations

import random

from corral.domain.model import Pool
from corral.simulate.scenario import GI, Fault, Latencies, ModelSpec, NodeSpec, RequestSpec, Scenario


def stream(model: str, start: float, end: float, *, every: float = 1.5, service: float = 4.0) -> tuple[RequestSpec, ...]:
    """Requests that overlap without a gap: the model is never idle."""
    count = int((end - start) / every)
    return tuple(RequestSpec(start + number * every, model, service, retry=True) for number in range(count))


def never_idle(seed: int) -> Scenario:
    """Two models on room for one; the first is busy all the time."""
    chance = random.Random(f"never idle {seed}")
    models = (ModelSpec("a", 16 * GI, load=1.0), ModelSpec("b", 16 * GI, load=1.0))
    pool = Pool("default", min_residency=2.0, max_wait=5.0, turn=5.0, drain_timeout=5.0, hold_timeout=120.0)
    requests = (*stream("m/a", 1.0, 250.0), RequestSpec(chance.uniform(20, 40), "m/b", 1.0, 600.0, retry=True))
    return Scenario(seed, (NodeSpec("n1", {"gpu0": 24 * GI}),), models, tuple(sorted(requests, key=lambda each: each.at)), (), pool, 250.0)


def both_busy(seed: int) -> Scenario:
    """Two models on room for one, both asked for all the time: turns alternate."""
    models = (ModelSpec("a", 16 * GI, load=1.0), ModelSpec("b", 16 * GI, load=1.0))
    pool = Pool("default", min_residency=2.0, max_wait=5.0, turn=10.0, drain_timeout=5.0, hold_timeout=120.0)
    requests = (*stream("m/a", 1.0, 120.0), *stream("m/b", 2.0, 120.0))
    return Scenario(seed, (NodeSpec("n1", {"gpu0": 24 * GI}),), models, tuple(sorted(requests, key=lambda each: each.at)), (), pool, 200.0)


def frozen_leaders(seed: int) -> Scenario:
    """Leaders freeze in the middle of what they do, for longer than their lease, over slow calls; the traffic swaps all the time."""
    chance = random.Random(f"frozen {seed}")
    names = "abcd"
    models = tuple(ModelSpec(name, 15 * GI, load=0.5, download=0.1, sleep_after=2.0) for name in names)
    pool = Pool("default", min_residency=0.0, max_wait=2.0, turn=2.0, drain_timeout=2.0, hold_timeout=60.0)
    requests = []
    at = 2.0
    while at < 100.0:
        requests.append(RequestSpec(at, f"m/{chance.choice(names)}", chance.uniform(0.1, 1.0), chance.uniform(2, 8)))
        at += chance.expovariate(0.6)
    faults = tuple(Fault(at + chance.uniform(0, 8), "operator-freeze", "", chance.uniform(4.5, 9.0)) for at in range(5, 100, 13))
    latencies = Latencies(call=1.2, write=1.2, watch=0.1, pod=0.3)
    return Scenario(seed, (NodeSpec("n1", {"gpu0": 24 * GI}),), models, tuple(requests), faults, pool, 140.0, latencies=latencies, lease=4.0)
