"""Which web pages may read answers (CORS). A pure decision over the `Origin` that a browser sends.

Where keys are asked for, a page needs a key as any client does, so every page may. Without keys only pages of the gateway's own machine may: else any
site that a user visits could use the models of the user's machine or company.
"""

from __future__ import annotations

from urllib.parse import urlsplit

_HERE = frozenset({"localhost", "127.0.0.1", "::1"})
_TOLD = b"x-request-id, x-corral-model, x-corral-replica, x-corral-waited-ms, x-should-retry, retry-after"
_LIMITS = b", ".join(b"x-ratelimit-%b-%b" % (what, of) for what in (b"limit", b"remaining", b"reset") for of in (b"requests", b"tokens"))
_REST = b"\r\nvary: origin\r\naccess-control-expose-headers: %b, %b\r\n" % (_TOLD, _LIMITS)
PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST, DELETE"),
    (b"access-control-max-age", b"600"),
]


def nobody(origin: bytes) -> bytes:  # noqa: ARG001 - a choice of `Shared`
    return b"vary: origin\r\n"


def allowing(origin: bytes, *, everybody: bool) -> bytes:
    """The header lines of an answer to a page of this origin."""
    if everybody or _is_here(origin):
        return b"access-control-allow-origin: " + origin + _REST
    return b"vary: origin\r\n"


def _is_here(origin: bytes) -> bool:
    try:
        return urlsplit(origin.decode("ascii")).hostname in _HERE
    except ValueError:
        return False
