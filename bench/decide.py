"""How long one decision takes, by the size of the cluster: `python bench/decide.py [--nodes 1000] [--rounds 15] [--json FILE]`.

A cluster of N nodes with 8 devices each, 10 models and 4 resident replicas per node, and 100 models that wait. Half of the devices are full of
foreign pods, the other half hold one replica each, three in ten of them busy; so waiters have to evict. Ten in a hundred waiters are less important
than everybody else and can only wait. Three figures: a decision in which all the waiting is new, one that starts all the evictions, and one after a
single replica changed (with what that change costs). The table ends with the exponent of the growth.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import statistics
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

from corral.domain.decide import decide
from corral.domain.model import Demand, Device, DeviceKey, DeviceKind, Footprint, Model, Node, Pool, Replica, ReplicaState
from corral.domain.plan import Create, Delete, Evict, Load, Plan
from corral.domain.snapshot import State

GI = 1 << 30
NOW = 1_750_000_000.0
WAITING = 100


def build(nodes: int, seed: int = 1) -> State:
    chance = random.Random(seed)
    state = State()
    state.put_pool(Pool("default"))
    open_devices = []
    for number in range(nodes):
        name = f"node-{number:04}"
        state.put_node(Node(name, "default"))
        for index in range(8):
            key = DeviceKey(name, f"GPU-{number:04}-{index}")
            capacity = 24 * GI if index % 2 else 2 * GI
            state.put_device(Device(key, "default", DeviceKind.GPU, capacity, GI, largest=24 * GI))
            if index % 2:
                open_devices.append(key)
    chance.shuffle(open_devices)
    for number in range(10 * nodes):
        size = int(chance.choice((0.5, 2, 4, 8, 12, 16, 20)) * GI)
        waits = 4 * nodes <= number < 4 * nodes + WAITING
        state.put_model(
            Model(
                key=f"models/model-{number:05}",
                namespace="models",
                revision="r1",
                footprint=Footprint(weights=max(size, 8 * GI) if waits else size, kv=0, compute=0, file_bytes=size, digest=str(number)),
                priority=-1 if waits and number % 10 == 0 else 0,
                created=NOW - 1e6 + number,
                sleep_after=86_400.0,
            )
        )
    for number, key in enumerate(open_devices):
        model = state.models[f"models/model-{number:05}"]
        need = 16 * GI
        state.put_replica(
            Replica(
                name=f"model-{number:05}-0",
                namespace="models",
                model=model.key,
                revision="r1",
                devices=(key,),
                state=ReplicaState.LOADED,
                created=NOW - 5000,
                committed={key: need},
                admitting=True,
                in_flight=1 if chance.random() < 0.3 else 0,
                served=3,
                last_used=NOW - chance.uniform(60, 3000),
                loaded_at=NOW - 4000,
            )
        )
    for number in range(4 * nodes, 4 * nodes + WAITING):
        state.put_demand(f"models/model-{number:05}", Demand(waiting=1, oldest=NOW - chance.uniform(0, 5)))
    return state


def carry_out(state: State, plan: Plan) -> None:
    """Lay the orders of a plan over the state, as the control loop does."""
    for number, action in enumerate(plan.actions):
        if isinstance(action, Create):
            model = state.models[action.model]
            state.put_replica(
                Replica(
                    f"{model.key.rpartition('/')[2]}-n{number}",
                    "models",
                    model.key,
                    "r1",
                    action.devices,
                    ReplicaState.PENDING,
                    created=NOW,
                    ordered="Create",
                )
            )
        elif isinstance(action, Load | Evict | Delete):
            replica = state.replicas[action.replica]
            state.put_replica(replace(replica, ordered=type(action).__name__, evicting_for=getattr(action, "evicting_for", "")))
    for key, at in plan.turns.items():
        state.put_replica(replace(state.replicas[key], turn_started=at))


def files_arrive(state: State) -> None:
    for replica in list(state.replicas.values()):
        if replica.state is ReplicaState.PENDING:
            state.put_replica(replace(replica, state=ReplicaState.SLEEPING, ordered=""))


def timed(state: State, now: float) -> tuple[float, Plan]:
    started = time.process_time()
    plan = decide(state.snapshot(), now)
    return (time.process_time() - started) * 1000, plan


def measure(nodes: int, rounds: int) -> tuple[dict[str, float], Counter[str]]:
    state = build(nodes)
    decide(state.snapshot(), NOW)
    gc.collect()
    gc.freeze()  # as the operator does once its caches are filled: collecting what stays would be timed as a part of some decision
    first = [timed(state, NOW)[0] for _ in range(rounds)]
    plan = decide(state.snapshot(), NOW)
    kinds = Counter(type(action).__name__ for action in plan.actions)
    carry_out(state, plan)
    files_arrive(state)
    evicting = [timed(state, NOW)[0] for _ in range(rounds)]
    plan = decide(state.snapshot(), NOW)
    kinds += Counter(type(action).__name__ for action in plan.actions)
    kinds += Counter(verdict.explanation.reason for verdict in plan.verdicts.values())
    carry_out(state, plan)
    chance = random.Random(2)
    resident = [key for key, replica in state.replicas.items() if replica.state is ReplicaState.LOADED and not replica.ordered]
    changed = []
    for _ in range(rounds * 4):
        key = chance.choice(resident)
        replica = state.replicas[key]
        started = time.process_time()
        state.put_replica(replace(replica, in_flight=0 if replica.in_flight else 1, last_used=NOW))
        decide(state.snapshot(), NOW)
        changed.append((time.process_time() - started) * 1000)
    figures = {"all new": statistics.median(first), "evicting": statistics.median(evicting), "one change": statistics.median(changed)}
    return figures, kinds


def exponent(sizes: list[int], times: list[float]) -> float:
    xs, ys = [math.log(size) for size in sizes], [math.log(at) for at in times]
    mx, my = statistics.mean(xs), statistics.mean(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    sizes = [max(25, options.nodes // part) for part in (8, 4, 2, 1)]
    rows = []
    print(f"{'nodes':>6} {'devices':>8} {'models':>7} {'resident':>9} {'all new':>9} {'evicting':>9} {'one change':>11}   (ms of CPU time, median)")
    for nodes in sizes:
        figures, kinds = measure(nodes, options.rounds)
        rows.append(figures)
        counts = ", ".join(f"{name} {count}" for name, count in sorted(kinds.items()))
        times = f"{figures['all new']:>9.2f} {figures['evicting']:>9.2f} {figures['one change']:>11.2f}"
        print(f"{nodes:>6} {8 * nodes:>8} {10 * nodes:>7} {4 * nodes:>9} {times}   {counts}")
    exponents = {name: exponent(sizes, [row[name] for row in rows]) for name in rows[0]}
    print(f"exponent of the growth: {', '.join(f'{name} {found:.2f}' for name, found in exponents.items())} (1 is linear)")
    tracemalloc.start()
    state = build(options.nodes)
    state.snapshot()
    memory = tracemalloc.get_traced_memory()[0] / (1 << 20)
    print(f"memory of the snapshot: {memory:.0f} MiB")
    if options.json:
        table = [{"nodes": nodes} | row for nodes, row in zip(sizes, rows, strict=True)]
        options.json.write_text(json.dumps({"milliseconds": table, "exponents": exponents, "snapshot_mib": memory}, indent=1))


if __name__ == "__main__":
    main()
