"""How a request is told that it failed: as an answer, as the last event of its stream, or by a cut. It decides only which of the three."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corral.gateway import errors
from corral.gateway.effects import Rejection
from corral.gateway.pods import TimedOut, UpstreamError

if TYPE_CHECKING:
    from corral.gateway.exchange import Exchange


def refuse_request(exchange: Exchange, rejection: Rejection, extra: tuple[tuple[bytes, bytes], ...]) -> None:
    """As an answer, while none has begun; as an event of a stream that has."""
    exchange.status = rejection.status
    if exchange.committed:
        exchange.reply.finish(errors.error_event(exchange.proxied.shape, rejection))
        return
    if exchange.reply.started:
        exchange.request.connection.cut()
        return
    body = errors.error_body(exchange.proxied.shape, rejection)
    headers = errors.error_headers(rejection)
    headers += [(b"content-length", b"%d" % len(body)), (b"x-request-id", exchange.request_id), *extra]
    if exchange.key:
        headers.append((b"x-corral-model", exchange.key.encode()))
    if not exchange.was_resident:
        headers.append((b"x-corral-waited-ms", b"%d" % round(exchange.waited * 1000)))
    if exchange.admission is not None:
        headers += exchange.admission.headers
    exchange.reply.start(rejection.status, headers)
    exchange.reply.finish(body)


def break_off(exchange: Exchange, error: UpstreamError) -> None:
    """The answer ended in its middle. A stream says so in its own words; anything else is cut, so that no part passes for the whole."""
    if not (exchange.is_stream or exchange.committed):
        exchange.request.connection.cut()
        return
    gap = b"" if exchange.tail.endswith(b"\n\n") or not exchange.tail else b"\n\n"
    code = "upstream_timeout" if isinstance(error, TimedOut) else "upstream_failed"
    exchange.reply.finish(gap + errors.error_event(exchange.proxied.shape, Rejection(502, code, f"{exchange.key}: {error}")))
