"""One client connection: HTTP/1.1 as a server speaks it, strict about what a request may look like and how long it may take.

It parses with httptools, hands one request after the other to whoever serves them, keeps pipelined ones in their order, and tells the running one
when its client is gone. It never looks into a body, and knows nothing of routes.

Several callbacks run inside the parser, so nothing in them may start a request: that is done when the parser has returned.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools

from corral.gateway.origins import nobody
from corral.gateway.replies import Reply
from corral.gateway.requests import KEPT_HERE, PLAIN, Request
from corral.gateway.settings import GatewaySettings

BODY_HIGH_WATER = 64 * 1024
"""Bytes of a body that wait to be taken before the client's connection is paused."""
PIPELINE_MAX = 16
"""Requests that wait behind the running one before the client's connection is paused."""
HOSTS_MAX = 256
LINGER = 2.0
"""Seconds for which a connection that was refused is still read."""
FRAMING_PER_BYTE = 16
"""Bytes of chunk sizes, extensions and trailers that a body may have for each of its own, beside as many as headers may have."""

Serve = Callable[[Request, Reply], None]


class Shared:
    """What the connections of one port have in common."""

    def __init__(self, serve: Serve, settings: GatewaySettings, allow_origin: Callable[[bytes], bytes] = nobody) -> None:
        self.serve = serve
        self.allow_origin = allow_origin
        """What an answer says to a browser whose page is of this origin."""
        self.settings = settings
        self.connections: set[ClientConnection] = set()
        self.date_line = b""
        self.hosts: set[bytes | None] = set()
        """Hosts that were looked at and are well formed."""

    def know(self, host: bytes | None) -> None:
        if host is not None:
            if len(self.hosts) >= HOSTS_MAX:
                self.hosts.clear()
            self.hosts.add(host)


class ClientConnection(asyncio.Protocol):
    """One connection; `current` is the request that is being answered."""

    transport: asyncio.Transport
    current: Request | None = None
    on_gone: Callable[[], None] | None = None
    on_writable: Callable[[], None] | None = None
    lost = False
    write_paused = False
    closing_after_next = False
    _parsing: Request | None = None
    _header_bytes = 0
    _body_bytes = 0
    _sent_bytes = 0
    """All that came since the headers' end, framing and trailers too."""
    _in_headers = True
    _paused = False
    _starting = False
    _resuming = False
    _deaf = False
    """Whatever still comes is no request."""
    _discarding = False
    _leaving = False
    _stalled_since: float | None = None
    _write_waiter: asyncio.Future[None] | None = None
    _deadline: float | None
    """By when the headers have to be in, or an idle connection to be used. One sweep looks at all: a timer for each request costs too much."""

    def __init__(self, shared: Shared, loop: asyncio.AbstractEventLoop) -> None:
        self.shared = shared
        self.loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only
        self.shared.connections.add(self)
        self._deadline = self.loop.time() + self.shared.settings.header_timeout

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's form
        self.lost = True
        self.shared.connections.discard(self)
        self._waiting.clear()
        for request in (self.current, self._parsing):
            if request is not None:
                request.wake()
        self._wake_writer()
        gone, self.on_gone = self.on_gone, None
        self.on_writable = None
        if gone is not None:
            gone()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._in_headers:
            settings = self.shared.settings
            if not self._header_bytes:
                self._deadline = self.loop.time() + settings.header_timeout
            self._header_bytes += len(data)
            if self._header_bytes > settings.max_header and b"\r\n\r\n" not in data[: settings.max_header]:
                self._refuse(b"431 Request Header Fields Too Large")
                return
        else:
            self._sent_bytes += len(data)
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._body_follows():
                    raise
                self._parser.feed_data(data[upgrade.args[0] :])
        except httptools.HttpParserUpgrade:
            # The wish to speak another protocol is not granted; the request itself is as good as any. What follows it is not looked at.
            self._deaf = True
            for waiting in self._waiting:
                waiting.keep_alive = False
            if self.current is not None:
                self.current.keep_alive = self.current.keep_alive and bool(self._waiting)
        except httptools.HttpParserError as error:
            if not self._only_the_rest():
                self._malformed(error)
                return
        if self._header_bytes > self.shared.settings.max_header or self._framing_is_too_much():
            self._refuse(b"431 Request Header Fields Too Large")
            return
        if self._waiting and self.current is None and not self.write_paused:
            self._start()
        if len(self._waiting) > PIPELINE_MAX:
            self._pause()
        request = self._parsing
        if request is not None and request.held > BODY_HIGH_WATER:
            self._pause()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._stalled_since = None
        self._wake_writer()
        if self.on_writable is not None:
            self.on_writable()
        if self.current is None and self._waiting and not self._starting:
            self._start()
        self._may_resume()

    # httptools

    def on_message_begin(self) -> None:
        if not self._resuming:
            self._parsing = Request(self)

    def on_url(self, url: bytes) -> None:
        if self._resuming:
            return
        assert self._parsing is not None  # noqa: S101 - on_message_begin comes first
        self._parsing.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._parsing
        if self._in_headers and request is not None:  # trailers are thrown away
            name = name.lower()
            if name in PLAIN:
                request.passing += (name, b": ", value, b"\r\n")
            elif name in KEPT_HERE and name not in request.known:
                request.known[name] = value
            else:
                request.add(name, value)

    def on_headers_complete(self) -> None:
        if self._resuming:
            return
        self._in_headers = False
        self._header_bytes = self._body_bytes = self._sent_bytes = 0
        self._deadline = None
        request, parser = self._parsing, self._parser
        assert request is not None  # noqa: S101 - on_message_begin comes first
        request.method = parser.get_method()
        known = request.known
        request.keep_alive = parser.should_keep_alive()
        version = parser.get_http_version()
        if version == "1.0":
            request.old = True
            request.keep_alive = False
        if request.twice or b"transfer-encoding" in known or known.get(b"host") not in self.shared.hosts or version != "1.1":
            fault = request.fault(version)
            if fault is not None:
                raise httptools.HttpParserError(fault)
            self.shared.know(known.get(b"host"))
        if b"expect" in known:
            request.expects_continue = known[b"expect"].lower() == b"100-continue"
        self._waiting.append(request)

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        request = self._parsing
        if request is not None and not request.answered:
            request.pieces.append(data)
            request.held += len(data)
            if request.waiter is not None:
                request.wake()

    def on_message_complete(self) -> None:
        request, self._parsing = self._parsing, None
        self._in_headers = True
        if request is not None:
            request.complete = True
            request.expects_continue = False
            if request.waiter is not None:
                request.wake()
        if self._discarding:
            self._discarding = False
            self._deadline = self.loop.time() + self.shared.settings.keep_alive

    def _body_follows(self) -> bool:
        """The parser stops where a request asks for another protocol. That is not granted, so if it has a body a new parser goes on with that."""
        request = self._waiting[-1] if self._waiting else None
        length = b"" if request is None else request.known.get(b"content-length", b"")
        if request is None or (b"transfer-encoding" not in request.known and not length.strip(b"0")):
            return False
        framing = b"content-length: " + length if length else b"transfer-encoding: chunked"
        request.complete = False
        self._in_headers, self._resuming = False, True
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(b"POST / HTTP/1.1\r\nhost: x\r\n" + framing + b"\r\n\r\n")
        self._resuming = False
        self._parsing = request
        return True

    # For requests and replies

    def want_body(self, request: Request) -> None:
        """Somebody waits for more of the running request's body."""
        if request.expects_continue:
            request.expects_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._resume()

    def took_body(self) -> None:
        self._may_resume()

    def answered(self) -> None:
        """The answer is written: what is next?"""
        request, self.current = self.current, None
        self.on_gone = self.on_writable = None
        if request is None:
            return
        request.answered = True
        request.pieces = []
        request.held = 0
        if not request.keep_alive or request.expects_continue:
            if request.complete and not self._deaf:
                self._deaf = True
                self.transport.close()
            else:
                self._leave()
            return
        if self.transport.is_closing():
            return
        if self._waiting:
            if not self._starting:
                self._start()
        elif self._in_headers:
            self._deadline = self.loop.time() + self.shared.settings.keep_alive
        else:
            # Answered before the body was in: the rest is read and thrown away, so that the answer is not lost to a reset, for a while.
            self._discarding = True
            self._deadline = self.loop.time() + self.shared.settings.header_timeout
        if self._paused:
            self._may_resume()

    async def drain(self) -> None:
        """Until the client takes more."""
        while self.write_paused and not self.lost:
            self._write_waiter = self.loop.create_future()
            try:
                await self._write_waiter
            finally:
                self._write_waiter = None

    def cut(self) -> None:
        """End the connection now, in the middle of an answer; whoever answers is told as of any other end."""
        self._deaf = True
        self.transport.abort()

    # For the server

    @property
    def busy(self) -> bool:
        return self.current is not None

    def sweep(self, now: float) -> None:
        """Called every so often: end what took too long."""
        if self._stalled_since is not None and now - self._stalled_since > self.shared.settings.client_stall:
            self.transport.abort()
        elif self._deadline is not None and now > self._deadline:
            self._deadline = None
            if self._leaving:
                self.transport.abort()
                return
            self._refuse(b"408 Request Timeout")

    def close_soon(self) -> None:
        """Say `Connection: close` with this or the next answer."""
        self.closing_after_next = True
        if self.current is not None:
            self.current.keep_alive = False

    # Inside

    def _start(self) -> None:
        """Serve what waits, one after the other; those that are answered at once, in a loop and not in depth."""
        self._starting = True
        try:
            while self.current is None and self._waiting and not self.write_paused and not self.transport.is_closing():
                self.current = request = self._waiting.popleft()
                if self.closing_after_next:
                    request.keep_alive = False
                self.shared.serve(request, Reply(self, request))
        finally:
            self._starting = False

    def _only_the_rest(self) -> bool:
        """What is malformed follows requests that are whole: they are answered, and what follows is not looked at."""
        if self._parsing is not None and self._parsing in self._waiting:
            self._waiting.remove(self._parsing)
        last = self._waiting[-1] if self._waiting else self.current
        if last is None or last is self._parsing or not last.complete:
            return False
        last.keep_alive = False
        self._parsing = None
        self._in_headers = self._deaf = True
        self._header_bytes = 0
        return True

    def _framing_is_too_much(self) -> bool:
        if self._in_headers:
            return False
        return self._sent_bytes - self._body_bytes > self.shared.settings.max_header + FRAMING_PER_BYTE * self._body_bytes

    def _malformed(self, error: Exception) -> None:
        self._waiting.clear()
        self._deaf = True
        if self.current is not None:
            self.cut()  # an answer is under way: nothing may be written into it
            return
        cause: Any = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
        text = f"this is not an HTTP request: {cause}\n".encode("ascii", "replace")
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % len(text) + text)
        self._leave()

    def _refuse(self, status: bytes) -> None:
        self._deaf = True
        if self.transport.is_closing():
            return
        if self.current is not None:
            self.cut()
            return
        if not self._header_bytes or self._discarding:
            self.transport.close()
            return
        self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self._leave()

    def _leave(self) -> None:
        """Close, and throw away for a while what still comes: closing with bytes unread would reset the connection, and the answer be lost."""
        self._deaf = self._leaving = True
        self._resume()
        self.transport.write_eof()
        self._deadline = self.loop.time() + LINGER

    def _pause(self) -> None:
        if not self._paused and not self.lost:
            self._paused = True
            self.transport.pause_reading()

    def _may_resume(self) -> None:
        """Read on, unless enough waits for its answer, or the client does not take its answers."""
        if len(self._waiting) <= PIPELINE_MAX and not (self.write_paused and self.current is None):
            self._resume()

    def _resume(self) -> None:
        if self._paused and not self.lost and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def _wake_writer(self) -> None:
        if self._write_waiter is not None and not self._write_waiter.done():
            self._write_waiter.set_result(None)
