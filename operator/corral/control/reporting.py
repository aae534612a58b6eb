"""Writes statuses: only what differs, one write at a time per object, and a change of words alone not more often than every few seconds.

What is written is rendered at the moment of writing, so a burst of changes costs one write. A failed write is tried again; it never stops anything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from corral.control.packing import pack, unpack
from corral.control.settings import ControlSettings
from corral.kube.ports import Gone, NotLeader

log = logging.getLogger(__name__)

Render = Callable[[str], Mapping[str, Any] | None]
Write = Callable[[str, Mapping[str, Any]], Awaitable[None]]
Observed = Callable[[str], Mapping[str, Any]]

WORDS = frozenset({"message", "explanation", "lastUsed", "backoff"})
"""Parts of a status that say more about what the rest says already."""
RETRY = 1.0
RENDERED_AT_ONCE = 16
AT_LEISURE = 2
"""Writes at once of what nobody waits for: all models of a fleet may be due, after an upgrade say, and wakes need the API server too."""
CHEAP = 0.005
SHARE = 0.02
"""Of the time, that rendering one status may take which is not cheap (seconds)."""


class Reporter:
    """For one kind of object. `render`: the status that is wanted now (None: the object is gone); `observed`: the one that the API last showed;
    `urgent`: whether somebody looks at this object now: others are written after those."""

    def __init__(
        self,
        render: Render,
        observed: Observed,
        write: Write,
        settings: ControlSettings,
        clock: Callable[[], float],
        *,
        interval: float = 0.0,
        urgent: Callable[[str], bool] = lambda _key: True,
    ) -> None:
        self._render = render
        self._observed = observed
        self._write = write
        self._settings = settings
        self._clock = clock
        self._interval = interval
        self._urgent = urgent
        self._dirty: dict[str, None] = {}  # ordered: first marked, first written
        self._leisurely: dict[str, None] = {}  # those after them
        self._later: dict[str, float] = {}
        self._costly: dict[str, float] = {}  # not rendered again before
        self._written: dict[str, tuple[bytes, float]] = {}  # packed: there are as many as objects
        self._adrift: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()

    def mark(self, keys: set[str]) -> None:
        """These may have another status now."""
        for key in keys:
            if self._urgent(key):
                self._dirty[key] = None
                self._leisurely.pop(key, None)
            elif key not in self._dirty:
                self._leisurely[key] = None
        if keys:
            self._wake.set()

    def former(self, key: str) -> Mapping[str, Any]:
        """The status as it was last written, or as the API shows it."""
        written = self._written.get(key)
        return unpack(written[0]) if written is not None else self._observed(key)

    def forget(self, key: str) -> None:
        self._written.pop(key, None)
        self._adrift.pop(key, None)
        self._later.pop(key, None)
        self._costly.pop(key, None)

    def check_drift(self, keys: set[str]) -> None:
        """Somebody else may have changed what we wrote. What a write does not mend (a field that the CRD does not know) is left alone."""
        for key in keys:
            written = self._written.get(key)
            if written is None or key in self._writing:
                continue
            pair = (unpack(written[0]), self._observed(key))
            if pair[0] == pair[1]:
                self._adrift.pop(key, None)
            elif self._adrift.get(key) != pair:
                self._adrift[key] = pair
                del self._written[key]
                self.mark({key})

    async def run(self) -> None:
        while True:
            now = self._clock()
            due = {key for key, at in self._later.items() if at <= now}
            for key in due:
                del self._later[key]
            self.mark(due)
            await self._start_some(self._dirty, self._settings.status_concurrency, now)
            await self._start_some(self._leisurely, AT_LEISURE, now)
            self._wake.clear()
            pause = min(self._later.values(), default=None)
            try:
                async with asyncio.timeout(None if pause is None else max(0.0, pause - now)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _start_some(self, keys: dict[str, None], at_once: int, now: float) -> None:
        for count, key in enumerate(list(keys)):
            if len(self._writing) >= at_once:
                return
            if count % RENDERED_AT_ONCE == RENDERED_AT_ONCE - 1:
                await asyncio.sleep(0)  # a resync renders everything; nobody's wake waits for that
            if key in keys and key not in self._writing:
                del keys[key]
                self._start(key, now)

    def _start(self, key: str, now: float) -> None:
        if now < self._costly.get(key, 0.0):
            self._later[key] = self._costly[key]
            return
        began = time.thread_time()
        try:
            wanted = self._render(key)
        except Exception:
            log.exception("rendering the status of %s", key)
            self._later[key] = now + self._settings.resync
            return
        if wanted is None:
            self.forget(key)
            return
        cost = time.thread_time() - began  # of this thread's own: on a busy machine the clock on the wall says little
        if cost > CHEAP:
            # The status of a pool with thousands of models: whatever happens in it, looking at all of them stays a small part of the work.
            self._costly[key] = now + cost / SHARE
        written = self._written.get(key)
        known = self.former(key)
        if wanted == known:
            return
        if written is not None:
            pause = self._settings.message_interval if without_words(wanted) == without_words(known) else self._interval
            if now < written[1] + pause:
                self._later[key] = written[1] + pause
                return
        self._writing[key] = asyncio.create_task(self._put(key, wanted), name=f"status {key}")

    async def _put(self, key: str, wanted: Mapping[str, Any]) -> None:
        try:
            await self._write(key, wanted)
        except NotLeader as error:
            log.debug("%s", error)
            self._later[key] = self._clock() + RETRY
        except Gone:
            self.forget(key)
        except Exception as error:
            log.warning("writing the status of %s: %s", key, error)
            self._later[key] = self._clock() + RETRY
        else:
            self._written[key] = (pack(wanted), self._clock())
        finally:
            self._writing.pop(key, None)
            self._wake.set()

    async def close(self) -> None:
        tasks = list(self._writing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def without_words(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: without_words(item) for key, item in value.items() if key not in WORDS}
    if isinstance(value, list):
        return [without_words(item) for item in value]
    return value
