"""A supervisor that speaks the control port's HTTP on 127.0.0.1 and has no engine: the real lifecycle, loads that take an instant.

A test can hold loads back, make them fail, and look at every call before and after it takes effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import jwt
from aiohttp import web

from corral_server.lifecycle import Lifecycle, Problem, Refusal, State, Wake

Hook = Callable[[str, int], Awaitable[None]]
"""Called with the step's name and the caller's epoch."""


def rfc3339(seconds: float | None) -> str | None:
    return None if not seconds else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def seconds_of(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


class FakeSupervisor:
    def __init__(self, uid: str, total: int, residue: int, hook: Hook, changed: Callable[[], None]) -> None:
        self.uid = uid
        self.total = total
        self.residue = residue
        self.life = Lifecycle()
        self.fail_next: list[Problem] = []
        self.download_error: Problem | None = None
        self.load_gate = asyncio.Event()
        self.load_gate.set()
        self.calls: list[tuple[str, int]] = []
        self.port = 0
        self._hook = hook
        self._changed_outside = changed
        self._change = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/control/status", self._status)
        for call in ("drain", "resume", "sleep", "wake", "warm"):
            app.router.add_post(f"/control/{call}", self._order)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.life.downloading()
        if self.download_error is not None:
            self.life.download_failed(self.download_error)
        else:
            self.life.downloaded({"bytes": 1, "path": "x"}, 0.01)
        self.told()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    @property
    def resident(self) -> bool:
        return self.life.state in (State.LOADING, State.LOADED, State.DRAINING)

    def told(self) -> None:
        """Something changed: whoever polls is answered, and the world looks."""
        self._change.set()
        self._change = asyncio.Event()
        self._changed_outside()

    def admit(self) -> bool:
        admitted = self.life.admit(time.time())
        self.told()
        return admitted

    def release(self) -> None:
        self.life.release(time.time())
        self.told()

    def _body(self) -> dict[str, Any]:
        life = self.life
        error = life.error
        return {
            "version": life.version,
            "state": life.state.value,
            "admitting": life.admitting,
            "progress": life.progress,
            "inFlight": life.in_flight,
            "queued": 0,
            "slots": 4,
            "lastUsed": rfc3339(life.last_used),
            "served": life.served,
            "epoch": life.epoch,
            "memory": {**life.memory, "residue": life.residue},
            "load": life.timings,
            "loads": life.loads,
            "devices": list(life.wake_order.devices) if life.wake_order else [],
            "error": {"reason": error.reason, "message": error.message, "retry": error.retry, "at": rfc3339(error.at)} if error else None,
            "model": {"contextLength": 2048, "architecture": "llama"},
            "cached": list(life.cached),
        }

    def _claims(self, request: web.Request) -> dict[str, Any]:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        claims = jwt.decode(token, options={"verify_signature": False, "verify_aud": False})
        if claims["aud"] != self.uid:
            raise web.HTTPUnauthorized
        return claims

    async def _status(self, request: web.Request) -> web.Response:
        self._claims(request)
        after = request.query.get("after")
        until = time.monotonic() + float(request.query.get("wait", "0s").removesuffix("s"))
        while after is not None and int(after) == self.life.version and time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._change.wait(), until - time.monotonic())
        return web.json_response(self._body())

    async def _order(self, request: web.Request) -> web.Response:
        claims, call, body = self._claims(request), request.path.rpartition("/")[2], await request.json()
        epoch = int(claims["epoch"])
        if not self.life.fence(epoch):
            return _error("StaleEpoch", f"epoch {self.life.epoch} has spoken", epoch=self.life.epoch)
        await self._hook(f"{call}:heard", epoch)
        self.calls.append((call, epoch))
        answer = self._carry_out(call, body)
        self.told()
        await self._hook(f"{call}:done", epoch)
        return answer

    def _carry_out(self, call: str, body: dict[str, Any]) -> web.Response:
        life, now = self.life, time.time()
        if call == "drain":
            since, deadline = seconds_of(body.get("ifUnusedSince")), seconds_of(body.get("deadline"))
            ttl = float(body["ttl"].removesuffix("s"))
            if life.drain(now, if_idle=bool(body.get("ifIdle")), if_unused_since=since, ttl=ttl, deadline=deadline):
                return web.json_response({"inFlight": life.in_flight})
            return web.json_response({"inFlight": life.in_flight, "lastUsed": rfc3339(life.last_used)}, status=409)
        if call == "resume":
            life.resume()
            return web.json_response({})
        if call == "sleep":
            refusal = life.may_sleep()
            if refusal is not None:
                return _error(refusal.code, refusal.message)
            if life.state is State.DRAINING:
                life.asleep(self.residue)
            return web.json_response({"memory": {"residue": self.residue}})
        if call == "warm":
            return web.json_response({}, status=202)
        took = life.wake(Wake(tuple(body["devices"]), tuple(body["split"]), body["deviceKind"]))
        if isinstance(took, Refusal):
            return _error(took.code, took.message)
        if took:
            task = asyncio.create_task(self._load())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return web.json_response({}, status=202 if took else 200)

    async def _load(self) -> None:
        await asyncio.sleep(0)
        await self.load_gate.wait()
        if self.fail_next:
            self.life.load_failed(self.fail_next.pop(0), self.residue)
        else:
            self.life.loaded(
                {"contextLength": 2048}, {"weights": self.total, "kvCache": 0, "compute": 0, "total": self.total}, {"load": 0.01, "total": 0.01}
            )
        self.told()

    def cache_has(self, *keys: str) -> None:
        """It looked into the cache of its node."""
        self.life.cache_has(keys)
        self.told()

    def end_streams(self) -> None:
        """What the lifecycle owes to time: end of a drain's ttl, end of a turn."""
        self.life.due(time.time())


def _error(code: str, message: str, **more: Any) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message, **more}}, status=409)
