"""What the estimate promises beside what a loaded and used server holds, for real and random models of several architectures.

    python bench/footprint.py [--only WORD] [--markdown docs/footprint.md]

`held` is the anonymous memory of all processes of the server plus the weights that are mapped. It fails where a promise misses its bar: for
llama.cpp's buffers never under, and at most 1 % or 8 MiB over; for the whole server never under, and at most 15 % over.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.server.harness import Server
from tests.support import models
from tests.support.random_models import Shape, random_model

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    name: str
    path: Callable[[], Path]
    engine: dict[str, Any]
    pooled: bool = False


def cases() -> Iterator[Case]:
    for context, slots, kind in ((2048, 4, "F16"), (8192, 4, "F16"), (8192, 16, "Q8_0"), (4096, 1, "Q4_0")):
        yield Case("SmolLM2-135M", models.smollm2, {"contextLength": context, "slots": slots, "kvCache": kind})
    for context, slots, kind in ((2048, 4, "F16"), (8192, 4, "F16"), (8192, 8, "Q8_0")):
        yield Case("Gemma 3 270M", models.gemma, {"contextLength": context, "slots": slots, "kvCache": kind})
    yield Case("all-MiniLM-L6-v2", models.minilm, {}, pooled=True)
    for architecture in ("llama", "qwen3", "qwen3moe", "gemma3", "deepseek2", "lfm2", "mamba"):
        shape = Shape(architecture, layers=12, width=512, heads=8, feed_forward=1536, vocabulary=8192, context=16384, window=512)
        quantised = architecture not in ("deepseek2", "mamba")
        for context, slots, kind in ((2048, 2, "F16"), (4096, 1, "Q4_0" if quantised else "F32"), (8192, 8, "Q8_0" if quantised else "F16")):
            yield Case(f"random {architecture}", lambda s=shape: random_model(s), {"contextLength": context, "slots": slots, "kvCache": kind})


def promise(case: Case, folder: Path) -> dict[str, Any]:
    spec = json.dumps({"engine": case.engine})
    command = [sys.executable, "-m", "corral_server", "estimate", str(case.path()), "--spec", spec]
    env = {"PYTHONPATH": str(ROOT / "server_image"), "CORRAL_CACHE_DIR": str(folder), "CORRAL_ALLOW_LOCAL_SOURCES": "1", "PATH": "/usr/bin:/bin"}
    answer: dict[str, Any] = json.loads(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
    if not answer["ok"]:
        raise RuntimeError(f"{case.name}: {answer['message']}")
    return answer


def anonymous(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def used(case: Case, folder: Path) -> tuple[dict[str, int], int]:
    """llama.cpp's own buffers, and what all processes hold beside the weights after some work."""
    with Server(case.path().as_uri(), folder, engine=case.engine) as server:
        status = server.load()
        for index in range(2):
            if case.pooled:
                server.http.post("/v1/embeddings", json={"input": [f"word {index} " * 100] * 8}).raise_for_status()
            else:
                ask = {"prompt": f"{index} " + "words and more " * 30, "max_tokens": 8, "n": 4, "temperature": 1.0, "logprobs": 5, "ignore_eos": True}
                server.http.post("/v1/completions", json=ask).raise_for_status()
        tree = server.tree()
        held = sum(anonymous(p) for p in [server.process.pid, *tree["zygote"], *tree["children"]])
    return {k: status["memory"][k] for k in ("weights", "kvCache", "compute")}, held - status["memory"]["repacked"]


def row(case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        promised = promise(case, Path(folder))
        buffers, held = used(case, Path(folder) / "run")
    total = held + buffers["weights"]
    return {
        "missed": missed(promised, buffers, total),
        "model": case.name, "context": promised["contextLength"], "slots": case.engine.get("slots", 4), "cache": case.engine.get("kvCache", "F16"),
        **{k: round(promised[k] / MIB, 1) for k in ("weights", "kvCache", "compute", "overhead", "total")},
        "held": round(total / MIB, 1), "over": f"{(promised['total'] / total - 1) * 100:+.1f} %",
        "buffers": "equal" if all(promised[k] == v for k, v in buffers.items()) else f"differ: {buffers}",
    }  # fmt: skip


def missed(promised: dict[str, Any], buffers: dict[str, int], total: int) -> list[str]:
    """The bars that this promise misses, in words."""
    said, are = sum(promised[k] for k in buffers), sum(buffers.values())
    found = []
    if said < are:
        found.append(f"the buffers take {are - said} bytes more than promised")
    if said - are > max(are // 100, 8 * MIB):
        found.append(f"the buffers take {said - are} bytes less than promised")
    if promised["total"] < total:
        found.append(f"the server holds {total - promised['total']} bytes more than promised")
    if promised["total"] > total * 1.15:
        found.append(f"the server holds {(promised['total'] / total - 1):.1%} less than promised")
    return found


def table(rows: list[dict[str, Any]]) -> str:
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(str(r[h]) for h in heads) + " |" for r in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--markdown", type=Path, help="a page whose table is replaced, after its line <!-- table -->")
    options = parser.parse_args()
    rows = []
    for case in cases():
        if options.only in case.name:
            rows.append(row(case))
            print(rows[-1], flush=True)
    failed = [f"{each['model']}, context {each['context']}: {'; '.join(each['missed'])}" for each in rows if each["missed"]]
    for each in rows:
        del each["missed"]
    print(table(rows))
    if options.markdown:
        head, mark, _ = options.markdown.read_text().partition("<!-- table -->\n")
        options.markdown.write_text(f"{head}{mark}\n{table(rows)}\n")
    if failed:
        sys.exit("\n".join(["these miss their bar:", *failed]))


if __name__ == "__main__":
    main()
