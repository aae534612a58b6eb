"""The operator's own port: /healthz, /readyz and /metrics. It owns a listening socket and asks others what is true."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4


class HealthServer:
    """`alive` and `ready` answer with what is wrong, empty: nothing."""

    def __init__(self, port: int, alive: Callable[[], str], ready: Callable[[], str]) -> None:
        self._port = port
        self._alive = alive
        self._ready = ready
        self.registry: CollectorRegistry | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.add_routes([web.get("/healthz", self._healthz), web.get("/readyz", self._readyz), web.get("/metrics", self._metrics)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "0.0.0.0", self._port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _verdict(self._alive())

    async def _readyz(self, _request: web.Request) -> web.Response:
        return _verdict(self._ready())

    async def _metrics(self, _request: web.Request) -> web.Response:
        own = generate_latest(self.registry) if self.registry is not None else b""
        return web.Response(body=generate_latest(REGISTRY) + own, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


def _verdict(wrong: str) -> web.Response:
    return web.Response(status=503 if wrong else 200, text=f"{wrong or 'ok'}\n")
