"""The cluster, the images, the chart and the hub, brought up once per run and taken away by whoever called `make e2e`.

`CORRAL_E2E_KEEP=1` leaves the release in place, which makes the next run quick.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.support import bringup, gpus, install
from e2e.support.kubectl import Kubectl, conditions
from e2e.support.ledger import SERVERS, Witness, quantity
from e2e.support.pod_watch import PodWatch
from e2e.support.world import MODELS, SYSTEM, World, namespace
from tests.support import gguf_files
from tests.support.large_files import write_large_model

CAPACITY, MARGIN = "900Mi", "64Mi"


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    with bringup.cluster() as env:
        yield env


@pytest.fixture(scope="session")
def local_cluster(cluster: dict[str, str]) -> None:
    """For tests that signal the pods' processes: they must run on this machine."""
    if cluster["CORRAL_E2E_MODE"] != "nodes":
        pytest.skip("the pods' processes are not on this machine")


@pytest.fixture(scope="session")
def kubectl(cluster: dict[str, str]) -> Kubectl:
    return bringup.client(cluster)


@pytest.fixture(scope="session")
def whole_world(cluster: dict[str, str], kubectl: Kubectl) -> Iterator[World]:
    world = bringup.release(cluster, kubectl, capacity=CAPACITY, margin=MARGIN)
    yield world
    if not os.environ.get("CORRAL_E2E_KEEP"):
        world.remove_models()
        install.uninstall(kubectl)


@pytest.fixture(scope="session")
def witness(whole_world: World) -> Iterator[Witness]:
    limit = quantity(CAPACITY) - quantity(MARGIN)
    found = Witness(dict.fromkeys(whole_world.nodes, limit))
    watch = PodWatch(whole_world.kubectl, SERVERS, found)
    watch.start()
    yield found
    watch.stop()
    found.assert_clean()


@pytest.fixture
def world(whole_world: World, witness: Witness, request: pytest.FixtureRequest) -> Iterator[World]:
    """The world with no model in it; the witness looks on."""
    assert witness is not None
    whole_world.remove_models()
    yield whole_world
    outcome = getattr(request.node, "outcome", None)
    if outcome is not None and outcome.failed:
        _tell(whole_world)


@pytest.fixture
def settings(world: World) -> Iterator[Callable[..., None]]:
    """Change the pool's policy for one test."""
    before = world.kubectl.get("mp", "default")["spec"]

    def change(**spec: Any) -> None:
        world.kubectl.run("patch", "mp", "default", "--type=merge", "-p", json.dumps({"spec": spec}))

    yield change
    world.remove_models()
    world.kubectl.run("patch", "mp", "default", "--type=merge", "-p", json.dumps({"spec": before}))


@pytest.fixture
def front_doors(whole_world: World, cluster: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Per way in: the address to connect to, and the host name that it answers to."""
    assert whole_world.gateway
    address = f"http://{cluster['CORRAL_E2E_INGRESS']}"
    return {"ingress": (address, install.INGRESS_HOST), "route": (address, install.ROUTE_HOST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a run also waits for the cluster, the images and the chart."""
    for item in items:
        item.add_marker(pytest.mark.timeout(1500))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    if report.when == "call":
        item.outcome = report  # type: ignore[attr-defined]
    return report


def _tell(world: World) -> None:
    """What a person would look at first."""
    for md in world.kubectl.list("md", MODELS):
        print(f"\n== {md['metadata']['name']}")
        for kind, condition in conditions(md).items():
            print(f"   {kind}={condition['status']} {condition['reason']}: {condition.get('message', '')}")
    print(world.kubectl.run("get", "pods", "-A", "-o", "wide", check=False))
    print(world.kubectl.run("get", "events", "-n", MODELS, "--sort-by=.lastTimestamp", check=False)[-6000:])
    print(world.kubectl.logs(SYSTEM, "app.kubernetes.io/component=operator", 80)[-8000:])
    print(world.kubectl.logs(MODELS, "app.kubernetes.io/component=server", 25)[-6000:])


@pytest.fixture(scope="module")
def gpu_fleet(whole_world: World, local_cluster: None, cluster: dict[str, str]) -> Iterator[World]:
    """The installed release, with GPUs on its nodes and a pool of them."""
    world, kubectl = whole_world, whole_world.kubectl
    gpus.control("up")
    kubectl.apply(*(namespace(name) for name in gpus.TEAMS))
    hub = Path(cluster["CORRAL_E2E_VOLUMES"]) / "hub" / "org" / "gpu"
    hub.mkdir(parents=True, exist_ok=True)
    for name in gpus.SIZES:
        gguf_files.write_sentence_model(hub / f"{name}.gguf", f"I am {name}.", size=48 << 20, layers=2, context=16384)
    kubectl.apply(*install.volume("large", gpus.TEAM_A, cluster, "large", "ReadWriteMany"))
    large = Path(cluster["CORRAL_E2E_VOLUMES"]) / "large"
    for name, size in (("elephant", 11.4), ("mammoth", 19.4)):
        write_large_model(large / f"{name}.gguf", f"I am {name}.", size=int(size * gpus.GI), layers=24)
    kubectl.apply(gpus.pool())
    for node in world.nodes:
        kubectl.run("label", "node", node, f"{gpus.LABEL}=yes", "--overwrite")
    yield world
    gpus.remove_all(world)
    for node in world.nodes:
        kubectl.run("label", "node", node, f"{gpus.LABEL}-")
    kubectl.delete("modelpool", gpus.POOL)
    gpus.control("down")
    kubectl.delete("namespace", *gpus.TEAMS)
    kubectl.delete("pv", f"{gpus.TEAM_A}-large")
    for file in large.glob("*.gguf"):
        file.unlink()


@pytest.fixture(scope="module")
def gpu_witness(gpu_fleet: World) -> Iterator[gpus.Witness]:
    found = gpus.Witness()
    watch = PodWatch(gpu_fleet.kubectl, gpus.SERVERS_OF_THE_POOL, found)
    watch.start()
    yield found
    watch.stop()
    found.assert_clean()
