"""The second port: /healthz (the process answers), /readyz (it may be routed to), /metrics. For the cluster, not for clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corral.gateway.app import Gateway

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
TEXT = b"text/plain; charset=utf-8"
_METRICS = b"text/plain; version=0.0.4; charset=utf-8"


class Admin:
    """An ASGI application."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Send) -> None:  # noqa: ARG002 - ASGI's form
        status, kind, body = self._page(scope.get("path", ""))
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

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
