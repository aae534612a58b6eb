"""A storm of placements in which the operator is killed again and again, at moments that nobody chose: every request is answered, no byte is
committed twice, nothing is left behind.

`CORRAL_E2E_KILLS` says how often (3, so that a run stays short), `CORRAL_E2E_SEED` repeats the moments of a run.
"""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Self

from e2e.support.ask import ask
from e2e.support.kubectl import until
from e2e.support.ledger import Witness
from e2e.support.world import MODELS, SYSTEM, World, deployment

KILLS = int(os.environ.get("CORRAL_E2E_KILLS", "3"))
SEED = int(os.environ.get("CORRAL_E2E_SEED", str(random.SystemRandom().randrange(1 << 16))))
ANIMALS = ("alpaca", "badger", "camel")
HERD = tuple(f"{animal}-{number}" for number in (1, 2) for animal in ANIMALS)  # six models of one size, room for two


class Storm:
    """Clients that each ask one model after the other, in an order of their own, until told to stop."""

    def __init__(self, world: World, chance: random.Random, clients: int) -> None:
        self._world = world
        self._stop = threading.Event()
        self.answered = 0
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(random.Random(chance.random()),), daemon=True) for _ in range(clients)]

    def _run(self, chance: random.Random) -> None:
        while not self._stop.is_set():
            name = chance.choice(HERD)
            try:
                said = ask(self._world, name)
            except Exception as error:
                self.failed.append(f"{name}: {error}")
                return
            if said != f"I am {name.partition('-')[0]}.":
                self.failed.append(f"{name} said {said!r}")
            self.answered += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(180)
            if thread.is_alive():
                self.failed.append("a request is still not answered three minutes after the storm")


def leader(world: World) -> str:
    """Who leads, and for the how manieth time the lead changed; empty: nobody."""
    spec = world.kubectl.list("leases", SYSTEM)[0]["spec"]
    return f"{spec['holderIdentity']} {spec.get('leaseTransitions')}" if spec.get("holderIdentity") else ""


def test_a_storm_in_which_the_operator_dies_again_and_again(world: World, witness: Witness) -> None:
    print(f"CORRAL_E2E_SEED={SEED}")
    chance = random.Random(SEED)
    world.apply(*(deployment(name, world.sources[name.partition("-")[0]]) for name in HERD))
    world.wait_ready(*HERD)
    with Storm(world, chance, clients=4) as storm:
        for number in range(KILLS):
            seen = storm.answered
            until(f"the storm goes on before kill {number + 1}", lambda seen=seen: storm.failed or storm.answered > seen, 150)
            time.sleep(chance.uniform(0, 4))  # the moment that nobody chose
            former = leader(world)
            world.kill_operator()
            until(f"a new leader after kill {number + 1}", lambda former=former: leader(world) not in ("", former), 90)
            assert not storm.failed, storm.failed
    assert not storm.failed, storm.failed
    witness.assert_clean()
    print(f"{storm.answered} requests answered over {KILLS} kills of the operator")
    for name in HERD:  # whoever leads now has a right picture
        assert ask(world, name) == f"I am {name.partition('-')[0]}."
    until("one pod per model is left when nothing moves any more", lambda: all(len(world.pods(name)) <= 1 for name in HERD), 60)
    world.remove_models()
    until("nothing of theirs is left", lambda: not left(world), 60)


def left(world: World) -> list[str]:
    kinds = ("pods", "jobs", "configmaps", "secrets", "resourceclaims")
    return [
        f"{kind}/{each['metadata']['name']}" for kind in kinds for each in world.kubectl.list(kind, MODELS, "app.kubernetes.io/managed-by=corral")
    ]
