"""Eviction policies over the same traces: `python bench/policies.py [--seeds 10] [--write]`.

Every run is the real decision and the real gateway machine over simulated pods, in virtual time; only the policy differs. `--write` puts the tables
and the plot into docs/policies.md and docs/policies.svg.
"""

from __future__ import annotations

import argparse
import bisect
import json
import math
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))

from traces import BANDWIDTH, START, TRACES, Trace, scenario

from corral.domain import policy as policies
from corral.domain.model import DeviceKey, Model, Replica, ReplicaState
from corral.domain.policy_cost_aware import CostAware
from corral.domain.policy_lru import LeastRecentlyUsed
from corral.simulate.report import percentile
from corral.simulate.scenario import START as EPOCH
from corral.simulate.scenario import Scenario
from corral.simulate.world import World

FIRST_SEED = 1000  # none of those on which the constants of CostAware were chosen
DOCS = Path(__file__).parents[1] / "docs"
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # Student's t, by the number of seeds


class FirstInFirstOut(LeastRecentlyUsed):
    """The oldest load goes, however much it is used."""

    def worth(self, replica: Replica, model: Model | None, now: float) -> float:  # noqa: ARG002
        return replica.loaded_at or 0.0

    def least_price(self, last_use: float) -> float:  # noqa: ARG002
        return float("-inf")


class Belady(LeastRecentlyUsed):
    """Knows the trace: whoever is needed last goes. A bound where all are of one size, a heuristic elsewhere."""

    def __init__(self, scenario_: Scenario) -> None:
        self.times: dict[str, list[float]] = {}
        for request in scenario_.requests:
            self.times.setdefault(request.model, []).append(request.at)

    def worth(self, replica: Replica, model: Model | None, now: float) -> float:  # noqa: ARG002
        times = self.times.get(replica.model, [])
        at = bisect.bisect_right(times, now - EPOCH)
        return -(times[at] if at < len(times) else math.inf)

    def least_price(self, last_use: float) -> float:  # noqa: ARG002
        return float("-inf")


def run(name: str, trace: Trace, seed: int) -> dict[str, float]:
    chosen = "CostAware" if name.startswith("CostAware") else "LRU"
    made = scenario(trace, seed, policy=chosen, min_residency=0.0 if name.endswith("no minResidency") else 30.0, infinite=name == "infinite memory")
    table = dict(policies.POLICIES)
    if name == "FIFO":
        table["LRU"] = FirstInFirstOut()
    elif name == "Belady":
        table["LRU"] = Belady(made)
    with patch.object(policies, "POLICIES", table):
        world = World(made)
        world.watchdog.after_event = lambda: None  # what is checked here are figures; the invariants have tests of their own
        result = world.run()
    if result.failure is not None:
        raise SystemExit(f"{name}, {trace.name}, seed {seed}: {result.failure}")
    waits = result.waits
    if len(waits) != result.requests:
        raise SystemExit(f"{name}, {trace.name}, seed {seed}: {result.requests - len(waits)} requests were not answered")
    loads = sum(text.endswith(" is loaded") for _, text in result.history)
    return {
        "waited": sum(waits),
        "p50": percentile(waits, 0.5),
        "p95": percentile(waits, 0.95),
        "p99": percentile(waits, 0.99),
        "longest": max(waits),
        "loads": loads * 3600 / made.until,
        "warm": sum(wait < 0.25 for wait in waits) / len(waits),
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval."""
    half = T95.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.mean(values), half


NAMES = ("LRU", "LRU, no minResidency", "FIFO", "CostAware", "CostAware, no minResidency", "Belady", "infinite memory")


def measure(seeds: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for trace in TRACES:
        found[trace.name] = {name: [run(name, trace, FIRST_SEED + seed) for seed in range(seeds)] for name in NAMES}
        print("\n".join(table(trace, found[trace.name])), flush=True)
        print(flush=True)
    return found


def table(trace: Trace, rows: Mapping[str, list[dict[str, float]]]) -> list[str]:
    lines = [f"**{trace.name}**: {trace.what}", ""]
    lines.append("| policy | waited, s | against LRU | p50, s | p95, s | p99, s | longest, s | loads/h | warm |")
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    base = [each["waited"] for each in rows["LRU"]]
    for name, runs in rows.items():
        waited, half = interval([each["waited"] for each in runs])
        change, spread = interval([100 * (each["waited"] / other - 1) for each, other in zip(runs, base, strict=True)])
        mean = {key: statistics.mean(each[key] for each in runs) for key in runs[0]}
        against = "" if name == "LRU" else f"{change:+.0f} % ± {spread:.0f}"
        lines.append(
            f"| {name} | {waited:.0f} ± {half:.0f} | {against} | {mean['p50']:.2f} | {mean['p95']:.1f} | {mean['p99']:.1f} |"
            f" {mean['longest']:.0f} | {mean['loads']:.0f} | {100 * mean['warm']:.0f} % |"
        )
    return lines


# Small cases, where the optimum can be found.


def optimum(asked: Sequence[int], sizes: Sequence[float], room: float) -> float:
    """Least seconds of loading that any policy can reach which knows the future; dynamic programming over sets of residents."""
    cost = [START + size * 1e9 / BANDWIDTH for size in sizes]
    best: dict[frozenset[int], float] = {frozenset(): 0.0}
    for number in asked:
        after: dict[frozenset[int], float] = {}
        for there, paid in best.items():
            if number in there:
                options, price = [there], paid
            else:
                options, price = _kept(there, sizes, room - sizes[number]), paid + cost[number]
            for kept in options:
                now = kept | {number}
                if price < after.get(now, math.inf):
                    after[now] = price
        best = after
    return min(best.values())


def _kept(there: frozenset[int], sizes: Sequence[float], room: float) -> list[frozenset[int]]:
    """The largest sets that may stay: evicting more than is needed never helps."""
    fitting: list[frozenset[int]] = []
    for count in range(len(there), -1, -1):
        for chosen in combinations(sorted(there), count):
            kept = frozenset(chosen)
            if sum(sizes[each] for each in kept) <= room and not any(kept < other for other in fitting):
                fitting.append(kept)
    return fitting


def paging(asked: Sequence[int], sizes: Sequence[float], room: float, name: str) -> float:
    """The same without a cluster: one device, one request after the other, ten seconds apart."""
    cost = [START + size * 1e9 / BANDWIDTH for size in sizes]
    used: dict[int, float] = {}
    loaded: dict[int, float] = {}
    served: dict[int, int] = {}
    paid = 0.0
    for step, number in enumerate(asked):
        now = 10.0 * step
        if number not in used:
            while sum(sizes[each] for each in used) + sizes[number] > room:
                if name == "LRU":
                    victim = min(used, key=lambda each: used[each])
                elif name == "FIFO":
                    victim = min(used, key=lambda each: loaded[each])
                else:
                    victim = min(
                        used, key=lambda each: CostAware().worth(_as_replica(used[each], loaded[each], served[each], sizes[each]), None, now)
                    )
                del used[victim]
            paid += cost[number]
            loaded[number], served[number] = now, 0
        used[number] = now
        served[number] += 1
    return paid


def _as_replica(used: float, loaded: float, served: int, size: float) -> Replica:
    key = DeviceKey("n", "d")
    return Replica("r", "n", "m", "", (key,), ReplicaState.LOADED, committed={key: int(size * 1e9)}, last_used=used, loaded_at=loaded, served=served)


def small_cases(seeds: int) -> list[str]:
    sizes = (2.5, 4.9, 8.5, 14.0, 20.0, 24.0, 32.0, 42.5)
    lines = ["| exponent | LRU | FIFO | CostAware |", "|---|---:|---:|---:|"]
    for alpha in (0.8, 1.1, 1.4):
        ratios: dict[str, list[float]] = {"LRU": [], "FIFO": [], "CostAware": []}
        for seed in range(seeds):
            chance = random.Random(f"small {alpha} {seed}")
            weights = [1 / rank**alpha for rank in range(1, len(sizes) + 1)]
            chance.shuffle(weights)
            asked = chance.choices(range(len(sizes)), weights, k=200)
            least = optimum(asked, sizes, 72.0)
            for name, found in ratios.items():
                found.append(paging(asked, sizes, 72.0, name) / least)
        cells = " | ".join("{:.2f} ± {:.2f}".format(*interval(found)) for found in ratios.values())
        lines.append(f"| {alpha} | {cells} |")
    return lines


# Output.

COLOURS = {
    "LRU": "#3b6fb6",
    "LRU, no minResidency": "#8fb3dd",
    "FIFO": "#b0b0b0",
    "CostAware": "#d9822b",
    "CostAware, no minResidency": "#f0b779",
    "Belady": "#5a9e5a",
    "infinite memory": "#dddddd",
}


def plot(found: Mapping[str, Mapping[str, list[dict[str, float]]]]) -> str:
    """Request-seconds waited, LRU = 1, with the 95 % interval of the ratio."""
    width, height, left, top = 980, 380, 60, 30
    group = (width - left - 20) / len(found)
    bar = group * 0.8 / len(NAMES)
    most = 0.0
    for rows in found.values():
        for runs in rows.values():
            most = max(most, statistics.mean(each["waited"] / other["waited"] for each, other in zip(runs, rows["LRU"], strict=True)))
    scale = (height - top - 70) / max(1.2, most * 1.1)
    base = height - 70
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    parts.append(f'<text x="{left}" y="16" font-size="13">Request-seconds waited, LRU = 1 (lower is better; lines: 95 % interval)</text>')
    for tick in [0.25 * step for step in range(int(max(1.2, most * 1.1) / 0.25) + 1)]:
        y = base - tick * scale
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="{"#888" if tick == 1 else "#eee"}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for at, (trace, rows) in enumerate(found.items()):
        x = left + at * group + group * 0.1
        for number, name in enumerate(NAMES):
            ratios = [each["waited"] / other["waited"] for each, other in zip(rows[name], rows["LRU"], strict=True)]
            mean, half = interval(ratios)
            px = x + number * bar
            parts.append(
                f'<rect x="{px:.1f}" y="{base - mean * scale:.1f}" width="{bar * 0.9:.1f}" height="{mean * scale:.1f}" fill="{COLOURS[name]}"/>'
            )
            middle = px + bar * 0.45
            low, high = base - max(0.0, mean - half) * scale, base - (mean + half) * scale
            parts.append(f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="#333"/>')
        parts.append(f'<text x="{x + group * 0.4:.1f}" y="{base + 16}" text-anchor="middle">{trace}</text>')
    for number, name in enumerate(NAMES):
        x = left + number * 128
        parts.append(
            f'<rect x="{x}" y="{height - 28}" width="10" height="10" fill="{COLOURS[name]}"/><text x="{x + 14}" y="{height - 19}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def write(found: Mapping[str, Mapping[str, list[dict[str, float]]]], small: Sequence[str], seeds: int) -> None:
    page = DOCS / "policies.md"
    text = page.read_text()
    tables = "\n\n".join("\n".join(table(trace, found[trace.name])) for trace in TRACES)
    for name, body in (
        ("tables", tables),
        ("small", "\n".join(small)),
        ("seeds", f"Ten seeds make each figure: {seeds} here." if seeds != 10 else ""),
    ):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin in text:
            head, _, rest = text.partition(begin)
            text = head + begin + "\n" + body + "\n" + end + rest.partition(end)[2]
    page.write_text(text)
    (DOCS / "policies.svg").write_text(plot(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--write", action="store_true", help="put tables and plot into docs/")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every run there too")
    options = parser.parse_args()
    small = small_cases(options.seeds)
    print("\n".join(["Load seconds against the optimum, 8 models, 200 requests:", *small, ""]), flush=True)
    found = measure(options.seeds)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    if options.write:
        write(found, small, options.seeds)


if __name__ == "__main__":
    main()
