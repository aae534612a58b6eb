"""`Statuses` on Kubernetes: status by server-side apply, events with a count instead of copies.

It owns the events it has posted lately, in memory only; nothing depends on them. What a status says, and whether it differs, is the caller's.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from corral.kube.client import EVENTS, MODEL_DEPLOYMENTS, MODEL_POOLS, AlreadyExists, KubeClient
from corral.kube.ports import Conflict, Gone

log = logging.getLogger(__name__)

COMPONENT = "corral-operator"
MESSAGE_LIMIT = 1024
REPEAT_AFTER = 30.0
"""The same event of the same object is counted up so often at most."""
REMEMBERED = 2048


class KubeStatuses:
    """Implements `Statuses`."""

    def __init__(self, client: KubeClient, *, instance: str = "", clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._instance = instance
        self._clock = clock
        self._posted: OrderedDict[str, tuple[float, int]] = OrderedDict()

    async def write_model(self, namespace: str, name: str, uid: str, status: Mapping[str, Any]) -> None:
        metadata = {"name": name, "namespace": namespace, "uid": uid}
        body = {"apiVersion": MODEL_DEPLOYMENTS.api_version, "kind": MODEL_DEPLOYMENTS.kind, "metadata": metadata, "status": status}
        written = await self._client.apply(MODEL_DEPLOYMENTS.path(namespace, name, "status"), body)
        # The status subresource does not judge the uid; so whoever has just made the object anew learns that it needs another word.
        if written["metadata"].get("uid") != uid:
            raise Conflict(f"ModelDeployment {namespace}/{name} is another object by now")

    async def write_pool(self, name: str, status: Mapping[str, Any]) -> None:
        body = {"apiVersion": MODEL_POOLS.api_version, "kind": MODEL_POOLS.kind, "metadata": {"name": name}, "status": status}
        await self._client.apply(MODEL_POOLS.path(name=name, subresource="status"), body)

    async def event(self, regarding: Mapping[str, Any], *, warning: bool, reason: str, message: str) -> None:
        metadata = regarding.get("metadata") or {}
        namespace = str(metadata.get("namespace") or "default")  # where the API keeps the events of what has no namespace
        told = message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 2] + " …"
        digest = hashlib.sha256("\0".join((str(metadata.get("uid")), reason, told)).encode()).hexdigest()[:16]
        name = f"{metadata.get('name', '')}.{digest}"
        now = self._clock()
        posted = self._posted.get(name)
        if posted is not None and now - posted[0] < REPEAT_AFTER:
            return
        count = posted[1] + 1 if posted else 1
        stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        if posted is None or not await self._count_up(namespace, name, count, stamp):
            await self._post(namespace, name, regarding, warning=warning, reason=reason, message=told, stamp=stamp)
        self._posted[name] = (now, count)
        self._posted.move_to_end(name)
        while len(self._posted) > REMEMBERED:
            self._posted.popitem(last=False)

    async def _post(self, namespace: str, name: str, regarding: Mapping[str, Any], *, warning: bool, reason: str, message: str, stamp: str) -> None:
        metadata = regarding.get("metadata") or {}
        body = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": regarding.get("apiVersion", ""),
                "kind": regarding.get("kind", ""),
                "namespace": metadata.get("namespace") or "",
                "name": metadata.get("name", ""),
                "uid": metadata.get("uid", ""),
                "resourceVersion": metadata.get("resourceVersion", ""),
            },
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message,
            "source": {"component": COMPONENT, "host": self._instance},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._instance,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        try:
            await self._client.create(EVENTS.path(namespace), body)
        except AlreadyExists:
            # Posted before this process began; its count goes on.
            found = await self._client.get(EVENTS.path(namespace, name))
            await self._count_up(namespace, name, int(found.get("count") or 1) + 1, stamp)

    async def _count_up(self, namespace: str, name: str, count: int, stamp: str) -> bool:
        try:
            await self._client.patch(EVENTS.path(namespace, name), {"count": count, "lastTimestamp": stamp})
        except Gone:
            return False
        return True
