"""The index leaves out nothing that matters: at every decision of some histories, looking at every model from a fresh index gives the same plan."""

from __future__ import annotations

import pytest
from tests.domain.builders import rebuilt

from corral.domain.decide import decide
from corral.domain.index import Index
from corral.domain.snapshot import State
from corral.simulate.chance import scenario
from corral.simulate.world import World


class Everything(Index):
    """Looks at all models, always."""

    everybody: tuple[str, ...] = ()

    def looks(self, now):
        return sorted(self.everybody)


def looking_at_all(snapshot) -> State:
    state = rebuilt(snapshot, State(index=Everything()))
    state.index.everybody = tuple({*snapshot.models, *snapshot.by_model})
    return state


@pytest.mark.parametrize("seed", range(12))
def test_a_narrow_look_decides_what_a_full_look_decides(seed):
    world = World(scenario(seed, until=60.0))
    looked = 0

    def planned(snapshot, plan, now):
        nonlocal looked
        looked += 1
        if looked % 3:
            return
        fresh = looking_at_all(snapshot)
        full = decide(fresh.snapshot(), now)
        assert full.actions == plan.actions
        assert full.turns == plan.turns
        for key, arena in fresh.index.arenas.items():
            assert snapshot.index.arenas[key] == arena
        assert {key: verdict for key, verdict in full.verdicts.items() if key in plan.verdicts} == plan.verdicts

    world.watchdog.planned = planned
    world.run()
    assert looked > 20
