"""The composition roots of the cluster's two processes: `operator` and `gateway`. Everything is built here, once, and handed to who needs it.

It owns the order of start and end. The operator reads the world only while it leads, and ends its process when the lease is lost: nothing that was
decided before may be written after.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, NoReturn

from corral import logs
from corral.settings import GatewayProcessSettings, OperatorSettings, SettingError, gateway_settings, operator_settings

log = logging.getLogger("corral")

SILENCE = 400.0
"""Seconds without any sign from a watch after which the process counts as stuck."""
AFTER_KOPF = 10.0
"""Seconds until the second list: kopf does not tell what went between our first list and its own."""
WIND_DOWN = 10.0
"""Seconds that the loop may take to end what it is doing."""


def operator() -> None:
    """`corral operator`."""
    settings = _or_exit(operator_settings)
    logs.set_up(settings.log_level)
    sys.exit(_run(run_operator(settings)))


def gateway() -> None:
    """`corral gateway`."""
    settings = _or_exit(gateway_settings)
    logs.set_up(settings.log_level)
    _run(run_gateway(settings))


def _or_exit(read: Any) -> Any:
    try:
        return read()
    except SettingError as error:
        sys.exit(f"corral: {error}")


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    import uvloop  # noqa: PLC0415 - neither the command line's other commands nor the tests need it

    return uvloop.run(coroutine)


async def run_operator(settings: OperatorSettings) -> int:
    """Wait for leadership, lead until asked to stop; the exit code."""
    from corral.kube.client import KubeClient  # noqa: PLC0415 - the gateway starts without what only the operator needs
    from corral.kube.epochs import highest_epoch  # noqa: PLC0415
    from corral.kube.lease import Elector  # noqa: PLC0415

    client = await KubeClient.connect(user_agent="corral-operator")
    stop = _stop_on_signals(asyncio.Event())
    elector = Elector(client, settings.namespace, settings.lease_name, settings.identity, highest=lambda: highest_epoch(client))
    process = _Operator(settings, client, elector)
    await process.health.start()
    try:
        if not await _first(elector.acquire(), stop):
            return 0
        return await process.lead(stop)
    finally:
        await elector.release()
        await process.health.stop()
        await client.close()


async def _first(coroutine: Coroutine[Any, Any, Any], stop: asyncio.Event) -> bool:
    """Whether it ended before `stop` was set."""
    task, stopped = asyncio.ensure_future(coroutine), asyncio.ensure_future(stop.wait())
    done, pending = await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    for other in pending:
        other.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    if task in done:
        task.result()
    return task in done and not stop.is_set()


class _Operator:
    """One process: its parts, from the moment it leads."""

    def __init__(self, settings: OperatorSettings, client: Any, elector: Any) -> None:
        from corral.health import HealthServer  # noqa: PLC0415

        self._settings = settings
        self._client = client
        self._elector = elector
        self._reflectors: tuple[Any, ...] = ()
        self.health = HealthServer(settings.http_port, self._stuck, self._unready)

    async def lead(self, stop: asyncio.Event) -> int:
        from corral.control.handlers import watch_resources  # noqa: PLC0415
        from corral.control.loop import Controller  # noqa: PLC0415
        from corral.control.settings import ControlSettings  # noqa: PLC0415
        from corral.kube.bindings import SOURCES, Bindings, served  # noqa: PLC0415
        from corral.kube.claims import ClaimKeeper  # noqa: PLC0415
        from corral.kube.deviceplugin import DevicePlugin  # noqa: PLC0415
        from corral.kube.devices import Backends, HostMemory, Static  # noqa: PLC0415
        from corral.kube.dra import Dra  # noqa: PLC0415
        from corral.kube.keys import ensure_key  # noqa: PLC0415
        from corral.kube.manifests import ServerSettings  # noqa: PLC0415
        from corral.kube.membership import Pools  # noqa: PLC0415
        from corral.kube.nodes import NodeBook  # noqa: PLC0415
        from corral.kube.objects import gates_of, keep_reading, read_until_done  # noqa: PLC0415
        from corral.kube.pods import ServerPods  # noqa: PLC0415
        from corral.kube.statuses import KubeStatuses  # noqa: PLC0415
        from corral.kube.workloads import KubeWorkloads  # noqa: PLC0415
        from corral.tokens import TokenSigner  # noqa: PLC0415

        settings = self._settings
        holding = asyncio.create_task(self._elector.hold(), name="lease")
        writer = self._client.gated(self._elector.may_write)
        signer = TokenSigner(await ensure_key(writer, settings.namespace, settings.key_secret))
        server = ServerSettings(
            image=settings.server_image,
            pull_policy=settings.server_pull_policy,
            pull_secrets=settings.server_pull_secrets,
            public_keys=(signer.public_key_text(),),
            hf_endpoint=settings.hf_endpoint,
            allow_local_sources=settings.allow_local_sources,
            grace_seconds=settings.grace_seconds,
        )
        control = ControlSettings(template=server.digest())
        dra = Dra() if await served(self._client) else None
        backends, pools = Backends((*([dra] if dra else []), DevicePlugin(), Static(), HostMemory())), Pools()
        keeper = ClaimKeeper(writer, dra.claims) if dra else None
        workloads = KubeWorkloads(
            writer,
            server,
            backends,
            pools,
            estimate_concurrency=control.estimate_concurrency,
            ensure=keeper.ensure if keeper else None,
            read_back=dra.read_back if dra else lambda pod: pod,
        )
        statuses = KubeStatuses(writer, instance=settings.pod_name)
        controller = Controller(workloads, statuses, self._elector, signer, settings=control)
        sink = controller.store
        book = NodeBook(self._client, sink, backends, pools, more=SOURCES if dra else ())
        bindings = Bindings(self._client, dra, keeper, sink, look_again=book.look_again, arrived=book.arrived) if dra and keeper else None
        pods = ServerPods(self._client, bindings.pods if bindings else sink)
        gates = gates_of(sink, pools)
        self._reflectors = (pods.reflector, book.reflector, book.foreign.reflector, *(bindings.reflectors if bindings else ()))
        self.health.registry = controller.metrics

        async def read_resources() -> None:
            for gate, source in zip(gates, ("pools", "models", "reports"), strict=True):
                await read_until_done(self._client, gate)
                sink.synced(source)
            book.pools_synced()
            read_first.set()
            await keep_reading(self._client, gates, first=AFTER_KOPF)

        read_first, kopf_stop, kopf_ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
        loop_task = asyncio.create_task(controller.run(stop), name="control loop")

        async def watch() -> None:
            # Our own lists come first: kopf would read the same objects at the same time, and the first decision waits for the lists only.
            await read_first.wait()
            await watch_resources(gates, self._client.connection, kopf_stop, kopf_ready, identity=settings.identity)

        kopf_task = asyncio.create_task(watch(), name="kopf")
        watches = [
            asyncio.create_task(read_resources(), name="lists"),
            asyncio.create_task(pods.run(), name="pods"),
            asyncio.create_task(book.reflector.run(), name="nodes"),
            asyncio.create_task(book.foreign.reflector.run(), name="foreign pods"),
            *([asyncio.create_task(bindings.run(), name="devices")] if bindings else []),
        ]
        signals = asyncio.create_task(_take_signals_back(kopf_ready, stop), name="signals")
        stopped = asyncio.create_task(stop.wait(), name="stop")
        everything = [holding, loop_task, kopf_task, *watches]
        done, _ = await asyncio.wait([stopped, *everything], return_when=asyncio.FIRST_COMPLETED)
        if holding in done:
            _die("the lease is lost; this process ends before it writes anything")
        # A kopf that ended by itself and in peace was asked to by a signal that it took for its own.
        failed = [task for task in done if task is not stopped and (task is not kopf_task or task.exception() is not None)]
        for task in failed:
            log.error("%s ended: this process ends too", task.get_name(), exc_info=None if task.cancelled() else task.exception())
        stop.set()
        await asyncio.wait([loop_task], timeout=WIND_DOWN)
        await _end([signals, stopped, *watches])
        kopf_stop.set()
        if not read_first.is_set():
            kopf_task.cancel()
        await asyncio.wait([kopf_task], timeout=WIND_DOWN)
        # What is still running may not write any more once the lease is given up; the release is the last thing that is written.
        await _end([loop_task, kopf_task, holding])
        return 1 if failed else 0

    def _stuck(self) -> str:
        now = time.monotonic()
        silent = [reflector.path for reflector in self._reflectors if now - reflector.last_activity > SILENCE]
        return f"nothing was heard of {', '.join(silent)} for {SILENCE:.0f} s" if silent else ""

    def _unready(self) -> str:
        waiting = [reflector.path for reflector in self._reflectors if not reflector.synced]
        return f"{', '.join(waiting)} not listed yet" if waiting else ""


async def run_gateway(settings: GatewayProcessSettings) -> None:
    from corral.gateway.app import create_app  # noqa: PLC0415
    from corral.gateway.directory import MemoryDirectory  # noqa: PLC0415
    from corral.gateway.server import serve  # noqa: PLC0415
    from corral.gateway.settings import GatewaySettings  # noqa: PLC0415
    from corral.kube.client import KubeClient  # noqa: PLC0415
    from corral.kube.directory import KubeDirectory  # noqa: PLC0415
    from corral.kube.keys import await_key, await_key_file  # noqa: PLC0415
    from corral.kube.keystore import KubeKeys  # noqa: PLC0415
    from corral.kube.reports import KubeReports  # noqa: PLC0415
    from corral.tokens import TokenSigner  # noqa: PLC0415

    client = await KubeClient.connect(user_agent="corral-gateway")
    try:
        if settings.key_file:
            key = await await_key_file(Path(settings.key_file))
        else:
            key = await await_key(client, settings.namespace, settings.key_secret)
        directory = MemoryDirectory()
        follower = KubeDirectory(client, directory, settings.namespace)
        keys = KubeKeys(client, settings.keys_namespace) if settings.keys_namespace else None
        app = create_app(
            directory,
            KubeReports(client, settings.namespace, settings.pod_name, settings.pod_uid),
            TokenSigner(key),
            GatewaySettings(port=settings.port, admin_port=settings.admin_port, grace=float(settings.grace_seconds), settle=settings.settle_seconds),
            keys=keys.store if keys else None,
        )
        following = [asyncio.create_task(follower.run(), name="directory")]
        if keys is not None:
            following.append(asyncio.create_task(keys.reflector.run(), name="API keys"))
            await keys.listed.wait()  # a good key must not be refused because it is not read yet
        serving = asyncio.create_task(serve(app), name="server")
        await asyncio.wait((*following, serving), return_when=asyncio.FIRST_COMPLETED)
        for task in following:
            if task.done():
                task.result()
        await serving
        await _end(following)
    finally:
        await client.close()


def _stop_on_signals(stop: asyncio.Event) -> asyncio.Event:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _take_signals_back(kopf_ready: asyncio.Event, stop: asyncio.Event) -> None:
    """kopf takes SIGTERM and SIGINT for itself when it starts; but the loop has to end before the watches do."""
    await kopf_ready.wait()
    _stop_on_signals(stop)


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    ending = [task for task in tasks if not task.done()]
    for task in ending:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*ending, return_exceptions=True)


def _die(why: str) -> NoReturn:
    """At once, past every handler that might still want to say something to the API."""
    log.error(why)
    logging.shutdown()
    os._exit(1)
