"""Kubernetes events: a state is told once for a while, a deed each time it is done, and a burst never holds up the loop.

Events are for people; nothing reads them back, and losing one loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from corral.control.store import Store
from corral.kube.ports import Statuses

log = logging.getLogger(__name__)

REPEAT_AFTER = 600.0
REMEMBERED = 4096
QUEUED = 256
MESSAGE_LIMIT = 1024


class Recorder:
    def __init__(self, store: Store, statuses: Statuses, clock: Callable[[], float]) -> None:
        self._store = store
        self._statuses = statuses
        self._clock = clock
        self._told: dict[tuple[str, str, str], float] = {}
        self._queue: asyncio.Queue[tuple[Mapping[str, Any], bool, str, str]] = asyncio.Queue(QUEUED)
        self.dropped = 0

    def model(self, key: str, reason: str, message: str, *, warning: bool = False, deed: bool = False) -> None:
        """An event about a ModelDeployment, if it still exists. `deed`: something that was done, and is told each time it is done."""
        found = self._store.deployments.get(key)
        if found is not None:
            self.tell(found.packed.whole, reason, message, warning=warning, deed=deed)

    def tell(self, regarding: Mapping[str, Any], reason: str, message: str, *, warning: bool = False, deed: bool = False) -> None:
        metadata = regarding.get("metadata") or {}
        message = message[:MESSAGE_LIMIT]
        told = (str(metadata.get("uid") or metadata.get("name")), reason, message)
        now = self._clock()
        if not deed and now < self._told.get(told, 0.0) + REPEAT_AFTER:
            return
        if len(self._told) >= REMEMBERED:
            self._told = {key: at for key, at in self._told.items() if now < at + REPEAT_AFTER}
            if len(self._told) >= REMEMBERED:
                self._told.clear()
        try:
            self._queue.put_nowait((regarding, warning, reason, message))
        except asyncio.QueueFull:
            self.dropped += 1
            return
        self._told[told] = now

    async def run(self) -> None:
        """Write what was told, one by one."""
        while True:
            regarding, warning, reason, message = await self._queue.get()
            try:
                await self._statuses.event(regarding, warning=warning, reason=reason, message=message)
            except Exception as error:
                log.info("event %s about %s: %s", reason, (regarding.get("metadata") or {}).get("name"), error)
