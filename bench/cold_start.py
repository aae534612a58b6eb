"""`openai`'s and `anthropic`'s own clients, as they come, through a cold start. Prints what they saw and how long it took.

`PYTHONPATH=operator:. python bench/cold_start.py [--seconds 90]`

A real gateway over real sockets, and pods that take so long to load. The clients stream; their time limits and their retries are their own.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

import anthropic
import openai
import uvloop
from tests.gateway.conftest import Stand, model
from tests.gateway.peers import Pod
from tests.gateway.test_official_clients import ASK, anthropic_events, chunk

from corral.gateway.ports import Hold
from corral.gateway.settings import GatewaySettings


async def ask_openai(url):
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none") as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        yield "status"
        async for part in stream:
            yield part.choices[0].delta.content


async def ask_anthropic(url):
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none") as client:
        stream = await client.messages.create(**{**ASK, "model": "other"}, max_tokens=5, stream=True)
        yield "status"
        async for event in stream:
            if event.type == "content_block_delta":
                yield event.delta.text


async def measure(name, version, asking, pod):
    began = time.monotonic()
    await anext(asking)
    headers = time.monotonic() - began
    text = "".join([piece async for piece in asking])
    took = time.monotonic() - began
    print(f"{name} {version}: {text!r} after {took:.2f} s; status after {headers:.2f} s; the pod saw {len(pod.seen)} request(s)", flush=True)
    return {"seconds": took, "status_after": headers, "requests_seen": len(pod.seen), "text": text}


async def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    stand = Stand(GatewaySettings(host="127.0.0.1", port=0, admin_host="127.0.0.1", admin_port=0, grace=1))
    await stand.server.start()
    async with Pod(state="Sleeping") as pod, Pod("pod-b", "models/other", state="Sleeping") as other:
        pod.chunks = [chunk("one "), chunk("two", "stop"), b"data: [DONE]\n\n"]
        other.chunks = anthropic_events("one ", "two")
        for name, one in (("small", pod), ("other", other)):
            stand.directory.put_model(model(name, hold=Hold()))
            stand.directory.put_replica(one.view())

        async def load():
            await asyncio.sleep(options.seconds)
            await pod.become("Loaded")
            await other.become("Loaded")

        loading = asyncio.ensure_future(load())
        found = await asyncio.gather(
            measure("openai", openai.__version__, ask_openai(stand.url), pod),
            measure("anthropic", anthropic.__version__, ask_anthropic(stand.url), other),
        )
        await loading
        if options.json:
            options.json.write_text(json.dumps(dict(zip(("openai", "anthropic"), found, strict=True))))
    await stand.server.stop()


uvloop.run(main())
