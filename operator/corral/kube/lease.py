"""Leadership by one Lease object: who leads, with which epoch, and until when it may write.

The epoch is the Lease's transition count; it rises with every acquisition, also by a process of the same pod. Expiry is judged by local clocks
only: a standby counts from when it saw `renewTime` change, a leader from before it sent its last renewal, on the monotonic and on the wall clock
(a machine that slept moves only the second). A leader that is late never renews: it says so once and its process ends.

A Lease can be lost, deleted or restored while pods remember what its leaders said. So no term starts at or below the highest epoch that commitments
carry, and a holder that hears of a higher one raises the Lease above it with its next renewal; only a true holder's renewal is accepted.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from corral.kube.client import LEASES, AlreadyExists
from corral.kube.ports import Conflict, Gone, Refused, Unavailable

log = logging.getLogger(__name__)


class Clock(Protocol):
    def monotonic(self) -> float: ...

    def time(self) -> float: ...


class Objects(Protocol):
    """As much of `KubeClient` as a Lease needs."""

    async def get(self, path: str) -> dict[str, Any]: ...

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]: ...

    async def replace(self, path: str, body: dict[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    duration: float = 15.0
    retry: float = 2.0
    write: float = 5.0
    """What a write may take; none is begun that could end after the expiry."""
    slack: float = 0.5


@dataclass(slots=True)
class Term:
    """One term of leadership. Pure: judged by the times it is given."""

    epoch: int
    until_monotonic: float
    until_wall: float

    def left(self, monotonic: float, wall: float) -> float:
        return min(self.until_monotonic - monotonic, self.until_wall - wall)


@dataclass(slots=True)
class Rival:
    """What a standby knows of the present holder: when it last saw a sign of life, by its own clock."""

    sign: tuple[str, str, int] = ("", "", -1)
    seen: float = field(default=float("-inf"))

    def observe(self, spec: dict[str, Any], monotonic: float) -> None:
        sign = (str(spec.get("holderIdentity") or ""), str(spec.get("renewTime") or ""), int(spec.get("leaseTransitions") or 0))
        if sign != self.sign:
            self.sign, self.seen = sign, monotonic

    def expired(self, spec: dict[str, Any], monotonic: float) -> bool:
        return not self.sign[0] or monotonic >= self.seen + float(spec.get("leaseDurationSeconds") or 0)


def first_epoch(wall: float) -> int:
    """The count that a new Lease starts with. Minutes since 1970: a Lease that somebody deleted must not start below what supervisors have seen."""
    return int(wall // 60)


class Elector:
    """Implements `Leadership`. `identity` must be new for every process, so that a restarted one is a rival of its former self."""

    def __init__(
        self,
        objects: Objects,
        namespace: str,
        name: str,
        identity: str,
        *,
        times: LeaseTimes | None = None,
        clock: Clock = time,
        sleep: Callable[[float], Any] = asyncio.sleep,
        highest: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        """`highest`: the highest epoch that the world still carries; asked before each term."""
        self._highest = highest
        self._outdone = 0
        self._objects = objects
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._times = times or LeaseTimes()
        self._clock = clock
        self._sleep = sleep
        self._rival = Rival()
        self._term: Term | None = None
        self._lost = False
        self._held: dict[str, Any] = {}

    @property
    def epoch(self) -> int:
        return self._term.epoch if self._term else 0

    @property
    def leads(self) -> bool:
        return self._term is not None and not self._judge_lost()

    def may_write(self) -> bool:
        return self.leads and self._left() > self._times.write + self._times.slack

    def outdone(self, epoch: int) -> None:
        """A supervisor has heard this epoch. If that was another holder of the Lease, the next renewal fails; else it goes above."""
        self._outdone = max(self._outdone, epoch)

    async def acquire(self) -> int:
        """Wait until this process leads; its epoch."""
        while not await self.try_acquire():
            await self._sleep(self._times.retry * (0.75 + random.random() / 2))
        return self.epoch

    async def try_acquire(self) -> bool:
        started = self._now()
        try:
            lease = await self._objects.get(LEASES.path(self._namespace, self._name))
        except Gone:
            return await self._take(started, None)
        except (Unavailable, Refused) as error:
            log.warning("the lease cannot be read: %s", error)
            return False
        spec = lease.get("spec") or {}
        self._rival.observe(spec, self._clock.monotonic())
        return self._rival.expired(spec, self._clock.monotonic()) and await self._take(started, lease)

    async def hold(self) -> None:
        """Renew until the lease is lost; returns then. Run it as a task from `acquire` on."""
        while self.leads:
            await self._sleep(self._times.retry)
            if not self.leads:
                break
            started = self._now()
            epoch = self.epoch if self._outdone <= self.epoch else self._outdone + 1
            try:
                self._held = await self._objects.replace(LEASES.path(self._namespace, self._name), self._body(self._held, epoch))
            except Conflict:
                await self._look()
            except Gone:
                self._lost = True
            except (Unavailable, Refused) as error:
                log.warning("the lease is not renewed: %s", error)
            else:
                if epoch != self.epoch:
                    log.warning("a supervisor has heard epoch %d, which this Lease never gave: from %d to epoch %d", self._outdone, self.epoch, epoch)
                self._begin(started, epoch)
        log.error("the lease %s/%s is lost", self._namespace, self._name)

    async def release(self) -> None:
        """Give the lease up, after the last write: a successor need not wait for the expiry."""
        if not self.may_write():
            return
        self._lost = True
        body = self._body(self._held, self.epoch)
        body["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            await self._objects.replace(LEASES.path(self._namespace, self._name), body)
        except (Conflict, Gone, Unavailable, Refused) as error:
            log.info("the lease is not released: %s", error)

    async def _look(self) -> None:
        """Somebody else wrote the Lease: a stranger's label is borne, another holder is not."""
        try:
            lease = await self._objects.get(LEASES.path(self._namespace, self._name))
        except (Gone, Unavailable, Refused):
            return
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") == self._identity and spec.get("leaseTransitions") == self.epoch:
            self._held = lease
        else:
            self._lost = True

    async def _take(self, started: tuple[float, float], lease: dict[str, Any] | None) -> bool:
        try:
            floor = max(self._outdone, await self._highest() if self._highest is not None else 0)
        except (Gone, Unavailable, Refused) as error:
            log.warning("the lease is not taken: the epochs of commitments cannot be read: %s", error)
            return False
        given = first_epoch(self._clock.time()) if lease is None else int((lease.get("spec") or {}).get("leaseTransitions") or 0) + 1
        epoch = max(given, floor + 1)
        body = self._body(lease or {}, epoch)
        body["spec"]["acquireTime"] = body["spec"]["renewTime"]
        try:
            if lease is None:
                self._held = await self._objects.create(LEASES.path(self._namespace), body)
            else:
                self._held = await self._objects.replace(LEASES.path(self._namespace, self._name), body)
        except (Conflict, AlreadyExists, Gone):
            return False
        except (Unavailable, Refused) as error:
            log.warning("the lease cannot be taken: %s", error)
            return False
        self._begin(started, epoch)
        log.info("leading with epoch %d", epoch)
        return True

    def _begin(self, started: tuple[float, float], epoch: int) -> None:
        monotonic, wall = started
        self._term = Term(epoch, monotonic + self._times.duration, wall + self._times.duration)

    def _body(self, lease: dict[str, Any], epoch: int) -> dict[str, Any]:
        spec = {key: value for key, value in (lease.get("spec") or {}).items() if key == "acquireTime"}
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        for kept in ("resourceVersion", "uid", "labels", "annotations", "ownerReferences"):
            if kept in (lease.get("metadata") or {}):
                metadata[kept] = lease["metadata"][kept]
        spec |= {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": round(self._times.duration),
            "leaseTransitions": epoch,
            "renewTime": datetime.fromtimestamp(self._clock.time(), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        }
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}

    def _now(self) -> tuple[float, float]:
        return self._clock.monotonic(), self._clock.time()

    def _left(self) -> float:
        return self._term.left(*self._now()) if self._term else 0.0

    def _judge_lost(self) -> bool:
        # Once late, always lost: nobody can know who wrote in the meantime.
        if not self._lost and self._left() <= 0:
            self._lost = True
        return self._lost
