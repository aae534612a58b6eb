"""Clients that never stop asking, and an operator that is killed at moments that nobody chose.

`CORRAL_E2E_KILLS` says how often (3, so that a run stays short), `CORRAL_E2E_SEED` repeats the moments of a run.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping
from typing import Self

from e2e.support.ask import ask
from e2e.support.kubectl import until
from e2e.support.world import SYSTEM, World

KILLS = int(os.environ.get("CORRAL_E2E_KILLS", "3"))
SEED = int(os.environ.get("CORRAL_E2E_SEED", str(random.SystemRandom().randrange(1 << 16))))


class Storm:
    """Clients that each ask one model after the other, in an order of their own, until told to stop; `herd`: what each model says."""

    def __init__(self, world: World, herd: Mapping[str, str], chance: random.Random, clients: int) -> None:
        self._world = world
        self._herd = herd
        self._stop = threading.Event()
        self.answered = 0
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(random.Random(chance.random()),), daemon=True) for _ in range(clients)]

    def _run(self, chance: random.Random) -> None:
        while not self._stop.is_set():
            name = chance.choice(list(self._herd))
            try:
                said = ask(self._world, name)
            except Exception as error:
                self.failed.append(f"{name}: {error}")
                return
            if said != self._herd[name]:
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


def rage(world: World, herd: Mapping[str, str], clients: int) -> None:
    """A storm over these models with `KILLS` kills of the operator; no request may fail."""
    print(f"CORRAL_E2E_SEED={SEED}")
    chance = random.Random(SEED)
    with Storm(world, herd, chance, clients) as storm:
        for number in range(KILLS):
            seen = storm.answered
            until(f"the storm goes on before kill {number + 1}", lambda seen=seen: storm.failed or storm.answered > seen, 150)
            time.sleep(chance.uniform(0, 4))  # the moment that nobody chose
            former = leader(world)
            world.kill_operator()
            until(f"a new leader after kill {number + 1}", lambda former=former: leader(world) not in ("", former), 90)
            assert not storm.failed, storm.failed
    assert not storm.failed, storm.failed
    print(f"{storm.answered} requests answered over {KILLS} kills of the operator")


def left(world: World, namespace: str) -> list[str]:
    """What the operator has made and not taken away."""
    kinds = ("pods", "jobs", "configmaps", "secrets", "resourceclaims")
    return [
        f"{kind}/{each['metadata']['name']}" for kind in kinds for each in world.kubectl.list(kind, namespace, "app.kubernetes.io/managed-by=corral")
    ]
