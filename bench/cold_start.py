"""`openai`'s own client, as it comes, through a cold start. Prints what it saw and how long it took.

`PYTHONPATH=operator:. python bench/cold_start.py [--seconds 90]`

A real gateway over real sockets, and a pod that takes so long to load. The client streams; its time limits and its retries are its own.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

import openai
import uvloop
from tests.gateway.conftest import Stand, model
from tests.gateway.peers import Pod
from tests.gateway.test_official_clients import ASK, chunk

from corral.gateway.ports import Hold
from corral.gateway.settings import GatewaySettings


async def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    seconds = options.seconds
    stand = Stand(GatewaySettings(host="127.0.0.1", port=0, admin_host="127.0.0.1", admin_port=0, grace=1))
    await stand.server.start()
    async with Pod(state="Sleeping") as pod, openai.AsyncOpenAI(base_url=stand.url + "/v1", api_key="none") as client:
        pod.chunks = [chunk("one "), chunk("two", "stop"), b"data: [DONE]\n\n"]
        stand.directory.put_model(model(hold=Hold()))
        stand.directory.put_replica(pod.view())

        async def load():
            await asyncio.sleep(seconds)
            await pod.become("Loaded")

        loading = asyncio.ensure_future(load())
        began = time.monotonic()
        stream = await client.chat.completions.create(**ASK, stream=True)
        headers = time.monotonic() - began
        text = "".join([part.choices[0].delta.content async for part in stream])
        took = time.monotonic() - began
        await loading
        print(f"openai {openai.__version__}: {text!r} after {took:.2f} s; status after {headers:.2f} s; the pod saw {len(pod.seen)} request(s)")
        if options.json:
            options.json.write_text(json.dumps({"seconds": took, "status_after": headers, "requests_seen": len(pod.seen), "text": text}))
    await stand.server.stop()


uvloop.run(main())
