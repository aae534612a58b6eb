"""How much memory kopf takes to hold Corral's objects of the cluster that KUBECONFIG names: a process that does nothing else. Prints bytes."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corral.control.handlers import watch_resources
from corral.kube.client import GATEWAY_REPORTS, MODEL_DEPLOYMENTS, MODEL_POOLS, KubeClient, Resource

SETTLED = 1 << 20


class Feed:
    def __init__(self, resource: Resource) -> None:
        self.resource = resource

    def event(self, kind: str | None, obj: Mapping[str, Any]) -> None:
        """Nobody listens."""


def held() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


async def main() -> None:
    client = await KubeClient.connect(user_agent="fleet-kopf")
    before, last = held(), 0
    stop, ready = asyncio.Event(), asyncio.Event()
    feeds = [Feed(it) for it in (MODEL_POOLS, MODEL_DEPLOYMENTS, GATEWAY_REPORTS)]
    watching = asyncio.create_task(watch_resources(feeds, client.connection, stop, ready))
    await ready.wait()
    while abs(held() - last) > SETTLED:
        last = held()
        await asyncio.sleep(10)
    print(held() - before)
    stop.set()
    await watching
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
