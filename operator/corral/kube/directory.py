"""What a gateway knows of the cluster: watches of ModelDeployments, ModelPools, server pods and the other gateways fill a `MemoryDirectory`.

It owns the pools' `hold` settings beside the directory, since a model's view carries its pool's. It must never write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from corral.gateway.directory import MemoryDirectory
from corral.kube.client import MODEL_DEPLOYMENTS, MODEL_POOLS, PODS, KubeClient
from corral.kube.pods import COMPONENT, MANAGED_BY, SERVER_SELECTOR, record, trim
from corral.kube.watch import Object, Reflector, Target, key_of, without_managed_fields
from corral.views import model_view, replica_view

GATEWAY_SELECTOR = f"{COMPONENT}=gateway,app.kubernetes.io/part-of=corral"

KEPT_SPEC = ("aliases", "engine", "scaling", "pool")
KEPT_STATUS = ("conditions", "servedNames", "explanation", "placements", "wish", "estimate")


def trim_model(obj: Object) -> Object:
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    return {
        "metadata": {key: metadata.get(key) for key in ("name", "namespace", "uid", "creationTimestamp")},
        "spec": {key: spec[key] for key in KEPT_SPEC if key in spec},
        "status": {key: status[key] for key in KEPT_STATUS if key in status},
    }


class KubeDirectory:
    """Keeps `directory` as the API has it. `run` never returns by itself."""

    def __init__(self, client: KubeClient, directory: MemoryDirectory, namespace: str) -> None:
        self._directory = directory
        self._models: dict[str, Object] = {}
        self._pools: dict[str, Object] = {}
        self._gateways: dict[str, bool] = {}
        self._missing = {"models", "pools", "pods"}
        self.reflectors = (
            Reflector(
                client,
                MODEL_DEPLOYMENTS.path(),
                Target(self._put_model, self._remove_model, lambda: self._arrived("models")),
                trim=trim_model,
            ),
            Reflector(
                client,
                MODEL_POOLS.path(),
                Target(self._put_pool, self._remove_pool, lambda: self._arrived("pools")),
                trim=without_managed_fields,
            ),
            Reflector(client, PODS.path(), Target(self._put_pod, self._remove_pod, lambda: self._arrived("pods")), labels=SERVER_SELECTOR, trim=trim),
            Reflector(
                client, PODS.path(namespace), Target(self._put_gateway, self._remove_gateway, lambda: None), labels=GATEWAY_SELECTOR, trim=trim
            ),
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for reflector in self.reflectors:
                group.create_task(reflector.run())

    def _arrived(self, source: str) -> None:
        self._missing.discard(source)
        if not self._missing and not self._directory.synced:
            self._directory.synced = True

    def _put_model(self, obj: Object) -> None:
        self._models["/".join(key_of(obj))] = obj
        self._tell(obj)

    def _tell(self, obj: Object) -> None:
        self._directory.put_model(model_view(obj, self._pools.get((obj.get("spec") or {}).get("pool") or "default")))

    def _remove_model(self, namespace: str, name: str, _uid: str) -> None:
        self._models.pop(f"{namespace}/{name}", None)
        self._directory.remove_model(f"{namespace}/{name}")

    def _put_pool(self, obj: Object) -> None:
        name = str(obj["metadata"]["name"])
        before = self._pools.get(name)
        self._pools[name] = obj
        if before is None or _hold_of(before) != _hold_of(obj):
            self._pool_changed(name)

    def _remove_pool(self, _namespace: str, name: str, _uid: str) -> None:
        if self._pools.pop(name, None) is not None:
            self._pool_changed(name)

    def _pool_changed(self, name: str) -> None:
        for obj in list(self._models.values()):
            if ((obj.get("spec") or {}).get("pool") or "default") == name:
                self._tell(obj)

    def _put_pod(self, obj: Object) -> None:
        pod = record(obj)
        if pod.host and (obj.get("status") or {}).get("phase") == "Running":
            self._directory.put_replica(replica_view(pod))
        else:
            self._directory.remove_replica(pod.uid)

    def _remove_pod(self, _namespace: str, _name: str, uid: str) -> None:
        self._directory.remove_replica(uid)

    def _put_gateway(self, obj: Object) -> None:
        conditions = (obj.get("status") or {}).get("conditions") or ()
        ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
        self._gateways[str(obj["metadata"]["uid"])] = ready
        self._count()

    def _remove_gateway(self, _namespace: str, _name: str, uid: str) -> None:
        self._gateways.pop(uid, None)
        self._count()

    def _count(self) -> None:
        self._directory.live_gateways = max(1, sum(self._gateways.values()))


def _hold_of(pool: Mapping[str, Any]) -> Any:
    return (pool.get("spec") or {}).get("hold")


__all__ = ["GATEWAY_SELECTOR", "MANAGED_BY", "KubeDirectory", "trim_model"]
