"""The custom resources on their way to the sink: news only, whatever order lists and events come in.

Two sources tell of each kind: our own consistent lists (at the start, and now and then) and kopf's events. kopf never tells of an object that went
while it was not looking, and a list may be older than an event that overtook it. So the version of each object is kept, and nothing older passes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from corral.kube.client import GATEWAY_REPORTS, MODEL_DEPLOYMENTS, MODEL_POOLS, PAGE, Expired, KubeClient, Resource
from corral.kube.ports import Gone, Refused, Sink, Unavailable
from corral.kube.watch import key_of, without_managed_fields

log = logging.getLogger(__name__)

RESYNC = 300.0
"""Seconds between lists beside the events."""


def version_of(obj: Mapping[str, Any]) -> int:
    """Resource versions of one kind compare as numbers."""
    text = str((obj.get("metadata") or {}).get("resourceVersion") or "")
    return int(text) if text.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Known:
    uid: str
    version: int


class Gate:
    """One kind of object. Lets through what is newer than what it let through before."""

    def __init__(self, resource: Resource, put: Callable[[Mapping[str, Any]], None], remove: Callable[[str, str], None]) -> None:
        self.resource = resource
        self._put = put
        self._remove = remove
        self._known: dict[tuple[str, str], Known] = {}
        self._deleted: dict[str, int] = {}

    def event(self, kind: str | None, obj: Mapping[str, Any]) -> None:
        """`kind`: ADDED, MODIFIED, DELETED, or None for an object of a list."""
        if kind == "DELETED":
            self.delete(obj)
        else:
            self.put(obj)

    def put(self, obj: Mapping[str, Any]) -> None:
        key, uid, version = key_of(obj), str(obj["metadata"].get("uid") or ""), version_of(obj)
        if uid in self._deleted:  # a list that was read before the object went
            return
        known = self._known.get(key)
        if known is not None and version <= known.version:
            return
        if known is not None and known.uid != uid:
            self._remove(*key)
        self._known[key] = Known(uid, version)
        self._put(without_managed_fields(dict(obj, metadata=dict(obj["metadata"]))))

    def delete(self, obj: Mapping[str, Any]) -> None:
        key, uid, version = key_of(obj), str(obj["metadata"].get("uid") or ""), version_of(obj)
        self._deleted[uid] = version
        known = self._known.get(key)
        if known is not None and known.uid == uid:
            del self._known[key]
            self._remove(*key)

    def listed(self, keys: set[tuple[str, str]], version: int) -> None:
        """A whole list, read at `version`, is through: what it does not have and is not newer has gone."""
        for key, known in list(self._known.items()):
            if key not in keys and known.version <= version:
                del self._known[key]
                self._remove(*key)
        self._deleted = {uid: deleted for uid, deleted in self._deleted.items() if deleted > version}


class PoolListener(Protocol):
    """Who else is told of pools: what a node offers depends on its pool."""

    def put_pool(self, obj: Mapping[str, Any]) -> None: ...

    def remove_pool(self, name: str) -> None: ...


def gates_of(sink: Sink, listener: PoolListener) -> tuple[Gate, Gate, Gate]:
    """ModelPools first: what a model means depends on its pool."""

    def put_pool(obj: Mapping[str, Any]) -> None:
        sink.put_pool(obj)
        listener.put_pool(obj)

    def remove_pool(_namespace: str, name: str) -> None:
        sink.remove_pool(name)
        listener.remove_pool(name)

    return (
        Gate(MODEL_POOLS, put_pool, remove_pool),
        Gate(MODEL_DEPLOYMENTS, sink.put_model, sink.remove_model),
        Gate(GATEWAY_REPORTS, sink.put_report, sink.remove_report),
    )


async def read(client: KubeClient, gate: Gate) -> None:
    """One consistent list into the gate. Raises what the client raises."""
    params = {"limit": str(PAGE)}
    keys: set[tuple[str, str]] = set()
    while True:
        page = await client.list(gate.resource.path(), params)
        for obj in page.get("items") or []:
            keys.add(key_of(obj))
            gate.put(obj)
        token = (page.get("metadata") or {}).get("continue")
        if not token:
            gate.listed(keys, version_of(page))
            return
        params["continue"] = token


async def read_until_done(client: KubeClient, gate: Gate, *, pause: float = 1.0) -> None:
    """The first list: a leader cannot do without it."""
    while True:
        try:
            await read(client, gate)
        except (Unavailable, Refused, Gone, Expired) as error:
            log.warning("%s cannot be listed: %s", gate.resource.plural, error)
            await asyncio.sleep(pause)
        else:
            return


async def keep_reading(client: KubeClient, gates: Sequence[Gate], *, first: float, every: float = RESYNC) -> None:
    """Lists beside the events, for ever."""
    await asyncio.sleep(first)
    while True:
        for gate in gates:
            try:
                await read(client, gate)
            except (Unavailable, Refused, Gone, Expired) as error:
                log.warning("%s cannot be listed: %s", gate.resource.plural, error)
        await asyncio.sleep(every)
