"""Errors as clients of the OpenAI API read them: all four fields, always."""

from typing import Any

import orjson

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error", 503: "unavailable_error"}
_KINDS = {"context_length_exceeded": "exceed_context_size_error", "not_supported": "not_supported_error"}
"""llama.cpp's words for what its clients tell apart by the type, OpenAI's by the code."""


class ApiError(Exception):
    """What a request is answered with when it cannot be served."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        return error_body(self.status, self.code, str(self), self.param)


def error_body(status: int, code: str, message: str, param: str | None = None, details: dict[str, Any] | None = None) -> dict[str, Any]:
    kind = _KINDS.get(code) or _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code, **(details or {})}}


def invalid(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", message, param)


def encoded(status: int, code: str, message: str) -> bytes:
    return orjson.dumps(error_body(status, code, message))
