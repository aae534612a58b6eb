"""The control port: status by long poll, drain, resume, sleep, wake, health. Shapes are the contract's; decisions are the life cycle's."""

import asyncio
import contextlib
import time
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from corral_server.lifecycle import Refusal, State, Wake
from corral_server.metrics import CONTENT_TYPE, exposition
from corral_server.quantities import parse_seconds, parse_time, rfc3339
from corral_server.supervisor import Supervisor
from corral_server.tokens import CONTROL, Claims, InvalidTokenError, TokenVerifier

_MAX_BODY = 1 << 20
_MAX_WAIT = 300.0


class _AnswerError(Exception):
    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"code": code, "message": message, **more}}


def answer(body: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def status_of(supervisor: Supervisor) -> dict[str, Any]:
    life = supervisor.life
    memory = {"weights": 0, "kvCache": 0, "compute": 0, "other": 0, "total": 0, **life.memory, "residue": life.residue}
    load = {"download": 0.0, "start": 0.0, "load": 0.0, "warmup": 0.0, "total": 0.0, **life.timings}
    error = life.error
    return {
        "version": life.version,
        "state": life.state.value,
        "admitting": life.admitting,
        "progress": round(life.progress, 3),
        "inFlight": life.in_flight,
        "queued": supervisor.queued,
        "slots": supervisor.spec.engine.slots,
        "lastUsed": rfc3339(life.last_used) if life.last_used is not None else None,
        "served": life.served,
        "epoch": life.epoch,
        "memory": memory,
        "load": {k: round(v, 4) for k, v in load.items()},
        "loads": life.loads,
        "devices": list(life.wake_order.devices) if life.wake_order is not None else [],
        "error": {"reason": error.reason, "message": error.message, "retry": error.retry, "at": rfc3339(error.at)} if error else None,
        "file": life.file,
        "cached": list(life.cached),
        "model": {k: life.model[k] for k in ("contextLength", "architecture", "pooling", "warning") if k in life.model},
    }


def ready(supervisor: Supervisor) -> bool:
    return supervisor.life.state in (State.SLEEPING, State.LOADED, State.LOADING, State.DRAINING) and not supervisor.life.stopping


def make_control_app(supervisor: Supervisor, verifier: TokenVerifier) -> FastAPI:
    app = FastAPI(title="corral server: control", docs_url=None, redoc_url=None)

    def caller(request: Request, *, status_only: bool = False) -> Claims:
        try:
            claims = verifier.verify(request.headers.get("authorization"), time.time())
        except InvalidTokenError as error:
            raise _AnswerError(401, "invalid_token", str(error)) from None
        if claims.scope != CONTROL and not status_only:
            raise _AnswerError(401, "invalid_token", f"this call needs a token of scope control, not {claims.scope}")
        if not status_only:
            if not supervisor.life.fence(claims.epoch):
                newest = supervisor.life.epoch
                raise _AnswerError(409, "StaleEpoch", f"epoch {claims.epoch} is older than {newest}; another leader took over", epoch=newest)
            supervisor.notify_cheaply()
        return claims

    @app.exception_handler(_AnswerError)
    async def _refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, _AnswerError)  # noqa: S101  registered for this class
        return answer(error.body, error.status)

    async def body_of(request: Request) -> dict[str, Any]:
        raw = b""
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > _MAX_BODY:
                raise _AnswerError(413, "too_large", f"the body is longer than {_MAX_BODY} bytes")
        try:
            body = orjson.loads(raw) if raw.strip() else {}
        except orjson.JSONDecodeError as error:
            raise _AnswerError(400, "invalid_json", f"the body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise _AnswerError(400, "invalid_json", "the body has to be a JSON object")
        return body

    def seconds(value: Any, name: str) -> float:
        try:
            return parse_seconds(value)
        except (ValueError, TypeError) as error:
            raise _AnswerError(400, "invalid_value", f"{name}: {error}") from None

    def moment(value: Any, name: str) -> float | None:
        if value is None:
            return None
        try:
            return parse_time(value)
        except (ValueError, TypeError) as error:
            raise _AnswerError(400, "invalid_value", f"{name}: {error}") from None

    @app.get("/control/status")
    async def status(request: Request) -> Response:
        caller(request, status_only=True)
        after, wait = request.query_params.get("after"), request.query_params.get("wait", "0s")
        if after is not None:
            if not after.isdigit():
                raise _AnswerError(400, "invalid_value", f"after is {after!r}; it has to be a version number")
            limit = min(seconds(wait, "wait"), _MAX_WAIT)
            if supervisor.life.version == int(after) and limit > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(supervisor.changed(int(after)), limit)
        return answer(status_of(supervisor))

    @app.post("/control/drain")
    async def drain(request: Request) -> Response:
        caller(request)
        body = await body_of(request)
        life = supervisor.life
        done = life.drain(
            time.time(),
            if_idle=bool(body.get("ifIdle", False)),
            if_unused_since=moment(body.get("ifUnusedSince"), "ifUnusedSince"),
            ttl=seconds(body.get("ttl", "10s"), "ttl"),
            deadline=moment(body.get("deadline"), "deadline"),
        )
        supervisor.notify()
        if done:
            return answer({"inFlight": life.in_flight})
        return answer({"inFlight": life.in_flight, "lastUsed": rfc3339(life.last_used) if life.last_used is not None else None}, 409)

    @app.post("/control/resume")
    async def resume(request: Request) -> Response:
        caller(request)
        supervisor.life.resume()
        supervisor.notify()
        return answer({"inFlight": supervisor.life.in_flight})

    @app.post("/control/sleep")
    async def sleep(request: Request) -> Response:
        caller(request)
        refusal = await supervisor.sleep()
        if refusal is not None:
            raise _AnswerError(409, refusal.code, refusal.message)
        return answer({"memory": status_of(supervisor)["memory"]})

    @app.post("/control/wake")
    async def wake(request: Request) -> Response:
        caller(request)
        body = await body_of(request)
        devices, kind = body.get("devices") or [], body.get("deviceKind") or "host"
        split = body.get("split") or [1.0]
        if kind not in ("gpu", "host"):
            raise _AnswerError(400, "invalid_value", f"deviceKind is {kind!r}; it has to be gpu or host")
        if not isinstance(devices, list) or not all(isinstance(d, str) for d in devices):
            raise _AnswerError(400, "invalid_value", "devices has to be a list of device ids")
        if not isinstance(split, list) or not all(isinstance(s, (int, float)) and s >= 0 for s in split):
            raise _AnswerError(400, "invalid_value", "split has to be a list of shares, one a device")
        result = supervisor.wake(Wake(tuple(devices), tuple(float(s) for s in split), kind))
        if isinstance(result, Refusal):
            raise _AnswerError(409, result.code, result.message)
        loaded = result is False and supervisor.life.state is State.LOADED
        return answer({"state": supervisor.life.state.value}, 200 if loaded else 202)

    @app.post("/control/warm")
    async def warm(request: Request) -> Response:
        caller(request)
        refusal = supervisor.warm()
        if refusal is not None:
            raise _AnswerError(409, refusal.code, refusal.message)
        return answer({}, 202)

    @app.get("/healthz")
    async def healthz() -> Response:
        return answer({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        engine = supervisor.engine
        body = exposition(supervisor.life, supervisor.totals, processing=engine.active if engine else 0, queued=supervisor.queued)
        return Response(body, media_type=CONTENT_TYPE)

    @app.get("/readyz")
    async def readyz() -> Response:
        fine = ready(supervisor)
        return answer({"ready": fine, "state": supervisor.life.state.value}, 200 if fine else 503)

    return app
