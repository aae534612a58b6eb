"""The door of the inference port: token first, then admission, before a body is read. Counts each request in and surely out.

Plain ASGI, outside the framework: nothing may run between the decision to admit and the count.
"""

import asyncio
import re
import time
from typing import Any

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from corral_server.anthropic.messages import error_shape
from corral_server.openai.errors import encoded
from corral_server.supervisor import Supervisor
from corral_server.tokens import InvalidTokenError, TokenVerifier

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/health", "/v1/health"})
RESTING_PATHS = frozenset({"/v1/models", "/models", "/openapi.json", "/props", "/slots", "/metrics", "/lora-adapters"})
"""Answered whatever the model's state; they neither wake it nor count as use."""
_STORED = re.compile(r"(/v1)?/responses/(?!input_tokens$|compact$).+")
"""So are responses that are stored."""

_SMALL_BODY = 64 << 10


class Gate:
    def __init__(self, app: ASGIApp, supervisor: Supervisor, verifier: TokenVerifier) -> None:
        self._app = app
        self._supervisor = supervisor
        self._verifier = verifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if path in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id")
        sender = _with_request_id(send, request_id) if request_id else send
        authorization = headers.get(b"authorization") or (b"Bearer " + headers[b"x-api-key"] if b"x-api-key" in headers else b"")
        try:
            self._verifier.verify(authorization.decode("latin-1"), time.time())
        except InvalidTokenError as error:
            await _refuse(scope, receive, sender, 401, "invalid_token", str(error), [])
            return
        if path in RESTING_PATHS or path.startswith("/v1/models/") or _STORED.fullmatch(path):
            await self._app(scope, receive, sender)
            return
        if not self._supervisor.admit():
            state = self._supervisor.life.state
            extra = [(b"x-corral-draining", b"true"), (b"retry-after", b"1")]
            await _refuse(scope, receive, sender, 503, "not_admitting", f"the model is not being served here at the moment ({state})", extra)
            return
        try:
            await self._app(scope, receive, sender)
        finally:
            self._supervisor.release()


def _with_request_id(send: Send, request_id: bytes) -> Send:
    async def wrapped(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id)]}
        await send(message)

    return wrapped


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, code: str, message: str, extra: list[tuple[bytes, bytes]]) -> None:
    """Answer without the body. A short one is read all the same, because closing a connection with unread bytes can take the answer with it."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    chunked = b"transfer-encoding" in headers
    read = not chunked and (not length or (length.isdigit() and int(length) <= _SMALL_BODY)) and b"expect" not in headers
    if read:
        try:
            async with asyncio.timeout(1.0):
                while True:
                    part = await receive()
                    if part["type"] == "http.disconnect" or not part.get("more_body"):
                        break
        except TimeoutError:
            read = False
    body = orjson.dumps(error_shape(status, message)) if scope["path"].startswith("/v1/messages") else encoded(status, code, message)
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *extra]
    if not read:
        fields.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
