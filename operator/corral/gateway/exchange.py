"""One request from its arrival to its end: body, route, wait, pod, answer. Carries out; what to do the machine says.

Whatever happens (an answer, an error, a client that leaves, a cancellation) the request's place and its in-flight count are given back once, in
one `finally`.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from corral.gateway import bodies, errors, usage
from corral.gateway.bodies import Asked, ClientGone, KeptBody
from corral.gateway.effects import Arrival, Grant, Reject, Rejection
from corral.gateway.errors import Refused, refuse
from corral.gateway.keys import ApiKey
from corral.gateway.limits import Admission
from corral.gateway.refusals import not_found
from corral.gateway.replies import AsgiReply, DirectReply
from corral.gateway.routes import Carries, Proxied
from corral.gateway.upstream import Answer, ConnectFailed, NoAnswer, Sending, TimedOut, UpstreamError

if TYPE_CHECKING:
    from corral.gateway.app import Gateway

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-authenticate"}
)
_NOT_FORWARDED = _HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"authorization",
    b"x-api-key",
    b"cookie",
    b"accept-encoding",
    b"expect",
    b"x-request-id",
    b"proxy-authorization",
}
_NOT_RETURNED = _HOP_BY_HOP | {b"x-request-id", b"server", b"date", b"x-corral-draining", b"x-corral-usage"}
_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
_EVENT_STREAM = b"text/event-stream"
_PEEK_MAX = 1 << 20


def request_id_of(headers: Headers) -> bytes:
    """The client's, when it is fit to be repeated; else a new one."""
    given = bodies.header(headers, b"x-request-id")
    return given if given and _REQUEST_ID.fullmatch(given) else os.urandom(16).hex().encode()


class Exchange:
    """See the module's docstring. One object per request; `run` once."""

    body: KeptBody | None = None
    asked: Asked | None = None
    api_key: ApiKey | None = None
    admission: Admission | None = None
    used: int | None = None
    """Tokens, as far as the pod told."""
    key = ""
    """Of the model: `namespace/name`."""
    grant: Grant | None = None
    granted_at = 0.0
    answer: Answer | None = None
    sending: Sending | None = None
    waiter: asyncio.Future[Any] | None = None
    gone = False
    committed = False
    """The status line went out (200 and an event stream), before a pod was found."""
    waited = 0.0
    was_resident = True
    served = False
    status = 0
    tail = b""
    """The last bytes that passed, for what is to be known of an answer's end."""

    def __init__(self, gateway: Gateway, route: Proxied, scope: Scope, receive: bodies.Receive, send: Send) -> None:
        self.gateway = gateway
        self.route = route
        self.scope = scope
        self.receive = receive
        self.headers: Headers = scope["headers"]
        self.id = gateway.next_id()
        self.request_id = request_id_of(self.headers)
        self.arrived = gateway.driver.now()
        connection = scope.get("corral.connection")
        self.reply: DirectReply | AsgiReply = AsgiReply(send) if connection is None else DirectReply(connection)

    def client_gone(self) -> None:
        """Called by the server, from outside of `run`, when the client's connection ends."""
        self.gone = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
        if self.sending is not None:
            self.sending.abort()

    async def run(self) -> None:
        try:
            await self._run()
        except ClientGone:
            self.status = 499
        except Refused as refused:
            await self._refuse(refused.rejection, refused.headers)
        finally:
            self.gateway.finished(self)

    def release(self) -> None:
        """Give back everything that is held. Safe to call at any point, once."""
        if self.sending is not None and (self.answer is None or not self.served):
            self.sending.abort()
        if self.admission is not None:
            self.gateway.access.end(self.admission, self.used)
        if self.body is not None:
            self.body.close()
            self.gateway.held_in_memory.discard(self)

    async def _run(self) -> None:
        gateway = self.gateway
        self.api_key = key = gateway.access.authenticate(self.headers)
        await self._read()
        assert self.asked is not None  # noqa: S101 - _read sets it or raises
        route = gateway.machine.resolve(self.asked.model)
        if route is None:
            if not gateway.directory.synced:
                raise refuse(503, "not_ready", "this gateway has not read the list of models yet", retry_after=1)
            raise Refused(not_found(self.asked.model))
        self.key = route.key
        if key is not None:
            self._admit(key, route.asked)
        size = 0
        affinity = 0
        if self.body is not None:
            size = self.body.size
            if self.body.in_memory is not None and gateway.machine.replicas_of(route.key) > 1:
                affinity = bodies.affinity_of(self.body.in_memory)
        query: bytes = self.scope["query_string"]
        autoload = b"autoload=" not in query or bodies.wants_autoload(query)
        if key is None:
            arrival = Arrival(self.id, route.key, size, affinity, autoload)
        else:
            arrival = Arrival(self.id, route.key, size, affinity, autoload, key.may("wake"), key.id, key.waiting_share)
        outcome = gateway.driver.arrive(arrival)
        gateway.arrived(self, resident=isinstance(outcome, Grant))
        while True:
            grant = outcome if isinstance(outcome, Grant) else await self._settle(outcome)
            self.grant = grant
            self.granted_at = gateway.driver.now()
            outcome_or_none = await self._forward(grant, route.asked, route.adapter)
            if outcome_or_none is None:
                return
            outcome = outcome_or_none

    def _admit(self, key: ApiKey, asked: str) -> None:
        access = self.gateway.access
        access.need(key, "infer")
        view = self.gateway.machine.view(self.key)
        if view is not None:
            access.need_model(key, view, asked)
        tokens = 0
        if key.tokens_per_minute is not None and self.body is not None:
            tokens = usage.estimate(self.body.in_memory, self.body.size)
        self.admission = access.admit(key, tokens, self.gateway.driver.now())

    @property
    def _counts_tokens(self) -> bool:
        return self.admission is not None and self.admission.key.tokens_per_minute is not None

    async def _read(self) -> None:
        carries = self.route.carries
        if carries is Carries.QUERY:
            self.asked = Asked(bodies.query_model(self.scope["query_string"]), stream=False)
            return
        if bodies.header(self.headers, b"content-encoding") not in (b"", b"identity"):
            raise refuse(415, "unsupported_encoding", "send the body without a content-encoding")
        if carries is Carries.MULTIPART:
            self.body, self.asked = await bodies.read_multipart(self.receive, self.headers, self.gateway.bodies)
            return
        connection = self.scope.get("corral.connection")
        arrived = None if connection is None else connection.whole_body()
        if arrived is not None:
            self.body = bodies.keep(arrived, self.gateway.bodies)
        else:
            self.body = await bodies.read_whole(self.receive, self.headers, self.gateway.bodies)
        self.asked = bodies.peek(self.body.in_memory or b"")

    # Waiting

    async def _settle(self, outcome: Reject | asyncio.Future[Grant | Reject]) -> Grant:
        if isinstance(outcome, Reject):
            raise Refused(outcome.rejection)
        self.was_resident = False
        since = self.gateway.driver.now()
        self.gateway.held(self)
        try:
            return await self._hold(outcome)
        finally:
            self.waited += self.gateway.driver.now() - since
            self.gateway.released(self)

    async def _hold(self, future: asyncio.Future[Grant | Reject]) -> Grant:
        view = self.gateway.machine.view(self.key)
        heartbeat = view.hold.heartbeat if view is not None else 15.0
        assert self.asked is not None  # noqa: S101 - it was read before
        speaks = self.asked.stream and bodies.header(self.headers, b"x-corral-hold").lower() != b"silent"
        self.waiter = future
        try:
            while not future.done():
                if self.gone:
                    raise ClientGone
                await asyncio.wait((future,), timeout=heartbeat if speaks else None)
                if not future.done():
                    await self._heartbeat()
        finally:
            self.waiter = None
        result = future.result()
        if self.gone or result is None:
            raise ClientGone
        if isinstance(result, Reject):
            raise Refused(result.rejection)
        return result

    async def _heartbeat(self) -> None:
        if not self.committed:
            self.committed = True
            self.status = 200
            headers: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), *_STREAM_HEADERS]
            headers += [(b"x-request-id", self.request_id), (b"x-corral-model", self.key.encode())]
            self.reply.start(200, headers)
            await self.reply.flush()
        situation = self.gateway.machine.situation(self.id, self.gateway.driver.now())
        if situation is None:
            return
        words = [f"state={situation.state}", f"waited={situation.waited:.0f}s", f"ahead={situation.ahead}"]
        if situation.progress:
            words.append(f"progress={situation.progress:.2f}")
            words.append(f"eta={situation.waited * (1 - situation.progress) / situation.progress:.0f}s")
        await self.reply.write(f": corral {' '.join(words)}\n\n".encode())

    # The pod

    async def _forward(self, grant: Grant, asked: str, adapter: str) -> Grant | Reject | asyncio.Future[Grant | Reject] | None:
        """Send to the pod, and its answer to the client. None when that is done; otherwise what became of a request that came back."""
        if self.gone:
            raise ClientGone
        gateway = self.gateway
        replica = grant.replica
        self.sending = sending = Sending()
        head = self._head(grant, asked, adapter)
        gateway.sending(self)
        try:
            answer = await gateway.upstream.send((replica.host, replica.inference_port), head, self.body, sending)
        except ConnectFailed:
            return self._again(unreachable=True)
        except NoAnswer as error:
            # Nothing came back over a new connection: the request may have run, so only a pod that goes away anyway gives it back.
            known = gateway.directory.replicas.get(replica.uid)
            if not sending.given_up and (known is None or known.deleting):
                return self._again(unreachable=True)
            raise self._failure(error) from error
        except UpstreamError as error:
            raise self._failure(error) from error
        if answer.status == 503 and bodies.header(answer.headers, b"x-corral-draining"):
            answer.abort()
            return self._again(unreachable=False)
        self.answer = answer
        await self._answer(answer, grant)
        return None

    def _again(self, *, unreachable: bool) -> Grant | Reject | asyncio.Future[Grant | Reject]:
        if self.gone:
            raise ClientGone
        self.sending = None
        self.grant = None
        self.gateway.came_back(self)
        return self.gateway.driver.refused(self.id, unreachable=unreachable)

    def _failure(self, error: UpstreamError) -> Exception:
        if self.gone:
            return ClientGone()
        if isinstance(error, TimedOut):
            return Refused(Rejection(504, "upstream_timeout", f"{self.key}: {error}"), _DO_NOT_RETRY)
        return Refused(Rejection(502, "upstream_failed", f"{self.key}: {error}"), _DO_NOT_RETRY)

    def _head(self, grant: Grant, asked: str, adapter: str) -> bytes:
        scope = self.scope
        replica = grant.replica
        target: bytes = scope["raw_path"]
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        lines = [
            scope["method"].encode() + b" " + target + b" HTTP/1.1",
            b"host: " + replica.host.encode(),
            b"authorization: Bearer " + self.gateway.tokens.infer_token(replica.uid).encode(),
            b"x-request-id: " + self.request_id,
            b"x-corral-served-name: " + _header_text(asked),
        ]
        if adapter:
            lines.append(b"x-corral-adapter: " + _header_text(adapter))
        if self._counts_tokens:
            lines.append(b"x-corral-usage: 1")
        if self.body is not None:
            lines.append(b"content-length: %d" % self.body.size)
        dropped = _NOT_FORWARDED | _named_by_connection(self.headers)
        lines += [b"%b: %b" % entry for entry in self.headers if entry[0] not in dropped and entry[0][:9] != b"x-corral-"]
        lines.append(b"\r\n")
        return b"\r\n".join(lines)

    async def _answer(self, answer: Answer, grant: Grant) -> None:
        is_stream = bodies.header(answer.headers, b"content-type").startswith(_EVENT_STREAM)
        if self.committed:
            if answer.status != 200:
                await self._refuse(errors.from_pod(answer.status, await self._small(answer)), ())
                self.served = answer.complete
                return
        else:
            self.status = answer.status
            self.reply.start(answer.status, self._answer_headers(answer, grant, is_stream))
        if self._counts_tokens:
            self.used = usage.told(bodies.header(answer.headers, b"x-corral-usage"))
        if answer.complete and isinstance(self.reply, DirectReply):  # the common case of an answer that is no stream: one write
            data = answer.rest()
            self._note(data)
            self.served = True
            if self._counts_tokens and self.used is None:
                self.used = usage.found(self.tail)
            self.reply.finish(data)
            return
        if not answer.complete:
            await self.reply.flush()  # the client learns of the answer's start when it starts
        try:
            await self._pass_on(answer)
        except UpstreamError as error:
            if self.gone:
                raise ClientGone from error
            await self._break_off(error, is_stream or self.committed)
            return
        self.served = True
        if self._counts_tokens and self.used is None:
            self.used = usage.found(self.tail)
        await self.reply.end()

    async def _pass_on(self, answer: Answer) -> None:
        reply = self.reply
        if isinstance(reply, DirectReply):
            feed = reply.feed

            def sink(data: bytes) -> bool:
                self._note(data)
                return feed(data)

            self.scope["corral.connection"].on_writable = answer.resume
            await answer.pump(sink)
            if self.gone:
                raise ClientGone
            return
        while data := await answer.read():
            if self.gone:
                raise ClientGone
            self._note(data)
            await reply.write(data)

    def _note(self, data: bytes) -> None:
        """What is remembered of the bytes that pass."""
        if not self.tail and not self.was_resident:
            self.gateway.first_byte(self, self.gateway.driver.now() - self.granted_at)
        self.tail = (self.tail + data)[-usage.TAIL :] if self._counts_tokens else data

    async def _small(self, answer: Answer) -> bytes:
        body = bytearray()
        try:
            while (data := await answer.read()) and len(body) < _PEEK_MAX:
                body += data
        except UpstreamError:
            pass
        return bytes(body)

    def _answer_headers(self, answer: Answer, grant: Grant, is_stream: bool) -> Headers:
        dropped = _NOT_RETURNED | _named_by_connection(answer.headers)
        headers = [entry for entry in answer.headers if entry[0] not in dropped]
        headers.append((b"x-request-id", self.request_id))
        headers.append((b"x-corral-model", self.key.encode()))
        headers.append((b"x-corral-replica", grant.replica.pod.encode()))
        if not self.was_resident:
            headers.append((b"x-corral-waited-ms", b"%d" % round(self.waited * 1000)))
        if is_stream:
            present = {name for name, _ in headers}
            headers += [entry for entry in _STREAM_HEADERS if entry[0] not in present]
        if self.admission is not None:
            headers += self.admission.headers
        return headers

    async def _break_off(self, error: UpstreamError, is_stream: bool) -> None:
        """The answer ended in its middle. A stream says so in its own words; anything else is cut, so that no part passes for the whole."""
        if not is_stream:
            self.gateway.cut(self)
            return
        gap = b"" if self.tail.endswith(b"\n\n") or not self.tail else b"\n\n"
        code = "upstream_timeout" if isinstance(error, TimedOut) else "upstream_failed"
        event = errors.error_event(self.route.shape, Rejection(502, code, f"{self.key}: {error}"))
        await self.reply.end(gap + event)

    async def _refuse(self, rejection: Rejection, extra: tuple[tuple[bytes, bytes], ...]) -> None:
        if self.gone:
            self.status = 499
            return
        if self.committed:
            event = errors.error_event(self.route.shape, rejection)
            self.status = rejection.status
            await self.reply.end(event)
            return
        self.status = rejection.status
        body = errors.error_body(self.route.shape, rejection)
        headers = errors.error_headers(rejection)
        headers += [(b"content-length", b"%d" % len(body)), (b"x-request-id", self.request_id), *extra]
        if self.key:
            headers.append((b"x-corral-model", self.key.encode()))
        if not self.was_resident:
            headers.append((b"x-corral-waited-ms", b"%d" % round(self.waited * 1000)))
        if self.admission is not None:
            headers += self.admission.headers
        self.reply.start(rejection.status, headers)
        await self.reply.end(body)


_DO_NOT_RETRY = ((b"x-should-retry", b"false"),)
"""For clients that retry by themselves: the model may have run already."""


_NONE: frozenset[bytes] = frozenset()


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    """Headers that `Connection` calls hop by hop."""
    value = bodies.header(headers, b"connection")
    return frozenset(token.strip().lower() for token in value.split(b",")) if b"," in value or value.lower() not in _PLAIN else _NONE


_PLAIN = frozenset({b"", b"keep-alive", b"close"})


def _header_text(text: str) -> bytes:
    """A name as a header value; what a header cannot carry is percent-encoded."""
    raw = text.encode()
    if raw.isascii() and raw.isalnum():
        return raw
    return b"".join(bytes((byte,)) if 0x20 < byte < 0x7F and byte != 0x25 else b"%%%02X" % byte for byte in raw)
