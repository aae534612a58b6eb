# ruff: noqa: TRY301 - what befell a request is raised where it is seen
"""One request from its arrival to its end: body, route, wait, pod, answer. Carries out; what to do the machine says.

A request whose model is resident costs no task: it is sent from within the client connection's callback, and its answer passes from the pod's
connection to the client's. A task runs only for what has to be waited for: a body that is not in yet, a hold, a new connection.

Whatever happens (an answer, an error, a client that leaves, a cancellation) the request's place and its in-flight count are given back once, in
`_finish`. Every way into this class catches everything, so that no fault of one request becomes another's.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from corral.gateway import bodies, errors, kept_responses, usage
from corral.gateway.bodies import Asked, ClientGone, KeptBody
from corral.gateway.effects import Arrival, Grant, Reject, Rejection
from corral.gateway.endings import break_off, refuse_request
from corral.gateway.errors import Refused, refuse
from corral.gateway.headers import EVENT_STREAM, passing, stream_lines, without
from corral.gateway.holding import hold
from corral.gateway.keys import ApiKey
from corral.gateway.limits import Admission
from corral.gateway.naming import Route
from corral.gateway.pods import ConnectFailed, NoAnswer, PodConnection, TimedOut, UpstreamError
from corral.gateway.refusals import not_found
from corral.gateway.replies import Reply
from corral.gateway.requests import Request
from corral.gateway.routes import Carries, Proxied
from corral.gateway.tracing import CONTEXT

if TYPE_CHECKING:
    from corral.gateway.app import Gateway

log = logging.getLogger("corral.gateway")

Outcome = Grant | Reject | asyncio.Future[Grant | Reject]
_PEEK_MAX = 1 << 20
_DO_NOT_RETRY = ((b"x-should-retry", b"false"),)
"""For clients that retry by themselves: the model may have run already."""


class Exchange:
    """Implements `pods.Receiver`. One object per request; `begin` once."""

    body: KeptBody | None = None
    asked: Asked | None = None
    route: Route | None = None
    api_key: ApiKey | None = None
    admission: Admission | None = None
    counts_tokens = False
    used: int | None = None
    """Tokens, as far as the pod told."""
    key = ""
    """Of the model: `namespace/name`."""
    grant: Grant | None = None
    granted_at = 0.0
    link: PodConnection | None = None
    """The pod's connection, while an answer is awaited or passes."""
    waiter: asyncio.Future[Any] | None = None
    at_once = False
    """Nothing of it had to be waited for yet: it is still the moment of its arrival."""
    gone = False
    over = False
    span: Any = None
    """OpenTelemetry's, when traces are wanted."""
    committed = False
    """The status line went out (200 and an event stream), before a pod was found."""
    answered = False
    """The head of the pod's answer is in."""
    is_stream = False
    pod_status = 0
    pod_error: bytearray | None = None
    """A pod's error answer that comes too late to be passed on as it is."""
    waits_since = 0.0
    waited = 0.0
    was_resident = True
    served = False
    status = 0
    tail = b""
    """The last bytes that passed, for what is to be known of an answer's end."""

    def __init__(self, gateway: Gateway, proxied: Proxied, request: Request, reply: Reply) -> None:
        self.gateway = gateway
        self.proxied = proxied
        self.request = request
        self.reply = reply
        self.id = gateway.next_id()
        self.request_id = request.request_id()
        self.arrived = gateway.driver.now()
        if gateway.tracing is not None:
            self.span = gateway.tracing.begin(request)

    # Ways in: the server, the task, and the pod's connection

    def begin(self) -> None:
        request = self.request
        request.connection.on_gone = self.client_gone
        try:
            self.api_key = self.gateway.access.authenticate(request.known)
            if request.complete and self.proxied.carries is Carries.JSON:
                self.at_once = True
                if b"content-encoding" in request.known:
                    self._check_encoding()
                self.body = bodies.keep(request.take(), self.gateway.bodies)
                self.asked = bodies.peek(self.body.in_memory or b"")
                outcome = self._arrive()
                if type(outcome) is Grant and self._send_at_once(outcome):
                    return
                self.at_once = False
                self.gateway.spawn(self._slowly(outcome))
            else:
                self.gateway.spawn(self._slowly(None))
        except Exception as error:
            self._fail(error)

    def client_gone(self) -> None:
        """Called by the server when the client's connection ends."""
        self.gone = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
        link = self.link
        if link is not None and link.receiver is self:
            link.let_go()
            self._fail(ClientGone())

    async def _slowly(self, outcome: Outcome | None) -> None:
        """The task of a request that has to wait for something. It ends when the request is sent."""
        try:
            if outcome is None:
                await self._read()
                outcome = self._arrive()
            while True:
                grant = outcome if isinstance(outcome, Grant) else await self._settle(outcome)
                if self.gone:
                    raise ClientGone
                try:
                    await self._send(grant)
                except ConnectFailed:
                    outcome = self._again(unreachable=True)
                else:
                    return
        except asyncio.CancelledError:
            self._fail(ClientGone())
            raise
        except Exception as error:
            self._fail(error)

    def on_answer(self, connection: PodConnection) -> None:
        try:
            if connection.status == 503 and b"x-corral-draining" in connection.known:
                connection.let_go()
                self.gateway.spawn(self._slowly(self._again(unreachable=False)))
                return
            self.answered = True
            self._start_answer(connection)
        except Exception as error:
            connection.let_go()
            self._fail(error)

    def on_data(self, data: bytes, *, last: bool) -> bool:
        if self.pod_error is not None:
            if len(self.pod_error) < _PEEK_MAX:
                self.pod_error += data
            return True
        if not self.tail and not self.was_resident:
            self.gateway.first_byte(self, self.gateway.driver.now() - self.granted_at)
        self.tail = (self.tail + data)[-usage.TAIL :] if self.counts_tokens else data
        if last:
            if self.counts_tokens:
                self._settle_tokens()
            self.reply.finish(data)
            return True
        return self.reply.feed(data)

    def on_end(self, error: UpstreamError | None) -> None:
        self.link = None
        try:
            if error is not None:
                self._broken(error)
                return
            self.served = True
            if self.pod_error is not None:
                refuse_request(self, errors.from_pod(self.pod_status, bytes(self.pod_error)), ())
            elif not self.reply.finished:
                self._settle_tokens()
                self.reply.finish()
            self._finish()
        except Exception as caught:
            self._fail(caught)

    # The end

    def _finish(self) -> None:
        """Give back everything that is held, once."""
        if self.over:
            return
        self.over = True
        connection = self.request.connection
        if connection.current is self.request:  # not answered: its client is gone, or is to be
            connection.on_gone = connection.on_writable = None
        link = self.link
        if link is not None and link.receiver is self:
            link.let_go()
        if self.admission is not None:
            self.gateway.access.end(self.admission, self.used)
        if self.body is not None:
            self.body.close()
        self.gateway.finished(self)

    def _fail(self, error: Exception) -> None:
        """It ends with this."""
        if self.over:
            return
        try:
            if self.gone or isinstance(error, ClientGone):
                self.status = 499
            elif isinstance(error, Refused):
                refuse_request(self, error.rejection, error.headers)
            else:
                log.error("a request for %s failed", self.key or "no model", exc_info=error)
                refuse_request(self, Rejection(500, "internal_error", "the gateway failed at this request; its log says why"), ())
        finally:
            self._finish()

    # Arrival

    def _check_encoding(self) -> None:
        if self.request.known.get(b"content-encoding", b"identity") not in (b"", b"identity"):
            raise refuse(415, "unsupported_encoding", "send the body without a content-encoding")

    async def _read(self) -> None:
        request, gateway = self.request, self.gateway
        carries = self.proxied.carries
        if carries is Carries.QUERY:
            self.asked = Asked(bodies.query_model(request.query), stream=False)
            return
        self._check_encoding()
        if carries is Carries.MULTIPART:
            self.body, self.asked = await bodies.read_multipart(request.read, request.known, gateway.bodies)
            return
        self.body = await bodies.read_whole(request.read, request.known, gateway.bodies)
        self.asked = bodies.peek(self.body.in_memory or b"")

    def _arrive(self) -> Outcome:
        """Who asks for what, and what the machine says to it."""
        gateway, key, asked = self.gateway, self.api_key, self.asked
        assert asked is not None  # noqa: S101 - the body was read
        if self.gone:
            raise ClientGone
        route = gateway.machine.resolve(asked.model)
        if route is None:
            if not gateway.directory.synced:
                raise refuse(503, "not_ready", "this gateway has not read the list of models yet", retry_after=1)
            raise Refused(not_found(asked.model))
        self.route = route
        self.key = route.key
        size = affinity = 0
        home = ""
        body = self.body
        if body is not None:
            size = body.size
            if body.in_memory is not None and gateway.machine.replicas_of(route.key) > 1:
                affinity = bodies.affinity_of(body.in_memory)
                if self.proxied.refers:
                    home = kept_responses.home_of(body.in_memory, gateway.directory.replicas)
        query = self.request.query
        autoload = not query or b"autoload=" not in query or bodies.wants_autoload(query)
        if key is None:
            arrival = Arrival(self.id, route.key, size, affinity, autoload, home=home)
        else:
            self._admit(key, route.asked)
            arrival = Arrival(self.id, route.key, size, affinity, autoload, "wake" in key.scopes, key.id, key.waiting_share, home)
        self.waits_since = self.arrived if self.at_once else gateway.driver.now()
        outcome = gateway.driver.arrive(arrival, self.waits_since)
        if type(outcome) is Grant:
            gateway.metrics.hit(route.key)
        else:
            gateway.missed(self)
        return outcome

    def _admit(self, key: ApiKey, asked: str) -> None:
        access = self.gateway.access
        access.need(key, "infer")
        view = self.gateway.machine.view(self.key)
        if view is not None:
            access.need_model(key, view, asked)
        if not key.limited:
            return
        tokens = 0
        if key.tokens_per_minute is not None:
            self.counts_tokens = True
            if self.body is not None:
                tokens = usage.estimate(self.body.in_memory, self.body.size)
        self.admission = access.admit(key, tokens, self.arrived)

    # Waiting

    async def _settle(self, outcome: Reject | asyncio.Future[Grant | Reject]) -> Grant:
        if isinstance(outcome, Reject):
            raise Refused(outcome.rejection)
        self.was_resident = False
        self.gateway.held(self)
        try:
            return await hold(self, outcome)
        finally:
            self.waited += self.gateway.driver.now() - self.waits_since
            self.gateway.released(self)

    # To the pod

    def _send_at_once(self, grant: Grant) -> bool:
        """Send over an idle connection. False when there is none: nothing has happened then."""
        gateway, replica, body = self.gateway, grant.replica, self.body
        assert body is not None  # noqa: S101 - a JSON route
        self.grant = grant
        link = gateway.upstream.begin(self, (replica.host, replica.inference_port), self._head(grant), body.in_memory or b"")
        if link is None:
            return False
        self.link = link
        self.granted_at = self.arrived
        gateway.sending(self)
        return True

    async def _send(self, grant: Grant) -> None:
        gateway, replica = self.gateway, grant.replica
        upstream = gateway.upstream
        target = (replica.host, replica.inference_port)
        self.grant = grant
        self.granted_at = gateway.driver.now()
        link = upstream.take(target) or await upstream.connect(target)
        self._use(link)
        gateway.sending(self)
        await upstream.send(link, self, self._head(grant), self.body)

    def _use(self, link: PodConnection) -> None:
        """Take the connection, unless the client left while it was made."""
        if self.gone:
            if link.transport is not None:
                link.transport.abort()
            raise ClientGone
        self.link = link

    def _again(self, *, unreachable: bool) -> Outcome:
        """A pod did not take it: back to the machine, which keeps its place."""
        if self.gone:
            raise ClientGone
        self.link = None
        self.grant = None
        self.gateway.came_back(self)
        self.waits_since = self.gateway.driver.now()
        return self.gateway.driver.refused(self.id, unreachable=unreachable)

    def _head(self, grant: Grant) -> bytes:
        request, route = self.request, self.route
        assert route is not None  # noqa: S101 - there is a grant
        lines = [request.method, b" ", request.target, self.gateway.prefix_of(grant.replica), self.request_id, b"\r\n", route.lines]
        if self.counts_tokens:
            lines.append(b"x-corral-usage: 1\r\n")
        if request.known.get(b"x-corral-hold", b"").lower() == b"silent":
            lines.append(b"x-corral-hold: silent\r\n")  # the pod's stream says nothing either, while a long prompt is read
        if self.body is not None:
            lines.append(b"content-length: %d\r\n" % self.body.size)
        if self.span is None or self.gateway.tracing is None:
            lines += request.passing if b"connection" not in request.known else passing(request.passing, request.known)
        else:
            lines += without(passing(request.passing, request.known), *CONTEXT)
            lines += self.gateway.tracing.lines(self.span)
        lines.append(b"\r\n")
        return b"".join(lines)

    # From the pod

    def _start_answer(self, link: PodConnection) -> None:
        known = link.known
        self.is_stream = known.get(b"content-type", b"").startswith(EVENT_STREAM)
        if self.counts_tokens:
            self.used = usage.told(known.get(b"x-corral-usage", b""))
        if self.committed:
            if link.status != 200:
                self.pod_status = link.status
                self.pod_error = bytearray()
                return
        else:
            self.status = link.status
            lines = link.passing if b"connection" not in known else passing(link.passing, known)
            grant = self.grant
            assert grant is not None  # noqa: S101 - it was sent
            lines += (b"x-request-id: ", self.request_id, self.gateway.marks_of(grant))
            if not self.was_resident:
                lines.append(b"x-corral-waited-ms: %d\r\n" % round(self.waited * 1000))
            if self.is_stream:
                lines.append(stream_lines(known))
            if self.admission is not None:
                for name, value in self.admission.headers:
                    lines += (name, b": ", value, b"\r\n")
            self.reply.start_raw(link.status, lines, known.get(b"content-length"))
            if not link.chunks and not link.complete:
                self.reply.flush()  # the client learns of the answer's start when it starts
        self.request.connection.on_writable = link.resume

    def _settle_tokens(self) -> None:
        if self.counts_tokens and self.used is None:
            self.used = usage.found(self.tail)

    def _broken(self, error: UpstreamError) -> None:
        """The pod gave no answer, or broke off in its middle."""
        if self.gone:
            self._fail(ClientGone())
        elif self.answered and self.pod_error is None:
            break_off(self, error)
            self._finish()
        elif isinstance(error, NoAnswer) and self._may_go_again(error):
            pass
        elif isinstance(error, TimedOut):
            self._fail(Refused(Rejection(504, "upstream_timeout", f"{self.key}: {error}"), _DO_NOT_RETRY))
        else:
            self._fail(Refused(Rejection(502, "upstream_failed", f"{self.key}: {error}"), _DO_NOT_RETRY))

    def _may_go_again(self, error: NoAnswer) -> bool:
        """A reused connection that ended without a byte was stale: once more, over a new one.

        A new connection that did may have run it, so only a pod that goes away anyway gives it back.
        """
        gateway, grant = self.gateway, self.grant
        assert grant is not None  # noqa: S101 - it was sent
        if error.reused:
            gateway.upstream.retries += 1
            gateway.spawn(self._once_more(grant))
            return True
        known = gateway.directory.replicas.get(grant.replica.uid)
        if known is None or known.deleting:
            gateway.spawn(self._slowly(self._again(unreachable=True)))
            return True
        return False

    async def _once_more(self, grant: Grant) -> None:
        try:
            try:
                link = await self.gateway.upstream.connect((grant.replica.host, grant.replica.inference_port))
            except ConnectFailed:
                outcome = self._again(unreachable=True)
            else:
                self._use(link)
                await self.gateway.upstream.send(link, self, self._head(grant), self.body)
                return
        except Exception as error:
            self._fail(error)
            return
        await self._slowly(outcome)
