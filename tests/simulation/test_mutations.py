"""Each rule that keeps an invariant, taken away, is missed: a simulation that finds nothing proves nothing."""

from __future__ import annotations

import pytest
from tests.simulation import mutations as broken

from corral.simulate.chance import scenario
from corral.simulate.named import frozen_leaders, never_idle
from corral.simulate.shrink import shortest
from corral.simulate.world import World

AIMED = {broken.skip_the_turn: never_idle, broken.trust_an_old_epoch: frozen_leaders}
MOST_SEEDS = 40


@pytest.mark.parametrize("mutation", broken.CAUGHT_BY, ids=lambda each: each.__name__)
def test_a_broken_rule_is_caught(mutation):
    make = AIMED.get(mutation, lambda seed: scenario(seed, until=100.0))
    for seed in range(MOST_SEEDS):
        with mutation() as mutate:
            result = World(make(seed), mutate).run()
        if result.failure is not None:
            assert result.failure.number in broken.CAUGHT_BY[mutation], str(result.failure)
            break
    else:
        pytest.fail(f"{MOST_SEEDS} seeds saw nothing")
    assert World(make(seed)).run().failure is None, "with the rule in place the same seed is fine"


def test_a_failure_is_made_small():
    with broken.evict_a_busy_one() as mutate:
        found = World(scenario(0, until=100.0), mutate).run()
        small = shortest(scenario(0, until=100.0), mutate, tries=200)
    assert found.failure is not None
    assert small.failure is not None
    assert small.failure.number == found.failure.number
    assert len(small.scenario.requests) < len(found.scenario.requests) / 2
