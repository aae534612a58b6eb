"""Status and events of local mode: implements `Statuses` over the registry and the event log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corral.kube.ports import Gone, Leadership, NotLeader
from corral.local.events import EventLog
from corral.local.manifests import Key
from corral.local.registry import Registry


class LocalStatuses:
    def __init__(self, registry: Registry, events: EventLog, leadership: Leadership) -> None:
        self._registry = registry
        self._events = events
        self._leadership = leadership

    async def write_model(self, namespace: str, name: str, uid: str, status: Mapping[str, Any]) -> None:
        self._write(Key("ModelDeployment", namespace, name), uid, status)

    async def write_pool(self, name: str, status: Mapping[str, Any]) -> None:
        self._write(Key("ModelPool", "", name), "", status)

    async def event(self, regarding: Mapping[str, Any], *, warning: bool, reason: str, message: str) -> None:
        self._events.add(regarding, warning=warning, reason=reason, message=message)

    def _write(self, key: Key, uid: str, status: Mapping[str, Any]) -> None:
        if not self._leadership.may_write():
            raise NotLeader("this instance is shutting down")
        if not self._registry.set_status(key, uid, status):
            raise Gone(f"{key} is gone")
