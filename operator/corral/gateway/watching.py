"""Follows the status of replicas that somebody waits for, by the supervisor's long poll: a model is noticed when it is ready, not a poll later."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Protocol
from urllib.parse import quote

import msgspec

from corral.gateway.effects import LoadError, ReplicaStatus
from corral.gateway.pods import UpstreamError
from corral.gateway.ports import ReplicaView, Tokens
from corral.gateway.upstream import Upstream

log = logging.getLogger("corral.gateway")

WAIT_SECONDS = 30
PAUSE = 0.2
PAUSE_MAX = 2.0
STATUS_MAX = 1 << 20


class _Error(msgspec.Struct):
    reason: str = ""
    message: str = ""
    retry: bool = True
    at: str = ""


class _Status(msgspec.Struct):
    version: int
    state: str
    admitting: bool = False
    progress: float | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Status).decode


class StatusListener(Protocol):
    def replica_status(self, uid: str, status: ReplicaStatus) -> None: ...

    def replica_unreachable(self, uid: str) -> None: ...


class Watcher:
    """One task per watched replica."""

    def __init__(self, upstream: Upstream, tokens: Tokens) -> None:
        self._upstream = upstream
        self._tokens = tokens
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._listener: StatusListener | None = None

    def start(self, listener: StatusListener) -> None:
        self._listener = listener

    def watch(self, replica: ReplicaView) -> None:
        self.unwatch(replica.uid)
        self._tasks[replica.uid] = asyncio.ensure_future(self._follow(replica))

    def unwatch(self, uid: str) -> None:
        task = self._tasks.pop(uid, None)
        if task is not None:
            task.cancel()

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, replica: ReplicaView) -> None:
        listener = self._listener
        if listener is None:
            return
        version: int | None = None
        pause = PAUSE
        while True:
            try:
                status = await self._ask(replica, version)
            except (UpstreamError, msgspec.DecodeError, ValueError) as error:
                log.debug("status of %s: %s", replica.pod, error)
                listener.replica_unreachable(replica.uid)
                version = None
                await asyncio.sleep(pause)
                pause = min(PAUSE_MAX, pause * 2)
                continue
            pause = PAUSE
            version = status.version
            listener.replica_status(replica.uid, _as_known(status))

    async def _ask(self, replica: ReplicaView, version: int | None) -> _Status:
        query = "" if version is None else f"?after={version}&wait={WAIT_SECONDS}s"
        head = (
            f"GET /control/status{query} HTTP/1.1\r\nhost: {quote(replica.host, safe=':.[]')}\r\naccept: application/json\r\n"
            f"authorization: Bearer {self._tokens.infer_token(replica.uid)}\r\n\r\n"
        ).encode()
        try:
            async with asyncio.timeout(WAIT_SECONDS + 15):
                code, body = await self._upstream.fetch((replica.host, replica.control_port), head, STATUS_MAX)
        except TimeoutError as error:
            raise ValueError("no status within the wait and 15s more") from error
        if code != 200:
            raise ValueError(f"status {code}: {body[:200]!r}")
        return _decode(body)


def _as_known(status: _Status) -> ReplicaStatus:
    error = status.error
    known = None if error is None else LoadError(error.reason, error.message, error.retry, _seconds(error.at))
    return ReplicaStatus(status.state, status.admitting, status.progress or 0.0, known)


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
