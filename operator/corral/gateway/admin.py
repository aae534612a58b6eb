"""The second port: /healthz (the process answers), /readyz (it may be routed to), /metrics. For the cluster, not for clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corral.gateway.replies import Reply
from corral.gateway.requests import Request

if TYPE_CHECKING:
    from corral.gateway.app import Gateway

TEXT = b"text/plain; charset=utf-8"
_METRICS = b"text/plain; version=0.0.4; charset=utf-8"


class Admin:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def serve(self, request: Request, reply: Reply) -> None:
        """`connections.Serve`."""
        status, kind, body = self._page(request.path if request.split() else "")
        reply.start(status, [(b"content-type", kind), (b"content-length", b"%d" % len(body))])
        reply.finish(body)

    def _page(self, path: str) -> tuple[int, bytes, bytes]:
        if path == "/healthz":
            return 200, TEXT, b"ok\n"
        if path == "/readyz":
            if self._gateway.ready:
                return 200, TEXT, b"ok\n"
            return 503, TEXT, b"stopping\n" if self._gateway.stopping else b"the list of models is not read yet\n"
        if path == "/metrics":
            return 200, _METRICS, self._gateway.metrics_page()
        return 404, TEXT, b"not found\n"
