"""Swapping two models through gateway, operator, API server and kubelet: the end-to-end tests' cluster, one of its nodes with room for one model,
beside llama.cpp's router on the same machine and files, in turns.

    python bench/swap_cluster.py --llama-server PATH [--rounds 7] [--threads 2] [--json FILE]

Prints what `bench/swap.py` prints. Brings the cluster and the chart up as `make e2e` does, and takes them away again. Nothing else should run on the
machine meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from e2e.support import install  # noqa: E402 - after the path is set
from e2e.support.kubectl import Kubectl  # noqa: E402
from e2e.support.world import HUB_URL, MODELS, World, deployment  # noqa: E402
from swap import Endpoint, report, router  # noqa: E402
from tests.support import models as files  # noqa: E402

CAPACITY, MARGIN = "4Gi", "64Mi"


@contextlib.contextmanager
def cluster() -> Iterator[tuple[World, dict[str, str]]]:
    tool = ROOT / "e2e" / "cluster"
    subprocess.run([tool / "up"], check=True, stdout=subprocess.DEVNULL)
    try:
        state = Path(os.environ.get("CORRAL_E2E_STATE") or "/tmp/corral-e2e")
        env: dict[str, str] = json.loads((state / "env.json").read_text())
        os.environ["PATH"] = f"{env['CORRAL_E2E_TOOLS']}:{os.environ['PATH']}"
        os.environ["KUBECONFIG"] = env["KUBECONFIG"]
        kubectl = Kubectl(env["KUBECONFIG"], shutil.which("kubectl") or "kubectl")
        install.images(ROOT, env)
        world = World(kubectl, f"http://{env['CORRAL_E2E_INGRESS']}", install.INGRESS_HOST, env["CORRAL_E2E_NODES"].split())
        install.namespaces(kubectl)
        world.sources = install.hub(kubectl, env)
        install.cache_volume(kubectl, env)
        install.chart(ROOT, kubectl, env, CAPACITY, MARGIN)
        install.wait_for_gateway(world)
        yield world, env
    finally:
        subprocess.run([tool / "down"], check=True, stdout=subprocess.DEVNULL)


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
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--llama-server", default="", help="path of a llama-server to compare with")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--context", type=int, default=4096, help="KV cells in all, shared by four slots")
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    paths = {"smollm2": files.smollm2(), "gemma": files.gemma()}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        world, env = stack.enter_context(cluster())
        room_for_one(world, env, paths, options.threads, options.context)
        endpoints = [Endpoint("corral", world.gateway, world.host, ("smollm2", "gemma"))]
        if options.llama_server:
            folder = Path(name) / "router"
            folder.mkdir()
            for model, path in paths.items():
                (folder / f"{model}.gguf").symlink_to(path)
            endpoints.append(stack.enter_context(router(options.llama_server, folder, options.threads, options.context)))
        for endpoint in endpoints:  # the first load of each reads the file and starts what is started once
            endpoint.swap()
            endpoint.first_token.clear()
            endpoint.waited.clear()
        for _ in range(options.rounds):
            for endpoint in endpoints:
                endpoint.swap()
        result = report(endpoints)
        print(world.kubectl.run("get", "events", "-n", MODELS, "--field-selector=reason=Loaded", "--sort-by=.lastTimestamp")[-800:])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
