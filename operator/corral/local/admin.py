"""What `corral get`, `corral explain` and `corral top` ask a running `corral up`: a small HTTP surface on loopback, read only.

The address and a token are in `admin.json` of the run directory, readable by its owner alone.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from corral.local.events import EventLog
from corral.local.folder import Folder
from corral.local.pods import LocalPods
from corral.local.registry import Registry
from corral.local.rundir import RunDir, write_whole

LONGEST_WAIT = 60.0


class Admin:
    def __init__(self, registry: Registry, pods: LocalPods, events: EventLog, folder: Folder, plan_view: Callable[[], Any]) -> None:
        self._registry = registry
        self._pods = pods
        self._events = events
        self._folder = folder
        self._plan_view = plan_view
        self._token = secrets.token_urlsafe(24)
        self._runner: web.AppRunner | None = None

    async def start(self, run_dir: RunDir, told: Mapping[str, Any]) -> None:
        app = web.Application(middlewares=[self._authorized])
        app.add_routes([web.get("/state", self._state), web.get("/events", self._follow), web.get("/plan", self._plan)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        content = {**told, "pid": os.getpid(), "address": f"http://127.0.0.1:{port}", "token": self._token}
        write_whole(run_dir.admin, json.dumps(content))

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _authorized(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            raise web.HTTPUnauthorized(text="the token of admin.json is needed")
        return await handler(request)

    async def _state(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                "models": sorted(self._registry.of_kind("ModelDeployment"), key=_name),
                "pools": sorted(self._registry.of_kind("ModelPool"), key=_name),
                "pods": [
                    {
                        "namespace": record.namespace,
                        "name": record.name,
                        "uid": record.uid,
                        "model": record.model,
                        "inferencePort": record.inference_port,
                        "controlPort": record.control_port,
                        "running": record.running,
                        "restarts": record.restarts,
                        "message": record.message,
                        "memoryRequest": record.memory_request,
                        "pid": self._pods.pid_of(record),
                        "log": str(self._pods.log_file(record)),
                    }
                    for record in self._pods.records
                ],
                "problems": list(self._folder.problems),
            }
        )

    async def _follow(self, request: web.Request) -> web.Response:
        try:
            after, wait = int(request.query.get("after", "0")), min(float(request.query.get("wait", "0")), LONGEST_WAIT)
        except ValueError:
            raise web.HTTPBadRequest(text="after is a number of an event, wait a number of seconds") from None
        found = await self._events.wait_after(after, wait) if wait > 0 else self._events.after(after)
        return web.json_response({"events": [event.as_json() for event in found]})

    async def _plan(self, _request: web.Request) -> web.Response:
        return web.json_response(self._plan_view(), dumps=lambda value: json.dumps(value, default=str))


def _name(obj: Mapping[str, Any]) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
