"""The one way to the Kubernetes API: plain JSON in and out, a time limit on every call, and the leader's gate in front of every write.

It wraps `kubernetes.aio` (configuration, credentials, TLS and connections are the library's) and maps what the API answers to the exceptions of
`ports`. It must never retry a write by itself and never hold state beyond its connections.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from corral.kube.ports import Conflict, Gone, NotLeader, Refused, Unavailable

FIELD_MANAGER = "corral-operator"
REQUEST_TIMEOUT = 5.0
"""Seconds that a write may take, from its start to its answer; well below what is left of a lease that was just renewed."""
LIST_TIMEOUT = 60.0
PAGE = 500

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
STRATEGIC_MERGE = "application/strategic-merge-patch+json"


class AlreadyExists(Conflict):
    """There is an object of that name."""


class Silent(Unavailable):
    """A watch from which nothing came for too long: dead, or nothing happened. It is opened anew."""


class Expired(Exception):  # noqa: N818 - the API's word
    """410: the resource version or the continue token is too old; list again."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object, and where the API keeps it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root, *(["namespaces", namespace] if self.namespaced and namespace else []), self.plural, *([name] if name else [])]
        return "/".join([*parts, *([subresource] if subresource else [])])


PODS = Resource("", "v1", "pods", "Pod")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
SECRETS = Resource("", "v1", "secrets", "Secret")
EVENTS = Resource("", "v1", "events", "Event")
JOBS = Resource("batch", "v1", "jobs", "Job")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
MODEL_DEPLOYMENTS = Resource("corral.dev", "v1alpha1", "modeldeployments", "ModelDeployment")
MODEL_POOLS = Resource("corral.dev", "v1alpha1", "modelpools", "ModelPool", namespaced=False)
GATEWAY_REPORTS = Resource("corral.dev", "v1alpha1", "gatewayreports", "GatewayReport")

_gate: ContextVar[Callable[[], bool] | None] = ContextVar("gate", default=None)


async def _judge_again(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: aiohttp.TraceRequestHeadersSentParams) -> None:
    """A process may be stopped between the first look at the gate and the bytes; so look again when they are about to be written."""
    gate = _gate.get()
    if gate is not None and not gate():
        raise NotLeader("the lease is lost or about to expire")


def _proxy_of(address: str) -> str | None:
    """The proxy that the environment names for it (`HTTPS_PROXY`, `NO_PROXY`), None for none."""
    parts = urlsplit(address)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


class KubeClient:
    """Calls of one process. `gated` gives a client of the same connections whose writes need leave."""

    def __init__(self, api: ApiClient, *, request_timeout: float = REQUEST_TIMEOUT, gate: Callable[[], bool] | None = None) -> None:
        self._api = api
        self._request_timeout = request_timeout
        self._gate = gate

    @classmethod
    async def connect(cls, *, user_agent: str, kubeconfig: str = "", request_timeout: float = REQUEST_TIMEOUT) -> Self:
        """The cluster that the process runs in, or the one that KUBECONFIG (or `kubeconfig`) names."""
        settings = Configuration()
        if not kubeconfig and "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            config.load_incluster_config(client_configuration=settings)
        else:
            await config.load_kube_config(config_file=kubeconfig or None, client_configuration=settings, persist_config=False)
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_judge_again)
        settings.trace_configs = [trace]
        # Left to itself aiohttp reads proxies and .netrc anew, in a thread, for every single request.
        settings.proxy = settings.proxy or _proxy_of(str(settings.host))
        settings.client_session_kwargs = {"trust_env": False}
        api = ApiClient(configuration=settings)
        api.user_agent = user_agent
        return cls(api, request_timeout=request_timeout)

    def gated(self, gate: Callable[[], bool]) -> KubeClient:
        return KubeClient(self._api, request_timeout=self._request_timeout, gate=gate)

    async def connection(self) -> dict[str, Any]:
        """Where the API is and who this process is there, in the words of `kopf.ConnectionInfo`; a rotated token is read anew."""
        settings = self._api.configuration
        told: dict[str, Any] = {"server": settings.host, "ca_path": settings.ssl_ca_cert, "ca_data": settings.ca_cert_data}
        told |= {"certificate_path": settings.cert_file, "private_key_path": settings.key_file, "insecure": not settings.verify_ssl}
        scheme, _, token = (await settings.get_api_key_with_prefix("BearerToken", alias="authorization") or "").rpartition(" ")
        if token:
            told |= {"scheme": scheme or "Bearer", "token": token}
        return {name: value for name, value in told.items() if value}

    async def close(self) -> None:
        await self._api.close()

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        return await self._call("GET", path, params=params, timeout=self._request_timeout)

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """One page. Without a resource version it is read consistently."""
        return await self._call("GET", path, params=params, timeout=LIST_TIMEOUT)

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._write("POST", path, body=body)

    async def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._write("PUT", path, body=body)

    async def patch(self, path: str, body: Mapping[str, Any], content_type: str = MERGE) -> dict[str, Any]:
        return await self._write("PATCH", path, body=body, content_type=content_type)

    async def apply(self, path: str, body: Mapping[str, Any], *, manager: str = FIELD_MANAGER) -> dict[str, Any]:
        """Server-side apply; what another manager holds of these fields is taken over."""
        return await self._write("PATCH", path, params={"fieldManager": manager, "force": "true"}, body=body, content_type=APPLY)

    async def delete(self, path: str, *, uid: str = "", grace: float | None = None, propagation: str = "Background") -> dict[str, Any]:
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid}
        if grace is not None:
            body["gracePeriodSeconds"] = max(0, round(grace))
        return await self._write("DELETE", path, body=body)

    async def _write(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None, body: Mapping[str, Any], content_type: str = "application/json"
    ) -> dict[str, Any]:
        if self._gate is None:
            return await self._call(method, path, params=params, body=body, content_type=content_type, timeout=self._request_timeout)
        if not self._gate():
            raise NotLeader(f"{method} {path} was not sent: the lease is lost or about to expire")
        token = _gate.set(self._gate)
        try:
            # The server gives up at the same time as this client does: what was sent is done, or never will be.
            bounded = {**(params or {}), "timeout": f"{int(self._request_timeout)}s"}
            return await self._call(method, path, params=bounded, body=body, content_type=content_type, timeout=self._request_timeout)
        finally:
            _gate.reset(token)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        timeout: float,  # noqa: ASYNC109 - handed to the connection, which ends by itself
    ) -> dict[str, Any]:
        where = f"{method} {path}"
        try:
            response = await self._send(method, path, aiohttp.ClientTimeout(total=timeout), params=params, body=body, content_type=content_type)
            data = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"{where}: {str(error) or type(error).__name__}") from error
        if 200 <= response.status < 300:
            return _object(data)
        raise _error(where, response.status, data)

    async def _send(
        self,
        method: str,
        path: str,
        limits: aiohttp.ClientTimeout,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        serialized = await self._api.param_serialize(
            method,
            path,
            query_params=list((params or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        sent_method, url, headers, sent_body, _ = serialized
        return await self._api.call_api(sent_method, url, headers, sent_body, _request_timeout=limits)

    async def watch(
        self, path: str, params: Mapping[str, str], *, idle: float, opened: Callable[[], None] | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """Events as they come, until the server ends the stream. `idle`: seconds of silence after which the connection counts as dead; `opened` is
        called when the server has answered."""
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=idle)
        where = f"watch {path}"
        try:
            response = await self._send("GET", path, limits, params={**params, "watch": "true"})
            if response.status != 200:
                raise _error(where, response.status, await response.read())
            if opened is not None:
                opened()
            stream: aiohttp.ClientResponse = response.response
            try:
                rest = b""
                async for chunk in stream.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line.strip():
                            yield _event(where, line)
            finally:
                stream.close()
        except aiohttp.SocketTimeoutError as error:
            raise Silent(f"{where}: nothing came for {idle:.0f} s") from error
        except (TimeoutError, asyncio.IncompleteReadError, aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"{where}: {str(error) or type(error).__name__}") from error


def _object(data: bytes) -> dict[str, Any]:
    loaded = orjson.loads(data)
    return loaded if isinstance(loaded, dict) else {"items": loaded}


def _event(where: str, line: bytes) -> dict[str, Any]:
    event: dict[str, Any] = orjson.loads(line)
    if event.get("type") == "ERROR":
        status = event.get("object") or {}
        raise _error(where, int(status.get("code") or 500), json.dumps(status).encode())
    return event


def _error(where: str, status: int, data: bytes) -> Exception:
    try:
        told = json.loads(data)
        message, reason = str(told.get("message") or ""), str(told.get("reason") or "")
    except (ValueError, AttributeError):
        message, reason = data[:200].decode(errors="replace"), ""
    text = f"{message or 'no message'} ({where}: {status})"
    if status == 404:
        return Gone(text)
    if status == 409:
        return AlreadyExists(text) if reason == "AlreadyExists" else Conflict(text)
    if status == 410:
        return Expired(text)
    if status in {400, 403, 405, 413, 415, 422}:
        return Refused(message or text)
    return Unavailable(text)  # 401 too: a token that was just rotated is read again for the next call
