"""The shortest history that still breaks an invariant: faults, requests and models are left out as long as the same invariant breaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from corral.simulate.scenario import Scenario
from corral.simulate.world import Result, World

T = TypeVar("T")
Mutate = Callable[[World], None]


def shortest(scenario: Scenario, mutate: Mutate | None = None, *, tries: int = 800) -> Result:
    """Runs the scenario; when it fails, runs ever smaller ones. The answer is the smallest that fails in the same way."""
    return _Shrinker(mutate, tries).shrink(scenario)


class _Shrinker:
    def __init__(self, mutate: Mutate | None, tries: int) -> None:
        self.mutate = mutate
        self.left = tries

    def run(self, scenario: Scenario) -> Result:
        self.left -= 1
        return World(scenario, self.mutate).run()

    def shrink(self, scenario: Scenario) -> Result:
        best = self.run(scenario)
        if best.failure is None:
            return best
        number = best.failure.number
        best = self._cut_off(best)

        def fails(candidate: Scenario) -> bool:
            nonlocal best
            result = self.run(candidate)
            if result.failure is None or result.failure.number != number:
                return False
            best = self._cut_off(result)
            return True

        again = True
        while again and self.left > 0:
            before = len(best.scenario.requests), len(best.scenario.faults), len(best.scenario.models)
            self._without(best.scenario.models, lambda kept: self._only(best.scenario, kept, fails))
            self._without(best.scenario.faults, lambda kept: fails(replace(best.scenario, faults=tuple(kept))))
            self._without(best.scenario.requests, lambda kept: fails(replace(best.scenario, requests=tuple(kept))))
            again = before != (len(best.scenario.requests), len(best.scenario.faults), len(best.scenario.models))
        return best

    @staticmethod
    def _cut_off(result: Result) -> Result:
        """Nothing behind the failure matters."""
        if result.failure is None:
            return result
        end = result.ended_at
        scenario = result.scenario
        requests = tuple(each for each in scenario.requests if each.at <= end)
        faults = tuple(each for each in scenario.faults if each.at <= end)
        return replace(result, scenario=replace(scenario, requests=requests, faults=faults, until=end + 0.001))

    @staticmethod
    def _only(scenario: Scenario, models: Sequence[object], fails: Callable[[Scenario], bool]) -> bool:
        kept = tuple(each for each in scenario.models if each in models)
        keys = {each.key for each in kept}
        gone = {each.key for each in scenario.models} - keys
        requests = tuple(each for each in scenario.requests if each.model in keys)
        faults = tuple(each for each in scenario.faults if each.target not in gone)
        return bool(kept) and fails(replace(scenario, models=kept, requests=requests, faults=faults))

    def _without(self, items: Sequence[T], fails: Callable[[list[T]], bool]) -> None:
        """Leave out halves, then quarters, then single ones, whatever is not needed for the failure."""
        kept = list(items)
        size = max(1, len(kept) // 2)
        while kept and self.left > 0:
            at = 0
            while at < len(kept) and self.left > 0:
                fewer = kept[:at] + kept[at + size :]
                if fails(fewer):
                    kept = fewer
                else:
                    at += size
            if size == 1:
                return
            size = max(1, size // 2)
