"""Errors as clients of each API expect them: the body of an error answer, and the event that ends a stream which has already begun."""

from __future__ import annotations

import orjson

from corral.gateway.effects import Rejection
from corral.gateway.routes import Shape

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not a fault
    """Ends the handling of a request with an answer of the gateway's own. The one exception that handlers raise on purpose."""

    def __init__(self, rejection: Rejection, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(rejection.message)
        self.rejection = rejection
        self.headers = headers


def refuse(status: int, code: str, message: str, *, retry_after: int | None = None) -> Refused:
    return Refused(Rejection(status, code, message, retry_after=retry_after))


def error_type(shape: Shape, status: int) -> str:
    if shape is Shape.ANTHROPIC:
        return _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def error_body(shape: Shape, rejection: Rejection, *, param: str | None = None) -> bytes:
    kind = error_type(shape, rejection.status)
    if shape is Shape.ANTHROPIC:
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": rejection.message, "code": rejection.code}})
    return orjson.dumps({"error": {"message": rejection.message, "type": kind, "param": param, "code": rejection.code}})


def error_event(shape: Shape, rejection: Rejection) -> bytes:
    """One event, complete with its blank line, after which the stream ends."""
    if shape is Shape.ANTHROPIC:
        return b"event: error\ndata: " + error_body(shape, rejection) + b"\n\n"
    if shape is Shape.RESPONSES:
        event = {"type": "error", "code": rejection.code, "message": rejection.message, "param": None, "sequence_number": 0}
        return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n"
    return b"data: " + error_body(shape, rejection) + b"\n\n"


def error_headers(rejection: Rejection) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", b"application/json")]
    if rejection.retry_after is not None:
        headers.append((b"retry-after", str(rejection.retry_after).encode()))
    return headers


def from_pod(status: int, body: bytes) -> Rejection:
    """A pod's error answer, for a stream that has already begun."""
    message, code = "", "upstream_error"
    try:
        told = orjson.loads(body)
        error = told.get("error", told) if isinstance(told, dict) else {}
        if isinstance(error, dict):
            message = str(error.get("message") or "")
            code = str(error.get("code") or error.get("type") or code)
    except orjson.JSONDecodeError:
        pass
    return Rejection(status, code, message or f"the model's server answered {status}")
