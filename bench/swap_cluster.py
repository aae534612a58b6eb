"""Swapping two models through gateway, operator, API server and kubelet: the end-to-end tests' cluster, one of its nodes with room for one model,
beside llama.cpp's router on the same machine and files, in turns.

    python bench/swap_cluster.py --llama-server PATH [--rounds 7] [--threads 2] [--json FILE]

Prints what `bench/swap.py` prints. Brings the cluster and the chart up as `make e2e` does, and takes them away again. Nothing else should run on the
machine meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from e2e.support import bringup  # noqa: E402 - after the path is set
from e2e.support.world import HUB_URL, MODELS, World, deployment  # noqa: E402
from swap import Endpoint, asked, in_turns  # noqa: E402
from tests.support import models as files  # noqa: E402

CAPACITY, MARGIN = "4Gi", "64Mi"


@contextlib.contextmanager
def cluster() -> Iterator[tuple[World, dict[str, str]]]:
    try:
        with bringup.cluster() as env:
            yield bringup.release(env, bringup.client(env), capacity=CAPACITY, margin=MARGIN), env
    finally:
        subprocess.run([bringup.TOOL / "down"], check=True, stdout=subprocess.DEVNULL)


def room_for_one(world: World, env: dict[str, str], paths: dict[str, Path], threads: int, context: int) -> None:
    """Both models, on one node that holds one of them."""
    pool = {
        "nodeSelector": {"kubernetes.io/hostname": world.nodes[0]},
        "maxModelsPerDevice": 1,
        "eviction": {"minResidency": "0s"},
        "fairness": {"maxWait": "0s", "turn": "0s"},
    }
    world.kubectl.run("patch", "mp", "default", "--type=merge", "-p", json.dumps({"spec": pool}))
    engine = {"contextLength": context // 4, "kvTokens": context, "slots": 4, "threads": threads, "microBatch": 512}
    for name, path in paths.items():
        target = Path(env["CORRAL_E2E_VOLUMES"]) / "hub" / "org" / name / f"{name}.gguf"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        world.apply(deployment(name, f"{HUB_URL}/files/org/{name}/{name}.gguf", engine=engine))
    world.wait_ready(*paths)


def main() -> None:
    options = asked((__doc__ or "").splitlines()[0]).parse_args()
    paths = {"smollm2": files.smollm2(), "gemma": files.gemma()}
    with tempfile.TemporaryDirectory() as name, cluster() as (world, env):
        room_for_one(world, env, paths, options.threads, options.context)
        in_turns(Endpoint("corral", world.gateway, world.host, ("smollm2", "gemma")), Path(name), options, paths)
        print(world.kubectl.run("get", "events", "-n", MODELS, "--field-selector=reason=Loaded", "--sort-by=.lastTimestamp")[-800:])


if __name__ == "__main__":
    main()
