"""The fleet bench's nodes and supervisors in one process: every server pod that the scheduler placed runs at once, and one HTTP server answers for
all of them, by the address that was called. A supervisor's life is the real one; its loads take no time.
"""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web
from fleet_cluster import NAMESPACE
from tests.support.fake_supervisor import FakeSupervisor

from corral.kube.client import PODS, STRATEGIC_MERGE, KubeClient
from corral.kube.pods import COMPONENT, CONTAINER
from corral.kube.ports import COMMIT, MODEL_LABEL, Gone
from corral.kube.watch import Object, Reflector, Target

PORT = 8081


class Supervisor(FakeSupervisor):
    """Answers at the common port."""

    def __init__(self, key: str, model: str, uid: str, total: int, told: Callable[["Supervisor"], None]) -> None:
        super().__init__(uid, total, 100 << 20, self._nothing, lambda: told(self))
        self.key, self.model = key, model
        self.life.downloading()
        self.life.downloaded({"bytes": 1, "path": "x"}, 0.01)

    async def _nothing(self, _step: str, _epoch: int) -> None:
        return

    async def handle(self, request: web.Request) -> web.StreamResponse:
        return await (self._status(request) if request.method == "GET" else self._order(request))


class Fleet:
    """`decided(model)`: a pod was made for it, or a commitment written. `changed(supervisor)`: its life went on."""

    def __init__(self, client: KubeClient, needs: dict[str, int], changed: Callable[[Supervisor], None], decided: Callable[[str], None]) -> None:
        self._client = client
        self._needs = needs
        self._changed = changed
        self._decided = decided
        self.pods: dict[str, Supervisor] = {}
        self._by_address: dict[str, Supervisor] = {}
        self._addresses = (f"10.200.{number // 250}.{number % 250 + 1}" for number in range(1, 64_000))
        self._commits: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self.reflector = Reflector(
            client, PODS.path(NAMESPACE), Target(self._put, self._gone, lambda: None), labels=f"{COMPONENT}=server", trim=_trim
        )

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/control/{call}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True, keepalive_timeout=120)
        await self._runner.setup()
        await web.TCPSite(self._runner, "0.0.0.0", PORT, backlog=4096).start()
        self._spawn(self.reflector.run())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    def of(self, model: str) -> list[Supervisor]:
        return [it for it in self.pods.values() if it.model == model]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        found = self._by_address.get(request.transport.get_extra_info("sockname")[0]) if request.transport else None
        if found is None:
            raise web.HTTPServiceUnavailable
        return await found.handle(request)

    def _put(self, obj: Object) -> None:
        name = obj["name"]
        model = f"{NAMESPACE}/{obj['model']}"
        if obj["commit"] != self._commits.get(name, ""):
            self._commits[name] = obj["commit"]
            if obj["commit"]:
                self._decided(model)
        if obj["deleting"]:
            self._spawn(self._end(name))
        elif name not in self.pods:
            if name not in self._commits or obj["new"]:
                self._decided(model)
            if obj["node"]:
                self.pods[name] = supervisor = Supervisor(name, model, obj["uid"], self._needs[model], self._changed)
                self._spawn(self._run(name, supervisor))

    def _gone(self, _namespace: str, name: str, _uid: str) -> None:
        self._commits.pop(name, None)
        self.pods.pop(name, None)

    async def _run(self, name: str, supervisor: Supervisor) -> None:
        address = next(self._addresses)
        self._by_address[address] = supervisor
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        status = {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "startTime": now,
            "conditions": [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in ("Initialized", "ContainersReady", "Ready")],
            "containerStatuses": [
                {"name": CONTAINER, "ready": True, "started": True, "restartCount": 0, "image": "x", "imageID": "x",
                    "state": {"running": {"startedAt": now}}}
            ],
        }  # fmt: skip
        await self._client.patch(PODS.path(NAMESPACE, name, "status"), {"status": status}, STRATEGIC_MERGE)

    async def _end(self, name: str) -> None:
        try:
            await self._client.delete(PODS.path(NAMESPACE, name), grace=0)
        except Gone:
            return

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            print(f"a task of the fleet failed: {task.exception()!r}", flush=True)


def _trim(obj: Object) -> Object:
    metadata = obj["metadata"]
    return {
        "metadata": {key: metadata.get(key, "") for key in ("name", "namespace", "uid", "resourceVersion")},
        "name": metadata["name"], "uid": metadata["uid"], "model": metadata["labels"][MODEL_LABEL],
        "node": obj["spec"].get("nodeName", ""), "deleting": "deletionTimestamp" in metadata,
        "commit": (metadata.get("annotations") or {}).get(COMMIT, ""), "new": not obj["spec"].get("nodeName"),
    }  # fmt: skip


def commitments(pods: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """Bytes that the pods' annotations give away, by node and device."""
    found: dict[tuple[str, str], int] = {}
    for pod in pods:
        text = (pod["metadata"].get("annotations") or {}).get(COMMIT)
        terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        node = terms[0]["matchFields"][0]["values"][0]
        for device, count in (json.loads(text)["devices"] if text else {}).items():
            found[node, device] = found.get((node, device), 0) + count
    return found
