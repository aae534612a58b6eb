"""`Workloads` on Kubernetes: what the control loop orders, as single calls of the API.

It owns no state: names, bytes and order are the loop's. Each write goes through the leader's gate of the client that it was given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from corral.kube.client import PODS, STRATEGIC_MERGE, AlreadyExists, KubeClient
from corral.kube.devices import Backends
from corral.kube.estimates import Estimates
from corral.kube.manifests import ServerSettings, server_pod
from corral.kube.membership import Pools
from corral.kube.pods import CONTAINER, record, trim
from corral.kube.ports import Conflict, EstimateRequest, Gone, PodRecord, ReplicaRequest


class KubeWorkloads:
    """Implements `Workloads`."""

    def __init__(
        self,
        client: KubeClient,
        settings: ServerSettings,
        backends: Backends,
        pools: Pools,
        *,
        estimate_concurrency: int = 2,
        ensure: Callable[[Mapping[str, Any]], Awaitable[None]] | None = None,
        read_back: Callable[[PodRecord], PodRecord] = lambda pod: pod,
    ) -> None:
        """`ensure` makes the ResourceClaims that a pod lists; `read_back` adds to a record what was allocated to its pod."""
        self._ensure = ensure
        self._read_back = read_back
        self._client = client
        self._pools = pools
        self._settings = settings
        self._backends = backends
        self._estimates = Estimates(client, settings)
        self._slots = asyncio.Semaphore(estimate_concurrency)

    async def create(self, request: ReplicaRequest) -> PodRecord:
        binding = self._backends.bind(request.namespace, request.devices, request.device_kind, self._pools.get(request.pool))
        manifest = server_pod(request, self._settings, binding)
        if self._ensure is not None:
            for claim in binding.needs:
                await self._ensure(claim)
        try:
            return self._record(await self._client.create(PODS.path(request.namespace), manifest))
        except AlreadyExists as error:
            # The answer to an earlier attempt may have been lost; only a pod of the same owner is that attempt.
            found = self._record(await self._client.get(PODS.path(request.namespace, request.name)))
            if found.owner_uid != request.owner_uid or found.deleting:
                raise Conflict(f"pod {request.namespace}/{request.name} exists and is not what was to be made: {error}") from error
            return found

    async def delete(self, pod: PodRecord, grace: float) -> None:
        try:
            await self._client.delete(PODS.path(pod.namespace, pod.name), uid=pod.uid, grace=max(1.0, grace))
        except Gone:
            return
        except Conflict:
            # The precondition failed: another pod has the name by now, so this one is gone.
            current = await self._current(pod)
            if current is not None and current.uid == pod.uid:
                raise

    async def annotate(self, pod: PodRecord, annotations: Mapping[str, str | None], *, precondition: bool) -> PodRecord:
        metadata: dict[str, Any] = {"annotations": dict(annotations), "uid": pod.uid}
        if precondition:
            metadata["resourceVersion"] = pod.resource_version
        return self._record(await self._client.patch(PODS.path(pod.namespace, pod.name), {"metadata": metadata}))

    async def resize(self, pod: PodRecord, memory_request: int, memory_limit: int = 0) -> PodRecord:
        resources = {"requests": {"memory": str(memory_request)}} | ({"limits": {"memory": str(memory_limit)}} if memory_limit else {})
        body = {"metadata": {"uid": pod.uid}, "spec": {"containers": [{"name": CONTAINER, "resources": resources}]}}
        return self._record(await self._client.patch(PODS.path(pod.namespace, pod.name, "resize"), body, STRATEGIC_MERGE))

    async def estimate(self, request: EstimateRequest) -> Mapping[str, Any]:
        async with self._slots:
            return await self._estimates.run(request)

    async def _current(self, pod: PodRecord) -> PodRecord | None:
        try:
            return self._record(await self._client.get(PODS.path(pod.namespace, pod.name)))
        except Gone:
            return None

    def _record(self, obj: dict[str, Any]) -> PodRecord:
        return self._read_back(record(trim(obj)))
