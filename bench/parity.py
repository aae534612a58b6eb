"""Greedy answers beside llama-server's, token by token: alone and eight at a time.

    python bench/parity.py --model FILE.gguf --llama-server PATH [--prompts 200] [--tokens 24] [--no-checkpoints] [--json FILE]

llama.cpp does not compute a row the same way in every batch (its attention has one kernel for 64 rows and more, another for fewer), so answers may
part where the two best tokens are nearly as good. Each such place is printed with the distance between the two, in nats. llama-server evaluates the
last four tokens of each prompt of a model with sliding windows apart, for a checkpoint; with `--no-checkpoints` it does not.
"""

import argparse
import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.server import Target, corral, llama_server

PLACES = ("the sea", "a mountain", "an old town", "the desert", "a library", "the moon", "a farm", "the harbour", "a forest", "the market")
ASKED = (
    "Describe {} in one sentence.", "Count the steps to {}:", "Why do people like {}?", "A short poem about {}:", "Once, near {}, there was",
    "List three things found at {}:", "The history of {} begins", "If I lived at {}, I would", "Translate into French: {}", "Q: How far is {}? A:",
    "Tell a child about {}.", "The weather at {} is", "My first visit to {} was", "{} is known for", "A recipe from {}:", "Two friends met at {} and",
    "The opposite of {} is", "A letter about {}: Dear", "Someone painted {} in", "Nobody knew that {}",
)  # fmt: skip
Tokens = list[tuple[int, float, str]]
"""Each token, how much better it was than the next best one, and its text."""


async def answer(session: aiohttp.ClientSession, target: Target, prompt: str, tokens: int) -> Tokens:
    body = {
        "prompt": prompt, "n_predict": tokens, "temperature": 0, "n_probs": 2, "cache_prompt": False, "ignore_eos": True, "return_tokens": True,
    }  # fmt: skip
    async with session.post(f"{target.url}/completion", json=body, headers=target.headers) as response:
        response.raise_for_status()
        document: dict[str, Any] = await response.json()
    entries = document["completion_probabilities"]
    if len(entries) < len(document["tokens"]):
        # llama-server tells no probabilities of a part of a character; the other side's then say how close it was.
        return [(token, 0.0, "") for token in document["tokens"]]
    found: Tokens = []
    for token, entry in zip(document["tokens"], entries, strict=True):
        best = sorted((t["logprob"] for t in entry["top_logprobs"]), reverse=True)
        found.append((token, best[0] - best[1], entry["token"]))
    return found


async def answers(target: Target, prompts: list[str], tokens: int, at_once: int) -> list[Tokens]:
    room = asyncio.Semaphore(at_once)

    async def one(prompt: str) -> Tokens:
        async with room:
            return await answer(session, target, prompt, tokens)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=900)) as session:
        return list(await asyncio.gather(*(one(p) for p in prompts)))


def compare(name: str, prompts: list[str], one: list[Tokens], other: list[Tokens]) -> dict[str, Any]:
    equal, gaps = 0, []
    for prompt, a, b in zip(prompts, one, other, strict=True):
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x[0] != y[0]), None)
        if at is None:
            equal += 1
        else:
            gaps.append((max(a[at][1], b[at][1]), prompt, at, a[at][2], b[at][2]))
    print(f"{name}: {equal} of {len(prompts)} equal; largest distance where they part: {max((g[0] for g in gaps), default=0.0):.3f}")
    for gap, prompt, at, x, y in sorted(gaps, reverse=True)[:10]:
        print(f"    {gap:.3f} at token {at} of {prompt!r}: {x!r} or {y!r}")
    parted = [{"distance": gap, "prompt": prompt, "token": at, "texts": [x, y]} for gap, prompt, at, x, y in sorted(gaps, reverse=True)]
    return {"compared": name, "prompts": len(prompts), "equal": equal, "parted": parted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-checkpoints", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prompts = [a.format(p) for a in ASKED for p in PLACES][: options.prompts]
    with contextlib.ExitStack() as stack:
        shape: tuple[Any, ...] = (options.model, options.threads, 8, 8192)
        ours = stack.enter_context(corral(*shape))
        more = ("--ctx-checkpoints", "0") if options.no_checkpoints else ()
        theirs = stack.enter_context(llama_server(options.llama_server, *shape, *more))
        found = {(t.name, n): asyncio.run(answers(t, prompts, options.tokens, n)) for t in (ours, theirs) for n in (1, 8)}
    report = [
        compare("both alone", prompts, found["corral", 1], found["llama-server", 1]),
        compare("both eight at once", prompts, found["corral", 8], found["llama-server", 8]),
        compare("corral, alone and eight at once", prompts, found["corral", 1], found["corral", 8]),
        compare("llama-server, alone and eight at once", prompts, found["llama-server", 1], found["llama-server", 8]),
    ]
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
