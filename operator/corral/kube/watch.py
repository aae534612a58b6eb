"""A reflector: list, then watch, for ever, and tell somebody of each object.

It owns the resource version, the back-off and the knowledge of which objects exist, as (name, uid) only: objects are trimmed at once and kept by
whoever is told of them. It must never decide what an object means. A first list is consistent (no resourceVersion), so that a new leader never
starts from an old cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from corral.kube.client import PAGE, Expired, KubeClient, Silent
from corral.kube.ports import Gone, Refused, Unavailable

log = logging.getLogger(__name__)

Object = dict[str, Any]

WATCH_SECONDS = (240, 300)
"""How long one watch lasts, drawn anew each time, so that many watches do not end together."""
SILENCE = 150.0
"""Bookmarks come about once a minute, mostly; a stream that is silent for longer may be dead, whatever TCP says, and is opened anew."""
BACKOFF = (0.25, 30.0)


def without_managed_fields(obj: Object) -> Object:
    obj.get("metadata", {}).pop("managedFields", None)
    return obj


def key_of(obj: Mapping[str, Any]) -> tuple[str, str]:
    metadata = obj.get("metadata") or {}
    return str(metadata.get("namespace") or ""), str(metadata.get("name") or "")


@dataclass(frozen=True, slots=True)
class Target:
    """Who is told. `remove` gets the object's last known metadata (namespace, name, uid)."""

    put: Callable[[Object], None]
    remove: Callable[[str, str, str], None]
    synced: Callable[[], None]


class Reflector:
    """One kind of object, selected by labels or fields. `run` never returns by itself."""

    def __init__(
        self,
        client: KubeClient,
        path: str,
        target: Target,
        *,
        labels: str = "",
        fields: str = "",
        trim: Callable[[Object], Object] = without_managed_fields,
        page: int = PAGE,
        jitter: Callable[[], float] = random.random,
        silence: float = SILENCE,
    ) -> None:
        self.path = path
        self.last_activity = time.monotonic()
        self.synced = False
        self._client = client
        self._target = target
        self._selectors = {name: value for name, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}
        self._trim = trim
        self._page = page
        self._jitter = jitter
        self._silence = silence
        self._known: dict[tuple[str, str], str] = {}
        self._version = ""

    async def run(self) -> None:
        failures = 0
        while True:
            before = self.last_activity
            try:
                if not self._version:
                    self._version = await self._list()
                await self._watch()
                failures = 0
                continue
            except Expired:
                log.info("the watch of %s is too old; listing again", self.path)
                self._version = ""
            except Silent as error:
                log.info("%s", error)
                continue
            except (Unavailable, Gone) as error:
                log.warning("%s", error)
            except Refused as error:
                log.error("%s is refused: %s", self.path, error)  # noqa: TRY400 - what the API said is all there is
            except Exception:
                # The list tells what is true.
                log.exception("the watch of %s failed", self.path)
                self._version = ""
            failures = 0 if self.last_activity != before else failures + 1
            await asyncio.sleep(min(BACKOFF[1], BACKOFF[0] * 2**failures) * (0.5 + self._jitter()))

    def _heard(self) -> None:
        self.last_activity = time.monotonic()

    async def _list(self) -> str:
        seen: dict[tuple[str, str], str] = {}
        params = {**self._selectors, "limit": str(self._page)}
        while True:
            page = await self._client.list(self.path, params)
            self._heard()
            for item in page.pop("items", None) or []:
                self._put(item, seen)
            metadata = page.get("metadata") or {}
            token = metadata.get("continue")
            if not token:
                break
            params = {**self._selectors, "limit": str(self._page), "continue": token}
            await asyncio.sleep(0)  # a fleet's list must not hold up the loop
        for key in [key for key in self._known if key not in seen]:
            self._target.remove(*key, self._known[key])
        self._known = seen
        if not self.synced:
            self.synced = True
            self._target.synced()
        return str(metadata.get("resourceVersion") or "")

    async def _watch(self) -> None:
        low, high = WATCH_SECONDS
        params = {
            **self._selectors,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(round(low + (high - low) * self._jitter())),
        }
        stream = self._client.watch(self.path, params, idle=self._silence, opened=self._heard)
        async with contextlib.aclosing(stream):
            async for event in stream:
                self._heard()
                obj: Object = event["object"]
                # Kept at once: a stream that breaks is taken up where it was.
                self._version = str((obj.get("metadata") or {}).get("resourceVersion") or self._version)
                if event["type"] == "DELETED":
                    self._known.pop(key_of(obj), None)
                    self._target.remove(*key_of(obj), str(obj["metadata"].get("uid") or ""))
                elif event["type"] in {"ADDED", "MODIFIED"}:
                    self._put(obj, self._known)

    def _put(self, obj: Object, known: dict[tuple[str, str], str]) -> None:
        key, uid = key_of(obj), str(obj["metadata"].get("uid") or "")
        before = self._known.get(key)
        if before is not None and before != uid:  # deleted and made anew while nobody looked
            self._target.remove(*key, before)
        known[key] = uid
        try:
            self._target.put(self._trim(obj))
        except Exception:
            # One object that cannot be read must not hide all others.
            log.exception("%s of %s cannot be handled", "/".join(key), self.path)
