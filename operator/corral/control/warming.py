"""Keeps files of likely next models in the page cache of their nodes: the sleeping replicas that were used last, as many as the pool says.

Which model somebody will ask for next is not known; what was used last is the best guess that the eviction makes, too. It only ever asks, never
waits for an answer to matter, and decides nothing about where models run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from corral.control.pods import Pod
from corral.control.store import Store
from corral.control.supervisors import Rejected, Supervisors, Unreachable
from corral.domain.model import Replica, ReplicaState
from corral.kube.ports import NotLeader

log = logging.getLogger(__name__)

EVERY = 15.0
AGAIN = 300.0
"""Other programs push pages out; a file that is there still costs nothing to ask for."""


class Warming:
    def __init__(self, store: Store, supervisors: Supervisors, clock: Callable[[], float]) -> None:
        self._store = store
        self._supervisors = supervisors
        self._clock = clock
        self._asked: dict[str, float] = {}  # by the pod's uid

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.round()
            except NotLeader:
                log.debug("not leading: nothing is warmed")

    async def round(self) -> None:
        """Ask those that are due, one after the other: disks like it so."""
        now = self._clock()
        chosen = {pod.record.uid: pod for pod in self._chosen()}
        self._asked = {uid: at for uid, at in self._asked.items() if uid in chosen and now - at < AGAIN}
        for uid, pod in chosen.items():
            if uid not in self._asked:
                self._asked[uid] = now
                try:
                    await self._supervisors.warm(pod.record)
                except (Rejected, Unreachable) as error:
                    log.debug("%s/%s was not warmed: %s", pod.record.namespace, pod.record.name, error)

    def _chosen(self) -> list[Pod]:
        state = self._store.state
        counts = {name: pool.spec.cache.warm for name, pool in self._store.pools.items() if pool.spec.cache.warm}
        asleep: dict[str, list[Replica]] = {}
        for replica in state.replicas.values() if counts else ():
            if replica.state is ReplicaState.SLEEPING and replica.reachable and not replica.deleting and replica.node in state.nodes:
                asleep.setdefault(replica.node, []).append(replica)
        found = []
        for node, replicas in asleep.items():
            replicas.sort(key=lambda it: (-self._last_used(it), it.id))
            found += replicas[: counts.get(state.nodes[node].pool, 0)]
        return [self._store.pods[it.id] for it in found if it.id in self._store.pods]

    def _last_used(self, replica: Replica) -> float:
        facts = self._store.facts.get(replica.model)
        return max(replica.last_used, facts.last_used if facts else 0.0)
