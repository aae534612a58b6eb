"""The objects of local mode, as an API server would keep them: uid, generation, resource version, creation time and status.

One event loop owns it. It admits what `manifests` has checked and must never judge a spec itself.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from corral.api.types import format_time
from corral.local.manifests import Key, Manifest

Listener = Callable[[Key, "Mapping[str, Any] | None"], None]


class Registry:
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._objects: dict[Key, dict[str, Any]] = {}
        self._versions = itertools.count(1)
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        """Told of every object that was added or changed, and with None of every one that is gone."""
        self._listeners.append(listener)

    def get(self, key: Key) -> Mapping[str, Any] | None:
        return self._objects.get(key)

    def of_kind(self, kind: str) -> Iterator[Mapping[str, Any]]:
        """In the order in which they came: that of the files, and of the documents in them."""
        return (obj for key, obj in self._objects.items() if key.kind == kind)

    def apply(self, manifest: Manifest) -> bool:
        """Add the object, or change its spec and metadata; whether anything changed."""
        old = self._objects.get(manifest.key)
        declared = {name: value for name, value in manifest.obj["metadata"].items() if name in {"name", "namespace", "labels", "annotations"}}
        body = {name: value for name, value in manifest.obj.items() if name not in {"metadata", "status"}}
        if old is None:
            created = format_time(datetime.fromtimestamp(self._now(), UTC))
            metadata = {**declared, "uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": created}
            return self._store(manifest.key, {**body, "metadata": metadata})
        kept = {name: old["metadata"][name] for name in ("uid", "generation", "creationTimestamp")}
        same = {name: value for name, value in old.items() if name not in {"metadata", "status"}} == body
        if same and {**declared, **kept} == {name: value for name, value in old["metadata"].items() if name != "resourceVersion"}:
            return False
        metadata = {**declared, **kept, "generation": kept["generation"] + (not same)}
        status = {"status": old["status"]} if "status" in old else {}
        return self._store(manifest.key, {**body, "metadata": metadata, **status})

    def remove(self, key: Key) -> None:
        if self._objects.pop(key, None) is not None:
            self._tell(key, None)

    def set_status(self, key: Key, uid: str, status: Mapping[str, Any]) -> bool:
        """Replace the status; False when the object is gone or another one by now."""
        old = self._objects.get(key)
        if old is None or (uid and old["metadata"]["uid"] != uid):
            return False
        if old.get("status") != status:
            self._store(key, {**old, "status": dict(status)})
        return True

    def _store(self, key: Key, obj: dict[str, Any]) -> bool:
        obj["metadata"] = {**obj["metadata"], "resourceVersion": str(next(self._versions))}
        self._objects[key] = obj
        self._tell(key, obj)
        return True

    def _tell(self, key: Key, obj: Mapping[str, Any] | None) -> None:
        for listener in tuple(self._listeners):
            listener(key, obj)
