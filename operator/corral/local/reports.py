"""Where the gateway of this process puts its reports: straight into the control loop's store, in the shape they have on a cluster."""

from __future__ import annotations

from corral.api.base import API_VERSION
from corral.gateway.ports import Report
from corral.kube.ports import Sink

NAMESPACE, NAME = "corral-system", "local"


class LocalReports:
    """Implements `ReportSink`."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    async def publish(self, report: Report) -> None:
        metadata = {"name": NAME, "namespace": NAMESPACE, "uid": NAME, "resourceVersion": str(report.sequence)}
        self._sink.put_report({"apiVersion": API_VERSION, "kind": "GatewayReport", "metadata": metadata, "spec": report.as_json()})
