"""kopf's part: it watches the custom resources, and the handlers hand each event on. Nothing is decided here, and kopf writes nothing.

`on.event` handlers only: no finalizers, no annotations, no progress. What an event means is the store's; that none is missed is the gates' (see
`corral.kube.objects`). kopf runs only while this process leads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import kopf

log = logging.getLogger(__name__)

PREFIX = "operator.corral.dev"


class Kind(Protocol):
    @property
    def group(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def plural(self) -> str: ...


class Feed(Protocol):
    """One kind of object, and where its events go."""

    @property
    def resource(self) -> Kind: ...

    def event(self, kind: str | None, obj: Mapping[str, Any]) -> None: ...


Connect = Callable[[], Awaitable[Mapping[str, Any]]]
"""Arguments of `kopf.ConnectionInfo`, asked again when a token was refused."""


def make_registry(feeds: Sequence[Feed], connect: Connect) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(**await connect())

    kopf.on.login(registry=registry)(login)
    for feed in feeds:
        kopf.on.event(feed.resource.group, feed.resource.version, feed.resource.plural, registry=registry)(_recorder(feed))
    return registry


def _recorder(feed: Feed) -> Callable[..., Awaitable[None]]:
    async def record(event: Mapping[str, Any], **_: Any) -> None:
        feed.event(event["type"], event["object"])

    return record


class _NoEssence(kopf.AnnotationsDiffBaseStorage):  # type: ignore[misc]
    """Handlers of events compare nothing: without this kopf copies each object for each event, to find out what has changed in it."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None


def make_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.persistence.finalizer = f"{PREFIX}/finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=PREFIX)
    settings.persistence.diffbase_storage = _NoEssence(prefix=PREFIX)
    settings.posting.enabled = False
    settings.posting.reporting_component = "corral-operator"
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.execution.max_workers = 1  # every handler is a coroutine
    settings.process.ultimate_exiting_timeout = 20
    return settings


async def watch_resources(feeds: Sequence[Feed], connect: Connect, stop: asyncio.Event, ready: asyncio.Event, *, identity: str = "corral") -> None:
    """Until `stop`. Ends, or raises, earlier when kopf does; the process should end then."""
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # it tells of every event that was handed on
    await kopf.operator(
        registry=make_registry(feeds, connect),
        settings=make_settings(),
        clusterwide=True,
        standalone=True,
        # Of no use without peering; but left to itself kopf asks for the user's name, and a container's user has none.
        identity=identity,
        stop_flag=stop,
        ready_flag=ready,
    )
