"""`corral up`: the control loop, the gateway and the server processes of one machine, put together in one process and one event loop.

It owns the order of start and end. It must never decide anything, and must leave no process behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from corral.api.types import MI
from corral.control.loop import Controller
from corral.control.settings import ControlSettings
from corral.domain import reasons
from corral.domain.model import Device
from corral.gateway.app import create_app
from corral.gateway.directory import MemoryDirectory
from corral.gateway.server import GatewayServer
from corral.gateway.settings import GatewaySettings
from corral.local.admin import Admin
from corral.local.devices import Inventory, inventory
from corral.local.estimates import Estimates
from corral.local.events import Event, EventLog
from corral.local.folder import Folder
from corral.local.leadership import LocalLeadership
from corral.local.manifests import Key
from corral.local.pods import LocalPods, PodSettings
from corral.local.processes import Warden, kill_leftovers, server_environment
from corral.local.registry import Registry
from corral.local.reports import LocalReports
from corral.local.rundir import RunDir, cache_root, default_run_dir
from corral.local.statuses import LocalStatuses
from corral.local.world import World
from corral.tokens import TokenSigner, load_or_create_key

CONTROL = ControlSettings(residue=72 * MI, delete_grace=10.0, keep_memory=0.0)
"""Here a sleeping server shares its libraries' pages with its siblings, so it is counted with less than a pod of its own image is."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    paths: tuple[Path, ...]
    devices: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    run_dir: Path = field(default_factory=default_run_dir)
    cache: Path = field(default_factory=cache_root)
    grace: float = 10.0
    """How long streams may still take when everything stops."""


@dataclass(frozen=True, slots=True)
class Console:
    """Whom to tell what."""

    say: Callable[[str, str], None]
    """A level (`error`, `note`) and a text."""
    event: Callable[[Event], None]
    started: Callable[[str, Sequence[Device], str, Sequence[str]], None]
    """The endpoint, the devices, how they are known, and the names of the models."""


async def run(options: UpOptions, console: Console) -> None:
    """Run until SIGINT or SIGTERM; a second one ends at once."""
    missing = [path for path in options.paths if not path.exists()]
    if missing:
        raise FileNotFoundError(f"-f {missing[0]}: there is no such file or folder")
    server_environment()  # fails now, not at the first model, when the server is not installed
    found = inventory(options.devices)
    run_dir = RunDir(options.run_dir)
    stop = asyncio.Event()
    with contextlib.closing(run_dir.claim()), contextlib.ExitStack() as stack:
        killed = kill_leftovers(run_dir)
        if killed:
            console.say("note", f"ended {killed} processes that an earlier corral up left behind")
        warden = Warden()
        stack.callback(warden.close)
        await _Instance(options, console, run_dir, warden, found).run(_stop_on_signals(stop))


def _stop_on_signals(stop: asyncio.Event) -> asyncio.Event:
    loop = asyncio.get_running_loop()

    def asked(number: signal.Signals) -> None:
        if stop.is_set():
            # The second time: whoever asks does not want to wait. The pipe to the warden closes, and it ends what is left.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked, number)
    return stop


class _Instance:
    def __init__(self, options: UpOptions, console: Console, run_dir: RunDir, warden: Warden, found: Inventory) -> None:
        self._options = options
        self._console = console
        self._run_dir = run_dir
        files = options.cache / "files"
        files.mkdir(parents=True, exist_ok=True)
        signer = TokenSigner(load_or_create_key(run_dir.key))
        self._leadership = LocalLeadership(run_dir)
        self._registry = Registry(time.time)
        self._events = EventLog()
        self._events.subscribe(console.event)
        settings = PodSettings(run_dir, files, signer.public_key_text(), found.gpu_variable)
        self._pods = LocalPods(settings, self._leadership, warden, Estimates(run_dir.estimates, files))
        statuses = LocalStatuses(self._registry, self._events, self._leadership)
        self._controller = Controller(self._pods, statuses, self._leadership, signer, settings=CONTROL)
        directory = MemoryDirectory()
        gateway = create_app(
            directory,
            LocalReports(self._controller.store),
            signer,
            GatewaySettings(host=options.host, port=options.port, admin_host="127.0.0.1", admin_port=0, grace=options.grace),
        )
        gateway.registries.append(self._controller.metrics)
        self._server = GatewayServer(gateway)
        self._folder = Folder(options.paths, self._registry, console.say, self._refuse)
        self._world = World(
            self._registry,
            self._pods,
            self._controller.store,
            directory,
            inventory=found,
            named=bool(options.devices),
            say=console.say,
        )
        self._admin = Admin(self._registry, self._pods, self._events, self._folder, self._controller.plan_view)

    def _refuse(self, key: Key, why: str) -> None:
        """As an API server refuses an apply: the object stays as it is, and whoever looks at it is told."""
        found = self._registry.get(key)
        if found is not None:
            self._events.add(found, warning=True, reason=reasons.INVALID, message=why)

    async def run(self, stop: asyncio.Event) -> None:
        self._folder.scan()
        self._world.start()
        halt = asyncio.Event()  # what ends the control loop, after the streams have ended
        try:
            await self._server.start()
            endpoint = f"http://{self._options.host}:{self._server.port}"
            await self._admin.start(self._run_dir, {"endpoint": endpoint, "metrics": f"http://127.0.0.1:{self._server.admin_port}/metrics"})
            names = [obj["metadata"]["name"] for obj in self._registry.of_kind("ModelDeployment")]
            self._console.started(endpoint, self._world.devices, self._world.how, names)
            tasks = [
                asyncio.create_task(self._controller.run(halt), name="control loop"),
                asyncio.create_task(self._folder.watch(stop), name="folder"),
                asyncio.create_task(_until(stop), name="stop"),
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            stop.set()
            await self._server.stop()
            halt.set()
            _, late = await asyncio.wait(tasks, timeout=self._options.grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            for task in done:
                task.result()  # a part that failed ends the whole, and says why
        finally:
            self._leadership.resign()
            await self._pods.close(self._options.grace)
            await self._admin.stop()
            self._run_dir.admin.unlink(missing_ok=True)


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()
