"""One request of a client, as its connection has parsed it: what it asks, which of its headers go on, and its body as it comes.

It owns the rules that keep a request from meaning one thing here and another elsewhere. It never decides where a request goes.
"""

from __future__ import annotations

import asyncio
import os
import re
from itertools import count
from typing import TYPE_CHECKING
from urllib.parse import unquote

import httptools

from corral.gateway.bodies import ClientGone

if TYPE_CHECKING:
    from corral.gateway.connections import ClientConnection

HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-authenticate"}
)
KEPT_HERE = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"authorization",
    b"x-api-key",
    b"cookie",
    b"accept-encoding",
    b"expect",
    b"x-request-id",
    b"proxy-authorization",
    b"http2-settings",
    b"origin",
}
"""Headers of a request that are not sent on."""
LOOKED_AT = frozenset({b"access-control-request-headers", b"content-type", b"content-encoding", b"traceparent", b"tracestate"})
"""Headers that are sent on and are read here as well."""
PLAIN = frozenset({b"accept", b"user-agent", b"accept-language"})
"""Headers that go on and mean nothing here: those that nearly every client sends."""
_ONCE = frozenset({b"host", b"content-length", b"transfer-encoding"})
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]*|\[[0-9A-Fa-fvV:.%]+\])(?::[0-9]*)?")
_id_prefix = os.urandom(8).hex().encode()
_id_count = count(int.from_bytes(os.urandom(4), "little"))


class Request:
    """Filled by its connection. The head is whole before anybody else sees it; the body may still come."""

    __slots__ = (
        "answered", "complete", "connection", "expects_continue", "held", "keep_alive", "known", "method", "old", "passing", "path", "pieces",
        "query", "target", "twice", "waiter",
    )  # fmt: skip

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.method = b""
        self.target = b""
        self.path = ""
        self.query = b""
        self.known: dict[bytes, bytes] = {}
        """The headers that are read here, by their names in lower case."""
        self.passing: list[bytes] = []
        """The headers that go on: name, colon, value, end of line, and so forth."""
        self.twice = False
        self.pieces: list[bytes] = []
        self.held = 0
        """Bytes of the body that nobody has taken yet."""
        self.complete = False
        self.answered = False
        """Whatever still comes of the body is thrown away."""
        self.expects_continue = False
        self.keep_alive = True
        self.old = False
        """HTTP/1.0: it knows no chunks."""
        self.waiter: asyncio.Future[None] | None = None

    def add(self, name: bytes, value: bytes) -> None:
        """One header, its name in lower case."""
        if name in KEPT_HERE:
            if name not in self.known:
                self.known[name] = value
            elif name == b"connection":
                self.known[name] += b"," + value
            elif name in _ONCE:
                self.twice = True
            return
        if name.startswith(b"x-corral-"):
            self.known.setdefault(name, value)
            return
        if name in LOOKED_AT:
            self.known.setdefault(name, value)
        self.passing += (name, b": ", value, b"\r\n")

    def fault(self, version: str) -> str | None:
        """What makes it ambiguous for anybody in front of or behind us."""
        known = self.known
        if version not in ("1.0", "1.1"):
            return f"HTTP/{version} is not spoken here"
        coding = known.get(b"transfer-encoding")
        if coding is not None:
            if version == "1.0":
                return "a transfer-encoding in HTTP/1.0"
            if coding.strip().lower() != b"chunked":
                return "a transfer-encoding other than chunked"
            if b"content-length" in known:
                return "both content-length and transfer-encoding"
        if self.twice:
            return "host or the body's length is given twice"
        host = known.get(b"host")
        if host is None:
            return "the host must be given once" if version != "1.0" else None
        if not _HOST.fullmatch(host):
            return "the host is none"
        return None

    def split(self) -> bool:
        """Take the target apart. False when it is none that an origin server knows."""
        try:
            url = httptools.parse_url(self.target)
        except httptools.HttpParserError:
            return False
        raw: bytes = url.path or b""
        if not raw.startswith(b"/"):
            return False
        self.query = url.query or b""
        self.target = raw + b"?" + self.query if self.query else raw
        self.path = raw.decode("ascii", "replace")
        if "%" in self.path:
            self.path = unquote(self.path)
        return True

    def request_id(self) -> bytes:
        """The client's, when it is fit to be repeated; else a new one."""
        given = self.known.get(b"x-request-id")
        if given and _REQUEST_ID.fullmatch(given):
            return given
        return b"%b%016x" % (_id_prefix, next(_id_count))

    # The body

    def take(self) -> bytes:
        """What has come of the body and was not taken."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.pieces = []
        self.held = 0
        return data

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def read(self) -> tuple[bytes, bool]:
        """The next bytes of the body, all that are there, and whether more will come. Raises ClientGone."""
        while not self.pieces and not self.complete:
            if self.connection.lost:
                raise ClientGone
            self.connection.want_body(self)
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        data = self.take()
        self.connection.took_body()
        return data, not self.complete
