# ruff: noqa: TRY301 - a refusal is raised where its cause is seen
"""What the data path's port answers by itself: the lists of models, llama.cpp's router API with its event stream, health, and every wrong path."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from corral.gateway import errors
from corral.gateway.bodies import ClientGone, read_whole
from corral.gateway.effects import Rejection
from corral.gateway.errors import Refused
from corral.gateway.keys import ApiKey
from corral.gateway.listing import Listing
from corral.gateway.origins import PREFLIGHT
from corral.gateway.ports import ModelView, names_of
from corral.gateway.replies import Headers, Reply
from corral.gateway.requests import Request
from corral.gateway.routes import allowed_methods, shape_of

if TYPE_CHECKING:
    from corral.gateway.app import Gateway

log = logging.getLogger("corral.gateway")

_HEALTHY = b'{"status":"ok"}'
_PUBLIC = frozenset({"/health", "/v1/health"})
_EVENTS = b"text/event-stream; charset=utf-8"
_PING_SECONDS = 15.0


class Pages:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._listing = Listing(gateway.machine)

    async def answer(self, request: Request, reply: Reply) -> None:
        path = request.path
        request_id = request.request_id()
        headers: Headers
        if request.method == b"OPTIONS":  # of a browser that asks first, without a key; or of anybody
            wanted = request.known.get(b"access-control-request-headers", b"*")
            reply.start(200, [*PREFLIGHT, (b"access-control-allow-headers", wanted), (b"content-length", b"0"), (b"x-request-id", request_id)])
            reply.finish()
            return
        try:
            if not path:
                raise Refused(Rejection(400, "invalid_request", "the request's target is no path"))
            key = None if path in _PUBLIC else self._gateway.access.authenticate(request.known)
            if path == "/models/sse" and request.method == b"GET":
                await self._events(request, request_id, reply)
                return
            body = await self._page(request, key)
            status, headers = 200, [(b"content-type", b"application/json")]
        except ClientGone:
            return
        except Refused as refused:
            rejection = refused.rejection
            status, body = rejection.status, errors.error_body(shape_of(path), rejection)
            headers = errors.error_headers(rejection) + list(refused.headers)
        except Exception:
            log.exception("%s %s failed", request.method.decode(), path)
            if reply.started:
                request.connection.cut()
                return
            rejection = Rejection(500, "internal_error", "the gateway failed at this request; its log says why")
            status, body, headers = 500, errors.error_body(shape_of(path), rejection), errors.error_headers(rejection)
        reply.start(status, [*headers, (b"content-length", b"%d" % len(body)), (b"x-request-id", request_id)])
        reply.finish(body)

    async def _page(self, request: Request, key: ApiKey | None) -> bytes:
        method, path = request.method.decode(), request.path
        access, router = self._gateway.access, self._gateway.router

        def allowed(model: ModelView, *variants: str) -> bool:
            return key is None or key.may_use(*names_of(model), *variants)

        if path in ("/models/load", "/models/unload"):
            if method != "POST":
                raise _wrong_method("POST")
            access.need(key, "admin")
            kept = await read_whole(request.read, request.known, self._gateway.bodies)
            try:
                act = router.load if path == "/models/load" else router.unload
                return act(kept.in_memory or b"", lambda model, asked: access.need_model(key, model, asked))
            finally:
                kept.close()
        pages: dict[str, Callable[[], bytes]] = {
            "/models": lambda: router.models(allowed),
            "/v1/models": lambda: self._listing.all(allowed),
            "/props": router.props,
            "/health": lambda: _HEALTHY,
            "/v1/health": lambda: _HEALTHY,
        }
        page = pages.get(path)
        if page is None and path.startswith("/v1/models/"):
            page = partial(self._listing.one, path[len("/v1/models/") :], allowed)
        if page is not None:
            if method not in ("GET", "HEAD"):
                raise _wrong_method("GET")
            return page()
        methods = allowed_methods(path)
        if methods:
            raise _wrong_method(", ".join(sorted(methods)))
        raise Refused(Rejection(404, "not_found", f"there is nothing at {method} {path}"))

    async def _events(self, request: Request, request_id: bytes, reply: Reply) -> None:
        """`GET /models/sse`, until its client or this gateway goes."""
        router = self._gateway.router
        queue = router.subscribe()
        request.connection.on_gone = lambda: _put_end(queue)
        headers = [(b"content-type", _EVENTS), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"), (b"x-request-id", request_id)]
        try:
            reply.start(200, headers)
            await reply.write(b": connected\n\n")
            while True:
                try:
                    async with asyncio.timeout(_PING_SECONDS):
                        event = await queue.get()
                except TimeoutError:
                    event = b": ping\n\n"
                if event is None:
                    break
                await reply.write(event)
            reply.finish()
        finally:
            router.unsubscribe(queue)


def _put_end(queue: asyncio.Queue[bytes | None]) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(None)


def _wrong_method(allowed: str) -> Refused:
    return Refused(Rejection(405, "method_not_allowed", f"use {allowed} here"), ((b"allow", allowed.encode()),))
