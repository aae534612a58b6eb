"""The directory in memory: what the watches of Kubernetes and the local processes fill, and what tests write by hand.

It owns two dicts, puts what a model's status says of a replica into that replica's view, whichever of the two comes first, and tells its listeners
about real changes only. It never does I/O, and is used on one event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from corral.gateway.ports import DirectoryListener, ModelView, ReplicaView


class MemoryDirectory:
    """Implements `Directory`. A put of what is there already is no change and tells nobody."""

    def __init__(self, *, synced: bool = False, live_gateways: int = 1) -> None:
        self._models: dict[str, ModelView] = {}
        self._replicas: dict[str, ReplicaView] = {}
        self._put: dict[str, dict[str, ReplicaView]] = {}
        """By model and uid, as they were put."""
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
        for replica in tuple(self._put.get(model.key, {}).values()):
            self._tell(replica)

    def remove_model(self, key: str) -> None:
        if self._models.pop(key, None) is None:
            return
        for listener in tuple(self._listeners):
            listener.model_removed(key)

    def put_replica(self, replica: ReplicaView) -> None:
        self._put.setdefault(replica.model, {})[replica.uid] = replica
        self._tell(replica)

    def _tell(self, replica: ReplicaView) -> None:
        model = self._models.get(replica.model)
        state = next((state for pod, state in model.placements if pod == replica.pod), None) if model is not None else None
        if state is not None:
            replica = replace(replica, state=state)
        if self._replicas.get(replica.uid) == replica:
            return
        self._replicas[replica.uid] = replica
        for listener in tuple(self._listeners):
            listener.replica_changed(replica)

    def remove_replica(self, uid: str) -> None:
        known = self._replicas.pop(uid, None)
        if known is None:
            return
        siblings = self._put.get(known.model, {})
        siblings.pop(uid, None)
        if not siblings:
            self._put.pop(known.model, None)
        for listener in tuple(self._listeners):
            listener.replica_removed(uid)
