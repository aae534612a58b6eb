"""What every action needs to be carried out: the store, the world, the supervisors, and the few steps that several actions share.

Each step leaves the world in a state from which a new leader, knowing only the objects, can go on. Nothing here decides.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from corral.control.limits import memory_limit
from corral.control.observation import SupervisorStatus, seconds_of
from corral.control.pods import Pod
from corral.control.settings import MI, ControlSettings
from corral.control.store import Store
from corral.control.supervisors import Rejected, Supervisors, Unreachable
from corral.domain.model import ReplicaState
from corral.kube.ports import COMMIT, LOADED_FOR, TURN, Conflict, Gone, Leadership, Workloads

log = logging.getLogger(__name__)

CONFLICTS = 20
"""How often a write is tried against ever newer versions of its object before the action is given up."""


class Abandoned(Exception):  # noqa: N818
    """This action cannot go on; what it left is told by the objects. The message says why."""


@dataclass(frozen=True, slots=True)
class Shell:
    store: Store
    workloads: Workloads
    supervisors: Supervisors
    leadership: Leadership
    settings: ControlSettings
    clock: Callable[[], float]
    node_locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    def pod(self, key: str) -> Pod | None:
        """The pod, unless it is gone or going."""
        pod = self.store.pods.get(key)
        return pod if pod is not None and pod.record.uid and not pod.gone else None

    def residue(self, model: str) -> int:
        """The memory request of a sleeping pod: whole mebibytes."""
        facts = self.store.facts.get(model)
        return -(-max(facts.residue if facts else 0, self.settings.residue) // MI) * MI

    def limit(self, pod: Pod) -> int:
        """The memory limit that a pod on host memory should have by what is known now: it only goes up. 0: as it is."""
        model = self.store.state.models.get(pod.record.model)
        if not pod.host or not pod.record.memory_limit or model is None:
            return 0
        wanted = memory_limit(model.footprint, self.settings)
        return wanted if wanted > pod.record.memory_limit else 0

    async def annotate(self, key: str, annotations: Mapping[str, str | None], *, holds: Callable[[Pod], bool]) -> bool:
        """Annotate with a precondition, against newer versions of the pod as long as `holds`; False when it does not any more, or the pod is gone."""
        for _ in range(CONFLICTS):
            pod = self.pod(key)
            if pod is None or not holds(pod):
                return False
            version = pod.record.resource_version
            try:
                record = await self.workloads.annotate(pod.record, annotations, precondition=True)
            except Conflict:
                await self.store.until(key, lambda it, version=version: it is None or it.record.resource_version != version, 1.0)  # type: ignore[misc]
                continue
            except Gone:
                return False
            self.store.put_pod(record)
            return True
        raise Abandoned(f"{key} changed {CONFLICTS} times while it was to be annotated")

    async def clear(self, key: str) -> bool:
        """Take the commitment back. Only after the engine's process is surely gone."""
        pod = self.pod(key)
        if pod is None:
            return False
        ours = pod.record.annotations.get(COMMIT)
        if ours is None:
            return True
        gone: dict[str, str | None] = {COMMIT: None, LOADED_FOR: None, TURN: None}
        pod.turn_started = None
        return await self.annotate(key, gone, holds=lambda it: it.record.annotations.get(COMMIT) == ours)

    def node_lock(self, node: str) -> asyncio.Lock:
        """Held by whoever weighs a node's memory requests and changes one."""
        return self.node_locks.setdefault(node, asyncio.Lock())

    async def release(self, key: str) -> bool:
        """Make sure that no engine runs, then take back the commitment. False: it is in use, or cannot be reached; nothing was taken."""
        for attempt in range(self.settings.wake_attempts):
            pod = self.pod(key)
            if pod is None:
                return False
            try:
                # Even where it sleeps already: the call carries our epoch, so that no earlier leader can wake it after this.
                await self.supervisors.sleep(pod.record)
            except Unreachable as error:
                log.info("%s", error)
                await self.store.until(key, lambda it: it is None or it.gone, 0.2 * 2**attempt)
                continue
            except Rejected:
                try:
                    await self.supervisors.drain(pod.record, if_idle=True, if_unused_since=None, deadline=None)
                except (Rejected, Unreachable):
                    return False
                continue
            self.asleep(key)
            await self.clear(key)
            return True
        return False

    def asleep(self, key: str) -> None:
        """`sleep` was answered: what the next poll will say is believed already. One that still downloads (it has started anew) goes on with that."""
        self._believe(key, lambda it: replace(it, state=ReplicaState.SLEEPING, admitting=False, in_flight=0) if it.resident else it)

    def draining(self, key: str) -> None:
        self._believe(key, lambda it: replace(it, state=ReplicaState.DRAINING, admitting=False) if it.state is ReplicaState.LOADED else it)

    def in_use(self, key: str, body: Mapping[str, Any]) -> None:
        """A drain was refused, with what the supervisor knew better."""
        in_flight, last_used = body.get("inFlight"), seconds_of(body.get("lastUsed"))
        self._believe(
            key,
            lambda it: replace(it, in_flight=in_flight if isinstance(in_flight, int) else it.in_flight, last_used=max(last_used, it.last_used)),
        )

    def _believe(self, key: str, change: Callable[[SupervisorStatus], SupervisorStatus]) -> None:
        pod = self.store.pods.get(key)
        if pod is not None and pod.status is not None:
            self.store.put_supervisor(key, pod.record.uid, change(pod.status))


def to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
