"""A fake GPU driver on each node: `gpus up` starts them with two GPUs of 8Gi each, `gpus down` takes them away.

What a node's driver publishes is in `<state>/gpus/<node>.json`; it follows the file. The drivers are not among the processes without which the
cluster counts as broken: tests stop and start them.
"""

import json
import signal
import sys
import time
from pathlib import Path

from twonodes import addons, network, processes, tools
from twonodes.node import Node
from twonodes.state import ClusterError, locked, say, state

DRIVER = "gpu.corral.test"
GPUS = 2
MEMORY = "8Gi"
PRODUCT = "Fake-8G"
USAGE = "usage: gpus up | down | start NODE | stop NODE"


def run(arguments: list[str]) -> None:
    try:
        with locked():
            _do(state(), arguments)
    except ClusterError as error:
        say(str(error))
        sys.exit(1)


def _do(folder: Path, arguments: list[str]) -> None:
    if not (folder / "env.json").exists() or (folder / "mode").read_text() != "nodes":
        raise ClusterError("there is no cluster of processes: run up first")
    match arguments:
        case ["up"]:
            up(folder)
        case ["down"]:
            down(folder)
        case ["start", name]:
            start(folder, _node(folder, name))
        case ["stop", name]:
            stop(folder, _node(folder, name))
        case _:
            raise ClusterError(USAGE)


def device_class() -> dict[str, object]:
    selector = f'device.driver == "{DRIVER}"'
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": DRIVER},
        "spec": {"selectors": [{"cel": {"expression": selector}}]},
    }


def up(folder: Path) -> None:
    tools.build(tools.GPU_DRIVER)
    addons.apply(folder / "kubeconfig", [device_class()])
    (folder / "gpus").mkdir(exist_ok=True)
    for node in _nodes(folder):
        write(folder, node.name, [gpu(node.index, number) for number in range(GPUS)])
        stop(folder, node)
        start(folder, node)
    _wait_published(folder)


def down(folder: Path) -> None:
    for node in _nodes(folder):
        stop(folder, node)
    kubeconfig = folder / "kubeconfig"
    addons.kubectl(kubeconfig, "delete", "deviceclass", DRIVER, "--ignore-not-found")
    addons.kubectl(kubeconfig, "delete", "resourceslice", "--field-selector", f"spec.driver={DRIVER}", "--ignore-not-found")


def gpu(node: int, number: int) -> dict[str, object]:
    uuid = f"GPU-00000000-0000-0000-{node:04d}-{number:012d}"
    return {"name": f"gpu-{number}", "uuid": uuid, "memory": MEMORY, "product": PRODUCT}


def write(folder: Path, node: str, devices: list[dict[str, object]]) -> None:
    file = folder / "gpus" / f"{node}.json"
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(devices, indent=1) + "\n")
    fresh.replace(file)


def start(folder: Path, node: Node) -> None:
    """With the kubelet's own credentials and, like the kubelet, in the node's network and mounts."""
    containerd = processes.recorded(folder, f"{node.name}-containerd")
    command = [
        *network.enter(node.index),
        "nsenter",
        f"--mount=/proc/{containerd}/ns/mnt",
        str(tools.folder(tools.GPU_DRIVER) / "gpu-driver"),
        f"--driver={DRIVER}",
        f"--node={node.name}",
        f"--kubeconfig={folder / 'pki' / f'{node.name}.kubeconfig'}",
        f"--kubelet={node.folder / 'kubelet'}",
        f"--cdi={node.folder / 'cdi'}",
        f"--devices={folder / 'gpus' / f'{node.name}.json'}",
    ]
    processes.start(folder, f"{node.name}-gpus", command)
    (folder / "pids" / f"{node.name}-gpus").replace(folder / "gpus" / f"{node.name}.pid")


def stop(folder: Path, node: Node, patience: float = 10) -> None:
    record = folder / "gpus" / f"{node.name}.pid"
    if not record.exists():
        return
    pid, end = int(record.read_text()), time.monotonic() + patience
    if pid in processes.members(folder):
        processes.send(pid, signal.SIGTERM)
    while pid in processes.members(folder):
        if time.monotonic() > end:
            processes.send(pid, signal.SIGKILL)
        time.sleep(0.05)
    record.unlink()


def _wait_published(folder: Path, patience: float = 30) -> None:
    end = time.monotonic() + patience
    while True:
        text = addons.kubectl(folder / "kubeconfig", "get", "resourceslices", "-o", "json")
        slices = [item for item in json.loads(text)["items"] if item["spec"]["driver"] == DRIVER]
        if sum(len(item["spec"].get("devices") or []) for item in slices) == GPUS * len(_nodes(folder)):
            return
        if time.monotonic() > end:
            raise ClusterError(f"the GPU drivers publish nothing; see {folder}/logs/*-gpus.log")
        time.sleep(0.1)


def _nodes(folder: Path) -> list[Node]:
    names = json.loads((folder / "env.json").read_text())["CORRAL_E2E_NODES"].split()
    return [Node(folder, index) for index in range(1, len(names) + 1)]


def _node(folder: Path, name: str) -> Node:
    found = next((node for node in _nodes(folder) if node.name == name), None)
    if found is None:
        raise ClusterError(f"no node is called {name!r}: there are {', '.join(node.name for node in _nodes(folder))}")
    return found
