"""`corral_server serve`: both ports, the supervisor behind them, and an orderly end."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from corral_server.control_api import make_control_app
from corral_server.inference_api import make_inference_app
from corral_server.settings import Settings
from corral_server.spec import parse_spec
from corral_server.supervisor import Supervisor
from corral_server.tokens import TokenVerifier


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals are ours: a stop drains first.
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


def _server(app: Any) -> _Server:
    return _Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=75, loop="uvloop", http="httptools", server_header=False
        )
    )


def _write_ports(settings: Settings, inference: int, control: int) -> None:
    if settings.ports_file is not None:
        temporary = settings.ports_file.with_name(settings.ports_file.name + ".tmp")
        temporary.write_text(json.dumps({"inference": inference, "control": control}))
        temporary.replace(settings.ports_file)


async def _run(settings: Settings) -> None:
    spec = parse_spec(settings.spec)
    verifier = TokenVerifier(settings.public_keys, settings.pod_uid)
    supervisor = Supervisor(settings, spec, json.loads(settings.spec).get("engine") or {})
    sockets = [_listen(settings.host, settings.inference_port), _listen(settings.host, settings.control_port)]
    servers = [_server(make_inference_app(supervisor, verifier)), _server(make_control_app(supervisor, verifier))]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(server.serve(sockets=[sock])) for server, sock in zip(servers, sockets, strict=True)]
    await supervisor.start()
    while not all(server.started for server in servers):
        await asyncio.sleep(0.005)
        for task in tasks:
            if task.done():
                task.result()
    _write_ports(settings, sockets[0].getsockname()[1], sockets[1].getsockname()[1])
    await stop.wait()
    await supervisor.stop(settings.grace_seconds)
    for server in servers:
        server.should_exit = True
    _, late = await asyncio.wait(tasks, timeout=2.0)
    for server in servers:
        server.force_exit = True
    if late:
        await asyncio.wait(late, timeout=2.0)


def serve(settings: Settings) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # One loop implementation for the whole process, as uvicorn would have chosen.
    import uvloop  # noqa: PLC0415

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings))
    logging.shutdown()
    os._exit(0)
