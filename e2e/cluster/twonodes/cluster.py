"""The two-node cluster from processes: the order in which its parts start, and when it is ready."""

import json
import os
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twonodes import addons, cgroups, cleanup, control_plane, images, network, processes, tools
from twonodes.node import Node, quantity
from twonodes.pki import Authority
from twonodes.state import ClusterError

NODES = 2
NEEDED = (tools.KUBERNETES, tools.CONTAINERD, tools.POD, tools.GATEWAY_API, tools.COREDNS, tools.HELM, tools.TRAEFIK)


def prepare() -> None:
    """What a fresh machine lacks; the reason when it cannot be had."""
    if os.geteuid() != 0:
        raise ClusterError("a cluster of processes needs root (network namespaces, mounts, control groups): run up as root, or set KUBECONFIG_E2E")
    tools.install_debian_packages()
    tools.build(*NEEDED)


def up(state: Path) -> None:
    memory = os.environ.get("CORRAL_E2E_NODE_MEMORY", "")
    if memory:
        quantity(memory)
    if taken := network.conflict():
        raise ClusterError(f"the interface {taken} already has an address in {network.NODES}.0/24, which the nodes use")
    nodes = [Node(state, index) for index in range(1, NODES + 1)]
    cgroups.up([node.name for node in nodes])
    network.up(NODES)
    for node in nodes:
        node.start_containerd()
    authority = control_plane.certificates(state / "pki", [node.name for node in nodes])
    control_plane.start(state, authority)
    archives = images.own_archives()  # the first time they are written
    with ThreadPoolExecutor(NODES) as pool:
        list(pool.map(lambda node: _fill(node, archives), nodes))
    control_plane.wait_ready(state, authority)
    control_plane.start_controllers(state, authority)
    for node in nodes:
        node.start_agents(authority, memory)
    addons.start_coredns(state, authority)
    admin = authority.kubeconfig("admin")
    addons.add_ingress(admin, addons.dns_objects())
    addons.start_traefik(state, authority)
    _wait_nodes(authority, nodes)
    for name, address in (("coredns", (network.address(1), 1053)), ("traefik", (network.address(1), addons.HTTP_PORT))):
        _wait_port(state, name, address)
    volumes = state / "volumes"
    volumes.mkdir()
    volumes.chmod(0o755)
    kubeconfig = state / "kubeconfig"
    shutil.copyfile(authority.kubeconfig("admin"), kubeconfig)
    kubeconfig.chmod(0o600)


def running(state: Path) -> bool:
    """Whether a former `up` came to its end and all of it still lives."""
    pki = state / "pki"
    if not (state / "env").exists() or not (pki / "admin.crt").exists() or not processes.all_recorded_alive(state):
        return False
    authority = Authority.__new__(Authority)
    authority.folder, authority.server = pki, control_plane.SERVER
    return control_plane.ready(authority)


def environment(state: Path) -> dict[str, str]:
    return {
        "KUBECONFIG": str(state / "kubeconfig"),
        "CORRAL_E2E_NODES": " ".join(f"node-{index}" for index in range(1, NODES + 1)),
        "CORRAL_E2E_INGRESS": f"{network.address(1)}:{addons.HTTP_PORT}",
        "CORRAL_E2E_VOLUMES": str(state / "volumes"),
    }


def down(state: Path) -> None:
    cleanup.down(state)


def load(state: Path, *archives: Path) -> None:
    with ThreadPoolExecutor(NODES) as pool:
        list(pool.map(lambda index: images.load(Node(state, index).socket, *archives), range(1, NODES + 1)))


def _fill(node: Node, archives: list[Path]) -> None:
    node.wait_containerd()
    images.load(node.socket, *archives)


def _wait_nodes(authority: Authority, nodes: list[Node], patience: float = 60) -> None:
    end = time.monotonic() + patience
    while True:
        items = json.loads(addons.kubectl(authority.kubeconfig("admin"), "get", "nodes", "-o", "json"))["items"]
        ready = [item["metadata"]["name"] for item in items if _condition(item, "Ready") == "True"]
        if len(ready) == len(nodes):
            return
        if time.monotonic() > end:
            raise ClusterError(f"only these nodes are Ready: {', '.join(ready) or 'none'}; see logs/node-*-kubelet.log")
        time.sleep(0.2)


def _condition(item: dict[str, dict[str, list[dict[str, str]]]], kind: str) -> str:
    return next((c["status"] for c in item["status"].get("conditions", []) if c["type"] == kind), "")


def _wait_port(state: Path, name: str, address: tuple[str, int], patience: float = 60) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            with socket.create_connection(address, timeout=1):
                return
        except OSError as error:
            if time.monotonic() > end or not processes.all_recorded_alive(state):
                raise ClusterError(f"{name} does not listen on {address[0]}:{address[1]}; see {state}/logs/{name}.log") from error
            time.sleep(0.05)
