"""Many random scenarios: `python -m corral.simulate.seeds --seeds 500`. Prints a summary, or the shortest history of the first failure."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from corral.simulate import named
from corral.simulate.chance import scenario
from corral.simulate.report import failure
from corral.simulate.scenario import Scenario
from corral.simulate.shrink import shortest
from corral.simulate.world import Result, World

AIMED: Sequence[Callable[[int], Scenario]] = (named.never_idle, named.both_busy, named.frozen_leaders)


def scenarios(first: int, count: int, *, until: float, tail: float = 200.0) -> Iterator[Scenario]:
    """Random ones, and every tenth aims at one rule."""
    for seed in range(first, first + count):
        yield AIMED[seed // 10 % len(AIMED)](seed) if seed % 10 == 9 else scenario(seed, until=until, tail=tail)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many scenarios (default 500)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--until", type=float, default=300.0, help="seconds of traffic in each (default 300)")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so many minutes, whatever --seeds says")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    totals = {"runs": 0, "events": 0, "requests": 0, "answered": 0, "evictions": 0, "turns": 0}
    code = 0
    count = options.seeds if not options.minutes else 1 << 40
    for each in scenarios(options.first, count, until=options.until):
        if options.minutes and time.monotonic() - started > options.minutes * 60:
            break
        result = World(each).run()
        _add(totals, result)
        if result.failure is not None:
            print(f"seed {each.seed} broke an invariant; looking for a shorter history of the same", flush=True)  # noqa: T201
            print("\n".join(failure(shortest(each))))  # noqa: T201 - this is a command
            code = 1
            break
    told = ", ".join(f"{value} {name}" for name, value in totals.items())
    print(f"{told}, {time.monotonic() - started:.0f} s; {'an invariant BROKE' if code else 'no invariant broken'}")  # noqa: T201
    return code


def _add(totals: dict[str, int], result: Result) -> None:
    totals["runs"] += 1
    totals["events"] += result.events
    totals["requests"] += result.requests
    totals["answered"] += result.answered
    totals["evictions"] += result.evictions
    totals["turns"] += result.turns


if __name__ == "__main__":
    sys.exit(main())
