"""A random scenario from a seed: small clusters under pressure, with traffic of several shapes and faults at any time."""

from __future__ import annotations

import random

from corral.domain.model import Pool
from corral.simulate.scenario import GI, MI, Fault, Latencies, ModelSpec, NodeSpec, RequestSpec, Scenario

FAULTS = (
    ("operator-crash", 3.0),
    ("operator-freeze", 3.0),
    ("gateway-crash", 1.0),
    ("node-partition", 0.5),
    ("node-lost", 0.2),
    ("pod-crash", 1.0),
    ("pod-deleted", 0.5),
    ("engine-crash", 1.0),
    ("supervisor-silent", 1.0),
    ("respec", 1.0),
    ("delete-model", 0.3),
    ("create-model", 0.3),
    ("cordon", 0.3),
    ("slow-watch", 1.5),
    ("wish-load", 0.5),
    ("wish-unload", 0.5),
)


def scenario(seed: int, *, faults: bool = True, until: float = 300.0, tail: float = 200.0) -> Scenario:
    """`until`: seconds of traffic and faults; `tail`: what comes after them."""
    chance = random.Random(f"scenario {seed}")
    nodes = _nodes(chance)
    models = _models(chance, nodes, seed)
    pool = Pool(
        "default",
        max_models_per_device=chance.choice((1, 2, 16, 16)),
        policy=chance.choice(("LRU", "LRU", "CostAware")),
        min_residency=chance.choice((0.0, 2.0, 5.0, 10.0)),
        drain_timeout=chance.choice((3.0, 10.0)),
        max_wait=chance.choice((3.0, 10.0, 20.0)),
        turn=chance.choice((5.0, 10.0, 20.0)),
        hold_timeout=chance.choice((30.0, 120.0, 400.0)),
    )
    requests = _requests(chance, models, until)
    struck = _faults(chance, nodes, models, until) if faults and chance.random() < 0.8 else ()
    slow = chance.choice((1.0, 1.0, 1.0, 15.0))
    latencies = Latencies(watch=chance.choice((0.05, 0.3, 1.5)), call=0.02 * slow, write=0.05 * slow, pod=chance.choice((0.3, 2.0)))
    return Scenario(
        seed,
        nodes,
        models,
        requests,
        struck,
        pool,
        until + tail,
        gateways=chance.choice((1, 1, 2, 3)),
        latencies=latencies,
        lease=chance.choice((4.0, 8.0)),
    )


def _nodes(chance: random.Random) -> tuple[NodeSpec, ...]:
    host = chance.random() < 0.35
    shared = chance.random() < 0.5
    slots = chance.choice((110, 110, 110, 110, 4))
    nodes = []
    for number in range(chance.choice((1, 1, 2, 3))):
        if host:
            devices = {"host": chance.choice((8, 12, 16)) * GI}
        else:
            devices = {f"gpu{index}": chance.choice((8, 16, 24)) * GI for index in range(chance.choice((1, 1, 2)))}
        nodes.append(NodeSpec(f"n{number}", devices, margin=GI, shared_cache=shared, pod_slots=slots))
    return tuple(nodes)


def _models(chance: random.Random, nodes: tuple[NodeSpec, ...], seed: int) -> tuple[ModelSpec, ...]:
    largest = max(max(node.devices.values()) for node in nodes) - GI
    spread = chance.random() < 0.15
    wrong = chance.random() < 0.25
    claims = chance.random() < 0.1
    ranks = chance.random() < 0.3
    models = []
    for number in range(chance.choice((2, 3, 4, 6, 8))):
        size = int(largest * chance.choice((0.2, 0.35, 0.6, 0.6, 0.9, 0.97)))
        huge = chance.random() < 0.06
        models.append(
            ModelSpec(
                f"model{number}",
                size=int(largest * 1.3) if huge or (spread and chance.random() < 0.3) else size,
                estimated=int(size * chance.choice((0.85, 0.97, 1.1))) if wrong and not huge else 0,
                layers=24 if spread else 0,
                max_devices=2 if spread else 1,
                namespace=chance.choice(("m", "x")) if claims else "m",
                namespace_claims=claims,
                priority=chance.choice((0, 0, 5)) if ranks else 0,
                pinned=chance.random() < 0.05,
                min_replicas=1 if chance.random() < 0.1 else 0,
                max_replicas=2 if chance.random() < 0.15 else 1,
                target_in_flight=chance.choice((2, 8)),
                sleep_after=chance.choice((10.0, 60.0, 300.0)),
                stop_after=chance.choice((60.0, 600.0)),
                load=chance.choice((0.3, 2.0, 8.0)),
                download=chance.choice((0.2, 3.0, 20.0)),
                residue=chance.choice((32, 128, 400)) * MI,
                load_failures=0.3 if chance.random() < 0.08 else 0.0,
                created=0.0 if chance.random() < 0.9 else chance.uniform(1, 60),
            )
        )
    del seed
    return tuple(models)


def _requests(chance: random.Random, models: tuple[ModelSpec, ...], until: float) -> tuple[RequestSpec, ...]:
    """Alternating, bursts, steady streams, and clients that lose patience."""
    requests: list[RequestSpec] = []
    for model in models:
        shape = chance.choice(("rare", "steady", "burst", "stream"))
        service = chance.choice((0.2, 1.0, 4.0))
        patience = chance.choice((600.0, 600.0, 15.0))
        retry = chance.random() < 0.7
        if shape == "stream":
            # Never a quiet moment: only a turn can end it.
            start, end = chance.uniform(1, until / 2), until
            at = start
            while at < end and len(requests) < 600:
                requests.append(RequestSpec(at, model.key, chance.uniform(2, 6), patience, retry))
                at += chance.uniform(1.0, 2.5)
        elif shape == "burst":
            for _ in range(chance.randint(1, 5)):
                at = chance.uniform(1, until)
                requests.extend(RequestSpec(at + chance.random(), model.key, service, patience, retry) for _ in range(chance.randint(1, 12)))
        else:
            mean = 30.0 if shape == "rare" else 6.0
            at = chance.expovariate(1 / mean)
            while at < until:
                requests.append(RequestSpec(at, model.key, chance.expovariate(1 / service), patience, retry))
                at += chance.expovariate(1 / mean)
    return tuple(sorted(requests, key=lambda each: (each.at, each.model)))


def _faults(chance: random.Random, nodes: tuple[NodeSpec, ...], models: tuple[ModelSpec, ...], until: float) -> tuple[Fault, ...]:
    kinds, weights = zip(*FAULTS, strict=True)
    faults = []
    for _ in range(chance.choice((1, 2, 4, 8))):
        kind = chance.choices(kinds, weights)[0]
        target = ""
        if kind in ("node-partition", "node-lost", "cordon"):
            target = chance.choice(nodes).name
            if kind == "node-lost" and len(nodes) == 1:
                continue
        elif kind in ("respec", "delete-model", "create-model", "wish-load", "wish-unload"):
            target = chance.choice(models).key
        elif kind in ("pod-crash", "pod-deleted", "engine-crash", "supervisor-silent"):
            target = str(chance.randint(0, 50))
        faults.append(Fault(chance.uniform(1, until), kind, target, chance.choice((0.5, 2.0, 10.0, 25.0))))
    return tuple(sorted(faults, key=lambda each: each.at))
