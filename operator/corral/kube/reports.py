"""The gateway's reports: one GatewayReport of its own, owned by its pod, written by server-side apply."""

from __future__ import annotations

from corral.gateway.ports import Report
from corral.kube.client import GATEWAY_REPORTS, KubeClient

MANAGER = "corral-gateway"


class KubeReports:
    """Implements the gateway's `ReportSink`."""

    def __init__(self, client: KubeClient, namespace: str, pod: str, uid: str) -> None:
        self._client = client
        self._path = GATEWAY_REPORTS.path(namespace, pod)
        owner = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}
        metadata = {"name": pod, "namespace": namespace} | ({"ownerReferences": [owner]} if uid else {})
        self._head = {"apiVersion": GATEWAY_REPORTS.api_version, "kind": GATEWAY_REPORTS.kind, "metadata": metadata}

    async def publish(self, report: Report) -> None:
        await self._client.apply(self._path, {**self._head, "spec": report.as_json()}, manager=MANAGER)
