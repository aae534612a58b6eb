"""What people read of a simulation: a summary of many runs, and the history of one that failed."""

from __future__ import annotations

from collections.abc import Iterator

from corral.simulate.world import Result


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def summary(result: Result) -> Iterator[str]:
    outcomes = ", ".join(f"{name} {count}" for name, count in sorted(result.outcomes.items(), key=lambda each: -each[1]))
    yield f"{result.requests} requests: {outcomes or 'none'}"
    if result.waits:
        waits = [percentile(result.waits, share) for share in (0.5, 0.95, 0.99)]
        yield f"time until a replica took them: p50 {waits[0]:.2f} s, p95 {waits[1]:.2f} s, p99 {waits[2]:.2f} s"
    yield f"{result.evictions} evictions for others, {result.turns} of them ending a turn; {result.decisions} decisions, {result.events} events"
    yield f"the six invariants held after each of {result.checks} events" if result.failure is None else f"BROKEN: {result.failure}"


def timeline(result: Result, last: int | None = None) -> Iterator[str]:
    history = result.history if last is None else result.history[-last:]
    if last is not None and len(result.history) > last:
        yield f"   ... {len(result.history) - last} earlier lines left out"
    for at, text in history:
        yield f"{at:9.3f}  {text}"


def failure(result: Result) -> Iterator[str]:
    """The seed, what broke, what is left of the scenario, and its history."""
    scenario = result.scenario
    yield f"seed {scenario.seed}: {result.failure}"
    yield f"shortest history found: {len(scenario.models)} models, {len(scenario.requests)} requests, {len(scenario.faults)} faults"
    for node in scenario.nodes:
        yield f"  {node}"
    yield f"  {scenario.pool}"
    for group in (scenario.models, scenario.requests, scenario.faults):
        for each in group:
            yield f"  {each}"
    yield from timeline(result, 80)
