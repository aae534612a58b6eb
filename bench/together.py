"""Several models in use at once on the same cores: pod servers beside as many llama-servers, the same files and threads, in turns.

    python bench/together.py --model FILE.gguf [--model OTHER.gguf ...] [--copies 2] [--llama-server PATH] [--rounds 3] [--threads 0] [--clients 1]
                             [--tokens 64] [--json FILE]

Each file is served `--copies` times. In a round every server is asked alone, then all of them at the same time; answers are greedy. Prints tokens per
second of all servers together and the time to the first token, as median and range over the rounds. `--threads 0` is each server's own default.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.server import Target, ask, corral, llama_server, spread

_SLOTS, _CELLS = 4, 16384


async def measure(targets: list[Target], clients: int, tokens: int) -> dict[str, float]:
    """Tokens per second of all that are asked at once, and the median of their first tokens' times."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=900), connector=aiohttp.TCPConnector(limit=0)) as session:
        begin = time.perf_counter()
        prompts = [(t, f"{n} is the number of this story. The sea was calm and") for t in targets for n in range(clients)]
        samples = await asyncio.gather(*(ask(session, t, prompt, tokens, {"temperature": 0}) for t, prompt in prompts))
        wall = time.perf_counter() - begin
    firsts = sorted(s.first for s in samples)
    return {"tok_s": sum(s.tokens for s in samples) / wall, "ttft_p50_ms": firsts[len(firsts) // 2] * 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--llama-server", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    files = [file for file in options.model for _ in range(options.copies)]
    results: dict[tuple[str, str], list[dict[str, float]]] = {}
    with contextlib.ExitStack() as stack:
        kinds = {"corral": [stack.enter_context(corral(file, options.threads, _SLOTS, _CELLS)) for file in files]}
        if options.llama_server:
            threads = options.threads or -1
            kinds["llama-server"] = [stack.enter_context(llama_server(options.llama_server, f, threads, _SLOTS, _CELLS)) for f in files]
        for servers in kinds.values():
            for server in servers:
                asyncio.run(measure([server], 1, 8))
        for _ in range(options.rounds):
            for name, servers in kinds.items():
                for what, asked in (("alone", [[s] for s in servers]), ("at once", [servers])):
                    for some in asked:
                        found = asyncio.run(measure(some, options.clients, options.tokens))
                        results.setdefault((name, what), []).append(found)
                        print(f"# {name} {what} " + " ".join(f"{k}={v:.1f}" for k, v in found.items()), file=sys.stderr, flush=True)
    for (name, what), rounds in results.items():
        print(f"{name:12} {what:8}  " + "  ".join(f"{k} {spread([r[k] for r in rounds])}" for k in rounds[0]))
    if options.json:
        options.json.write_text(json.dumps([{"server": n, "asked": w, "rounds": r} for (n, w), r in results.items()], indent=1))


if __name__ == "__main__":
    main()
