"""Request traces for the comparison of eviction policies: who is asked for when, from a seed. Sizes are those of GGUF files that people run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from corral.domain.model import Pool
from corral.simulate.scenario import GI, Latencies, ModelSpec, NodeSpec, RequestSpec, Scenario

SIZES = (0.5, 0.8, 1.1, 1.9, 2.5, 3.3, 4.4, 4.9, 6.6, 7.7, 8.5, 12, 14, 17, 18.6, 20, 24, 32, 42.5, 70)  # GB
SECONDS = 1500.0
RATE = 0.4  # requests per second, all models together
SERVICE = 3.0  # seconds in flight, on average
START = 1.5  # seconds that a load takes beside its bytes
BANDWIDTH = 2e9  # bytes per second from a local disk or the page cache
EQUAL = 14.0  # GB, where all are of one size


@dataclass(frozen=True)
class Trace:
    name: str
    what: str
    make: Callable[[random.Random], list[tuple[float, int]]]  # (time, number of the model)
    equal: bool = False


def _weights(count: int, alpha: float, chance: random.Random) -> list[float]:
    """Zipf by rank; which model has which rank is drawn anew for each seed, so that popularity and size are independent."""
    weights = [1 / rank**alpha for rank in range(1, count + 1)]
    chance.shuffle(weights)
    return weights


def zipf(alpha: float) -> Callable[[random.Random], list[tuple[float, int]]]:
    def make(chance: random.Random) -> list[tuple[float, int]]:
        weights, at, asked = _weights(len(SIZES), alpha, chance), 0.0, []
        while (at := at + chance.expovariate(RATE)) < SECONDS:
            asked.append((at, chance.choices(range(len(SIZES)), weights)[0]))
        return asked

    return make


def bursts(chance: random.Random) -> list[tuple[float, int]]:
    """Gaps of a Gamma distribution with shape 0.2: most requests come in clusters, then nothing for long."""
    weights = _weights(len(SIZES), 1.0, chance)
    total, asked = sum(weights), []
    for number, weight in enumerate(weights):
        mean, at = total / (RATE * weight), 0.0
        while (at := at + chance.gammavariate(0.2, mean / 0.2)) < SECONDS:
            asked.append((at, number))
    return sorted(asked)


def scan(chance: random.Random) -> list[tuple[float, int]]:
    """Round and round over one model more than fits: the worst case of every policy that goes by recency."""
    asked, at, number = [], 0.0, chance.randrange(100)
    while (at := at + chance.uniform(8, 16)) < SECONDS:
        asked.append((at, number % 11))
        number += 1
    return asked


def groups(chance: random.Random) -> list[tuple[float, int]]:
    """Teams: for some minutes one group of models is asked for, then another."""
    order, at, asked = list(range(len(SIZES))), 0.0, []
    chance.shuffle(order)
    parts = [order[start::4] for start in range(4)]
    active, until = 0, 0.0
    while (at := at + chance.expovariate(RATE)) < SECONDS:
        if at > until:
            active, until = chance.randrange(4), at + chance.uniform(90, 240)
        part = parts[active] if chance.random() < 0.9 else order
        asked.append((at, chance.choice(part)))
    return asked


TRACES = (
    Trace("zipf 0.8", "popularity by Zipf's law, exponent 0.8", zipf(0.8)),
    Trace("zipf 1.1", "the same, exponent 1.1", zipf(1.1)),
    Trace("zipf 1.4", "the same, exponent 1.4", zipf(1.4)),
    Trace("bursts", "Gamma bursts (shape 0.2), Zipf 1.0", bursts),
    Trace("groups", "one of four groups of models is active at a time", groups),
    Trace("scan", "round robin over 11 models of one size, 10 fit", scan, equal=True),
    Trace("zipf 1.0, equal", "Zipf 1.0 over 20 models of one size, 10 fit", zipf(1.0), equal=True),
)


def scenario(trace: Trace, seed: int, *, policy: str, min_residency: float = 30.0, infinite: bool = False) -> Scenario:
    chance = random.Random(f"{trace.name} {seed}")
    asked = trace.make(chance)
    sizes = [EQUAL] * len(SIZES) if trace.equal else list(SIZES)
    # Equal sizes: two devices with room for five each. Otherwise: two devices of 80 GiB for about 300 GB of models.
    device = int(5.2 * EQUAL * 1e9) + GI if trace.equal else 80 * GI
    models = tuple(
        ModelSpec(
            f"model-{number:02}",
            int(size * 1e9),
            load=START + size * 1e9 / BANDWIDTH,
            download=0.05,
            sleep_after=1e6,
            stop_after=1e7,
        )
        for number, size in enumerate(sizes)
    )
    requests = tuple(RequestSpec(at, models[number].key, chance.expovariate(1 / SERVICE), 1e6) for at, number in asked)
    pool = Pool("default", policy=policy, min_residency=min_residency, hold_timeout=1e6, max_models_per_device=64)
    nodes = tuple(NodeSpec(f"n{number}", {"gpu": device * (50 if infinite else 1)}, shared_cache=True) for number in range(2))
    return Scenario(seed, nodes, models, requests, (), pool, SECONDS + 600.0, latencies=Latencies(watch=0.05, pod=0.5))
