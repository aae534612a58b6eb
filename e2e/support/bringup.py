"""What the end-to-end tests and the benches on a cluster stand on: the cluster, and the release, the hub and the cache in it.

Takes nothing away again: whoever brings up says when it goes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from e2e.support import install
from e2e.support.kubectl import Kubectl
from e2e.support.world import World

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "e2e" / "cluster"


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """The cluster's description (`env.json`), with its tools first in PATH; one that runs already is taken as it is."""
    subprocess.run([TOOL / "up"], check=True, stdout=subprocess.DEVNULL)
    state = Path(os.environ.get("CORRAL_E2E_STATE") or "/tmp/corral-e2e")
    env: dict[str, str] = json.loads((state / "env.json").read_text())
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{env['CORRAL_E2E_TOOLS']}:{before}"
    os.environ["KUBECONFIG"] = env["KUBECONFIG"]
    yield env
    os.environ["PATH"] = before


def client(env: dict[str, str]) -> Kubectl:
    return Kubectl(env["KUBECONFIG"], shutil.which("kubectl") or "kubectl")


def release(env: dict[str, str], kubectl: Kubectl, *, capacity: str, margin: str) -> World:
    """The chart, with nodes of `capacity` and `margin` (quantities), once its gateway answers."""
    if env["CORRAL_E2E_MODE"] != "given":
        install.images(ROOT, env)
    address = f"http://{env.get('CORRAL_E2E_INGRESS', '')}"
    world = World(kubectl, gateway=address, host=install.INGRESS_HOST, nodes=env["CORRAL_E2E_NODES"].split())
    install.namespaces(kubectl)
    world.sources = install.hub(kubectl, env)
    install.cache_volume(kubectl, env)
    install.chart(ROOT, kubectl, env, capacity, margin)
    install.wait_for_gateway(world)
    return world
