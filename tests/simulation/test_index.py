"""The index leaves out nothing that matters: at every decision of some histories, looking at every model from a fresh index gives the same plan."""

from __future__ import annotations

import pytest

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


def rebuilt(snapshot) -> State:
    state = State(index=Everything())
    for pool in snapshot.pools.values():
        state.put_pool(pool)
    for node in snapshot.nodes.values():
        state.put_node(node)
    for device in snapshot.devices.values():
        state.put_device(device)
    for model in snapshot.models.values():
        state.put_model(model)
    for replica in snapshot.replicas.values():
        state.put_replica(replica)
    for key, demand in snapshot.demand.items():
        state.put_demand(key, demand)
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
        fresh = rebuilt(snapshot)
        full = decide(fresh.snapshot(), now)
        assert full.actions == plan.actions
        assert full.turns == plan.turns
        for key, arena in fresh.index.arenas.items():
            assert snapshot.index.arenas[key] == arena
        assert {key: verdict for key, verdict in full.verdicts.items() if key in plan.verdicts} == plan.verdicts

    world.watchdog.planned = planned
    world.run()
    assert looked > 20
