"""The wait of one request for its model: until the machine grants or refuses it, with comments to a streaming client meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from corral.gateway.bodies import ClientGone
from corral.gateway.effects import Grant, Reject
from corral.gateway.errors import Refused

if TYPE_CHECKING:
    from corral.gateway.exchange import Exchange


async def hold(exchange: Exchange, future: asyncio.Future[Grant | Reject]) -> Grant:
    """The grant, once there is one; raises Refused or ClientGone."""
    view = exchange.gateway.machine.view(exchange.key)
    heartbeat = view.hold.heartbeat if view is not None else 15.0
    assert exchange.asked is not None  # noqa: S101 - it was read before
    speaks = exchange.asked.stream and exchange.request.known.get(b"x-corral-hold", b"").lower() != b"silent"
    exchange.waiter = future
    try:
        while not future.done():
            if exchange.gone:
                raise ClientGone
            await asyncio.wait((future,), timeout=heartbeat if speaks else None)
            if not future.done():
                await _heartbeat(exchange)
    finally:
        exchange.waiter = None
    result = future.result()
    if exchange.gone or result is None:
        raise ClientGone
    if isinstance(result, Reject):
        raise Refused(result.rejection)
    return result


async def _heartbeat(exchange: Exchange) -> None:
    if not exchange.committed:
        exchange.committed = True
        exchange.status = 200
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        headers += [(b"x-request-id", exchange.request_id), (b"x-corral-model", exchange.key.encode())]
        exchange.reply.start(200, headers)
        exchange.reply.flush()
    situation = exchange.gateway.machine.situation(exchange.id, exchange.gateway.driver.now())
    if situation is None:
        return
    words = [f"state={situation.state}", f"waited={situation.waited:.0f}s", f"ahead={situation.ahead}"]
    if situation.progress:
        words.append(f"progress={situation.progress:.2f}")
        words.append(f"eta={situation.waited * (1 - situation.progress) / situation.progress:.0f}s")
    await exchange.reply.write(f": corral {' '.join(words)}\n\n".encode())
