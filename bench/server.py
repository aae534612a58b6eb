"""The pod server beside a llama-server: the same file, threads and slots, asked by the same clients on the same cores, in turns.

    python bench/server.py --model FILE.gguf [--llama-server PATH] [--rounds 5] [--threads 2] [--slots 16] [--sampled] [--grammar]
                           [--json FILE]

Answers are greedy; with `--sampled` each server samples by its own defaults (both: temperature 0.8, `top_k` 40, `top_p` 0.95, `min_p` 0.05).
`--grammar` measures everything a second time beside one client more, whose answers are held to a JSON schema and are not counted. Prints one line per
server, number of clients and prompt length: generated and prompt tokens per second, time to first token, time between tokens, processor seconds per
token, resident memory; each as median and range over the rounds. Nothing else should run on the machine meanwhile.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.server.harness import Server


@dataclass
class Target:
    name: str
    url: str
    headers: dict[str, str]
    pid: int


@dataclass
class Sample:
    """What one client saw of one answer."""

    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt: int = 0


@contextlib.contextmanager
def corral(model: Path, threads: int, slots: int, cells: int) -> Iterator[Target]:
    with tempfile.TemporaryDirectory() as folder:
        engine = {"threads": threads, "slots": slots, "kvTokens": cells}
        with Server(model.resolve().as_uri(), Path(folder), engine=engine) as server:
            server.load()
            yield Target("corral", server.inference_url, server.bearer("infer", lifetime=86_400), server.process.pid)


@contextlib.contextmanager
def llama_server(binary: str, model: Path, threads: int, slots: int, cells: int, *more: str) -> Iterator[Target]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [binary, "-m", str(model), "-t", str(threads), "-tb", str(threads), "-np", str(slots), "-c", str(cells), "-kvu"]
    process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port), *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not healthy(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{binary} did not start (exit code {process.poll()})")
            time.sleep(0.1)
        yield Target("llama-server", url, {}, process.pid)
    finally:
        process.terminate()
        process.wait(10)


def healthy(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=2).status_code == 200
    except httpx2.TransportError:
        return False


def family(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    return sum(t.user + t.system for t in (p.cpu_times() for p in family(pid)))


def own_cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


async def ask(session: aiohttp.ClientSession, target: Target, prompt: str, tokens: int, sampling: dict[str, Any]) -> Sample:
    body = sampling | {
        "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True, "cache_prompt": False,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    sample, begin, last = Sample(), time.perf_counter(), 0.0
    async with session.post(f"{target.url}/v1/completions", json=body, headers=target.headers) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            if b'"usage":{' in line:
                usage = json.loads(line[6:]).get("usage") or {}
                sample.tokens, sample.prompt = usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0)
            if last:
                sample.gaps.append(now - last)
            else:
                sample.first = now - begin
            last = now
    return sample


SCHEMA = {
    "type": "object", "required": ["name", "age", "tags", "address"], "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{2,12} [A-Z][a-z]{2,12}$"}, "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "minItems": 3, "maxItems": 6, "items": {"enum": ["red", "green", "blue", "violet", "amber"]}},
        "address": {
            "type": "object", "required": ["street", "city"], "additionalProperties": False,
            "properties": {"street": {"type": "string", "maxLength": 30}, "city": {"type": "string", "maxLength": 20}},
        },
    },
}  # fmt: skip


async def constrained(session: aiohttp.ClientSession, target: Target) -> None:
    """Ask for one object after the other, at a temperature at which the model seldom writes JSON by itself."""
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    body = {"messages": [{"role": "user", "content": "Tell me about somebody."}], "temperature": 1.5, "max_tokens": 200, "response_format": form}
    while True:
        async with session.post(f"{target.url}/v1/chat/completions", json=body, headers=target.headers) as answer:
            answer.raise_for_status()
            await answer.read()


async def measure(
    target: Target, clients: int, words: int, tokens: int, *, sampled: bool = False, grammar: bool = False
) -> dict[str, float]:  # fmt: skip
    sampling = {} if sampled else {"temperature": 0}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=900), connector=aiohttp.TCPConnector(limit=0)) as session:
        # A different beginning for each client, so that nobody lives off another's prefix.
        prompts = [f"{n} is the number of this story. " + "The sea was calm and " * (words // 5) for n in range(clients)]
        beside = asyncio.create_task(constrained(session, target)) if grammar else None
        cpu, door, begin = cpu_seconds(target.pid), own_cpu(target.pid), time.perf_counter()
        samples = await asyncio.gather(*(ask(session, target, p, tokens, sampling) for p in prompts))
        wall = time.perf_counter() - begin
        if beside is not None:
            beside.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beside
            # A server may take a while to notice that nobody wants its answer any more, and whoever is measured next would pay for it.
            await asyncio.sleep(4)
    total = sum(s.tokens for s in samples)
    firsts = sorted(s.first for s in samples)
    gaps = sorted(g for s in samples for g in s.gaps) or [0.0]
    return {
        "tok_s": total / wall,
        "prompt_tok_s": sum(s.prompt for s in samples) / max(firsts[-1], 1e-9),
        "ttft_p50_ms": statistics.median(firsts) * 1e3,
        "ttft_p99_ms": firsts[int(0.99 * (len(firsts) - 1))] * 1e3,
        "gap_p50_ms": statistics.median(gaps) * 1e3,
        "gap_p99_ms": gaps[int(0.99 * (len(gaps) - 1))] * 1e3,
        "cpu_ms_per_token": (cpu_seconds(target.pid) - cpu) / max(total, 1) * 1e3,
        # The process that has the port: for Corral the supervisor alone, for llama-server all of it.
        "door_ms_per_token": (own_cpu(target.pid) - door) / max(total, 1) * 1e3,
        "rss_mib": sum(p.memory_info().rss for p in family(target.pid)) / 2**20,
    }


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--llama-server", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--cells", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--words", type=int, nargs="+", default=[20, 400])
    parser.add_argument("--sampled", action="store_true")
    parser.add_argument("--grammar", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[tuple[str, int, int, bool], list[dict[str, float]]] = {}
    with contextlib.ExitStack() as stack:
        shape: tuple[Any, ...] = (options.model, options.threads, options.slots, options.cells)
        targets = [stack.enter_context(corral(*shape))]
        if options.llama_server:
            targets.append(stack.enter_context(llama_server(options.llama_server, *shape)))
        for target in targets:
            asyncio.run(measure(target, 1, 20, 8))
        for _ in range(options.rounds):
            for clients, words, grammar in itertools.product(options.clients, options.words, [False, True] if options.grammar else [False]):
                for target in targets:
                    found = asyncio.run(measure(target, clients, words, options.tokens, sampled=options.sampled, grammar=grammar))
                    results.setdefault((target.name, clients, words, grammar), []).append(found)
                    figures = " ".join(f"{k}={v:.1f}" for k, v in found.items())
                    print(f"# {target.name} {clients} {words} {'grammar ' if grammar else ''}{figures}", file=sys.stderr, flush=True)
    for (name, clients, words, grammar), rounds in results.items():
        figures = "  ".join(f"{k} {spread([r[k] for r in rounds])}" for k in rounds[0])
        print(f"{name:12} clients {clients:2} words {words:4}{' beside a grammar' if grammar else ''}  {figures}")
    if options.json:
        rows = [{"server": n, "clients": c, "words": w, "grammar": g, "rounds": r} for (n, c, w, g), r in results.items()]
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
