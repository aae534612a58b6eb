"""The supervisors' control ports: one long poll per live pod feeds the store; drain, sleep and wake are single calls.

Every order carries the leader's epoch in its token and is given only while the lease lasts. What a pod answers is data; nothing here decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from corral.control.observation import SupervisorStatus, parse_status, rfc3339
from corral.control.settings import ControlSettings
from corral.control.store import Store
from corral.kube.ports import Leadership, NotLeader, PodRecord

log = logging.getLogger(__name__)


class Signer(Protocol):
    """`corral.tokens.TokenSigner`, as far as it is needed here."""

    def sign(self, pod_uid: str, scope: str, epoch: int = 0) -> str: ...


class Unreachable(Exception):  # noqa: N818 - a state of the world, not a mistake
    """The supervisor did not answer: whether it heard is not known."""


class Rejected(Exception):  # noqa: N818
    """It answered, and would not."""

    def __init__(self, code: str, message: str, body: Mapping[str, Any]) -> None:
        super().__init__(message or code)
        self.code = code
        self.body = body


@dataclass(slots=True)
class _Follower:
    uid: str
    address: tuple[str, int]
    task: asyncio.Task[None]
    nudge: asyncio.Event


class Supervisors:
    def __init__(self, store: Store, signer: Signer, leadership: Leadership, settings: ControlSettings) -> None:
        self._store = store
        self._signer = signer
        self._leadership = leadership
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._followers: dict[str, _Follower] = {}

    async def open(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self._settings.request_timeout, connect=self._settings.connect_timeout)
        # A pod has its long poll and now and then one more call: no limit of connections may ever stand between a grant and its wake.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=15, use_dns_cache=False)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector)

    async def close(self) -> None:
        followers = [follower.task for follower in self._followers.values()]
        self._followers.clear()
        for task in followers:
            task.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- following

    def pod_changed(self, key: str) -> None:
        """Follow exactly the pods that have an address."""
        pod = self._store.pods.get(key)
        record = pod.record if pod is not None else None
        follower = self._followers.get(key)
        if self._session is None:
            return
        if record is None or not record.host or not record.uid:
            if follower is not None:
                del self._followers[key]
                follower.task.cancel()
            return
        address = (record.host, record.control_port)
        if follower is not None and (follower.uid, follower.address) == (record.uid, address):
            follower.nudge.set()  # it may have started to listen
            return
        if follower is not None:
            follower.task.cancel()
        nudge = asyncio.Event()
        task = asyncio.create_task(self._follow(key, record, nudge), name=f"follow {key}")
        self._followers[key] = _Follower(record.uid, address, task, nudge)

    async def _follow(self, key: str, record: PodRecord, nudge: asyncio.Event) -> None:
        version: int | None = None
        pause = self._settings.retry_min
        while True:
            try:
                status = await self._poll(record, version)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.debug("%s does not answer: %s", key, error)
                self._store.lost_supervisor(key, record.uid)
                version = None
                nudge.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(nudge.wait(), pause * random.uniform(0.7, 1.3))
                    pause = self._settings.retry_min / 2
                pause = min(self._settings.retry_max, pause * 2)
                continue
            pause = self._settings.retry_min
            version = status.version
            if status.epoch > self._leadership.epoch:
                self._leadership.outdone(status.epoch)
            self._store.put_supervisor(key, record.uid, status)

    async def _poll(self, record: PodRecord, version: int | None) -> SupervisorStatus:
        wait = self._settings.poll_wait
        query = {} if version is None else {"after": str(version), "wait": f"{wait:g}s"}
        timeout = self._settings.request_timeout + (0.0 if version is None else wait)
        status, body = await self._call("GET", record, "status", query=query, within=timeout)
        if status != 200:
            raise Rejected(_code(body), f"GET status answered {status}", _object(body))
        return parse_status(body)

    # --- orders

    async def wake(self, record: PodRecord, devices: tuple[str, ...], split: tuple[float, ...], device_kind: str) -> None:
        """Fork an engine and load. Returns when the supervisor took it on."""
        await self._order(record, "wake", {"devices": list(devices), "split": list(split), "deviceKind": device_kind}, ok=(200, 202))

    async def drain(self, record: PodRecord, *, if_idle: bool, if_unused_since: float | None, deadline: float | None) -> int:
        """Stop admitting; how many requests are in flight still."""
        body: dict[str, Any] = {"ifIdle": if_idle, "ttl": f"{self._settings.drain_ttl:g}s"}
        if if_unused_since is not None:
            body["ifUnusedSince"] = rfc3339(if_unused_since)
        if deadline is not None:
            body["deadline"] = rfc3339(deadline)
        answer = await self._order(record, "drain", body, ok=(200,))
        return int(answer.get("inFlight") or 0)

    async def sleep(self, record: PodRecord) -> Mapping[str, Any]:
        """End the engine; returns when its process is gone."""
        return await self._order(record, "sleep", {}, ok=(200,), within=self._settings.sleep_timeout)

    async def resume(self, record: PodRecord) -> None:
        await self._order(record, "resume", {}, ok=(200,))

    async def warm(self, record: PodRecord) -> None:
        """Read the file ahead into the page cache; returns when the supervisor took it on."""
        await self._order(record, "warm", {}, ok=(202,))

    async def _order(
        self, record: PodRecord, call: str, body: Mapping[str, Any], *, ok: tuple[int, ...], within: float | None = None
    ) -> Mapping[str, Any]:
        if not self._leadership.may_write():
            raise NotLeader(f"{call} of {record.namespace}/{record.name}: the lease is lost or about to expire")
        try:
            status, answer = await self._call("POST", record, call, body=body, within=within or self._settings.request_timeout)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(
                f"{call} of {record.namespace}/{record.name} at {record.host}:{record.control_port}: {error or type(error).__name__}"
            ) from error
        if status in ok:
            return _object(answer)
        code = _code(answer)
        if code == "StaleEpoch":
            newer = _object(_object(answer).get("error")).get("epoch")
            self._leadership.outdone(newer if isinstance(newer, int) else 0)
            raise NotLeader(f"{record.namespace}/{record.name} has heard a newer leader than epoch {self._leadership.epoch}")
        message = str(_object(_object(answer).get("error")).get("message") or f"{call} answered {status}")
        raise Rejected(code or str(status), message, _object(answer))

    async def _call(
        self,
        method: str,
        record: PodRecord,
        call: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        within: float,
    ) -> tuple[int, Any]:
        if self._session is None:
            raise RuntimeError("the supervisors' client is not open")
        host = f"[{record.host}]" if ":" in record.host else record.host
        headers = {"authorization": f"Bearer {self._signer.sign(record.uid, 'control', self._leadership.epoch)}"}
        limits = aiohttp.ClientTimeout(total=within, connect=self._settings.connect_timeout)
        url = f"http://{host}:{record.control_port}/control/{call}"
        async with self._session.request(method, url, params=query, json=body, headers=headers, timeout=limits) as response:
            text = await response.text()
            try:
                return response.status, json.loads(text) if text else {}
            except ValueError:
                return response.status, {}


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _code(body: Any) -> str:
    return str(_object(_object(body).get("error")).get("code") or "")
