import asyncio
import contextlib
import time

import aiohttp
import pytest
import uvloop
from tests.gateway.peers import SIGNER

from corral.gateway.app import create_app
from corral.gateway.directory import MemoryDirectory
from corral.gateway.ports import Hold, ModelView
from corral.gateway.server import GatewayServer
from corral.gateway.settings import GatewaySettings


def pytest_asyncio_loop_factories(config, item):
    """The gateway runs on uvloop, so its tests do."""
    return {"uvloop": uvloop.new_event_loop}


class Sink:
    """Keeps what is published."""

    def __init__(self):
        self.reports = []
        self.fail = False

    async def publish(self, report):
        if self.fail:
            raise OSError("the API server is away")
        self.reports.append(report)


def model(name="small", **changes):
    fields = {
        "namespace": "models",
        "name": name,
        "served_names": (f"models/{name}", name),
        "state": "Sleeping",
        "ready": True,
        "created": 1_700_000_000,
        "context_length": 4096,
        "hold": Hold(timeout=20, heartbeat=15),
    }
    return ModelView(**(fields | changes))


class Stand:
    """A gateway on real ports, with its directory, its sink and a client."""

    def __init__(self, settings, **options):
        self.directory = MemoryDirectory(synced=True)
        self.sink = Sink()
        self.gateway = create_app(self.directory, self.sink, SIGNER, settings, **options)
        self.server = GatewayServer(self.gateway)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def admin(self):
        return f"http://127.0.0.1:{self.server.admin_port}"

    async def chat(self, *, headers=None, path="/v1/chat/completions", **fields):
        """Status, headers and bytes of a whole answer."""
        body = {"model": "small", "messages": [{"role": "user", "content": "hello"}], **fields}
        async with self.client.post(self.url + path, json=body, headers=headers) as response:
            return response.status, response.headers, await response.read()

    async def until(self, condition, seconds=5.0):
        """Wait for something that other tasks bring about."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"still not so after {seconds}s"
            await asyncio.sleep(0.005)

    async def at_rest(self):
        """Everything that was counted has been given back."""
        gateway = self.gateway
        await self.until(
            lambda: (
                not gateway.open_requests
                and not gateway.machine.in_flight()
                and not gateway.machine.waiting()
                and not gateway.machine.held_bytes
                and not gateway.machine._tickets
                and not gateway.bodies.in_memory
                and not gateway.held_in_memory
                and not gateway.upstream._active
            )
        )


@pytest.fixture
async def stand_up():
    """A factory of stands; each is checked for leaks at the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(settings=None, **options):
            settings = settings or GatewaySettings(host="127.0.0.1", port=0, admin_host="127.0.0.1", admin_port=0, grace=2)
            stand = Stand(settings, **options)
            await stand.server.start()
            stand.client = aiohttp.ClientSession()

            async def down():
                await stand.client.close()
                await stand.at_rest()
                await stand.server.stop()
                assert not stand.gateway.upstream.open_connections

            stack.push_async_callback(down)
            return stand

        yield start


@pytest.fixture
async def stand(stand_up):
    return await stand_up()
