"""The directory in memory: what the watches of Kubernetes and the local processes fill, and what tests write by hand.

It owns two dicts and tells its listeners about real changes only. It never does I/O, and is used on one event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from corral.gateway.ports import DirectoryListener, ModelView, ReplicaView


class MemoryDirectory:
    """Implements `Directory`. A put of what is there already is no change and tells nobody."""

    def __init__(self, *, synced: bool = False, live_gateways: int = 1) -> None:
        self._models: dict[str, ModelView] = {}
        self._replicas: dict[str, ReplicaView] = {}
        self._listeners: list[DirectoryListener] = []
        self.synced = synced
        self.live_gateways = live_gateways

    @property
    def models(self) -> Mapping[str, ModelView]:
        return MappingProxyType(self._models)

    @property
    def replicas(self) -> Mapping[str, ReplicaView]:
        return MappingProxyType(self._replicas)

    def subscribe(self, listener: DirectoryListener) -> Callable[[], None]:
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def put_model(self, model: ModelView) -> None:
        if self._models.get(model.key) == model:
            return
        self._models[model.key] = model
        for listener in tuple(self._listeners):
            listener.model_changed(model)

    def remove_model(self, key: str) -> None:
        if self._models.pop(key, None) is None:
            return
        for listener in tuple(self._listeners):
            listener.model_removed(key)

    def put_replica(self, replica: ReplicaView) -> None:
        if self._replicas.get(replica.uid) == replica:
            return
        self._replicas[replica.uid] = replica
        for listener in tuple(self._listeners):
            listener.replica_changed(replica)

    def remove_replica(self, uid: str) -> None:
        if self._replicas.pop(uid, None) is None:
            return
        for listener in tuple(self._listeners):
            listener.replica_removed(uid)
