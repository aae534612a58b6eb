"""The cluster by `kind`, where a Docker engine answers: one control-plane node and one worker, both of which take pods.

traefik runs in the first node's container, as a process beside the kubelet, so that no image of it has to be pulled.
"""

import json
import subprocess
from pathlib import Path

from twonodes import addons, images, tools
from twonodes.state import SUFFIX, ClusterError

NAME = f"corral-e2e{SUFFIX}"
FIRST = f"{NAME}-control-plane"


def docker_answers() -> bool:
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def prepare() -> None:
    """What a fresh machine lacks; the reason when it cannot be had."""
    if not docker_answers():
        raise ClusterError("kind needs a Docker engine, and none answers: start Docker, or set CORRAL_E2E_CLUSTER=nodes")
    tools.build(tools.KIND, tools.KUBERNETES, tools.POD, tools.GATEWAY_API, tools.HELM, tools.TRAEFIK)


def up(state: Path) -> dict[str, str]:
    volumes, kubeconfig = state / "volumes", state / "kubeconfig"
    volumes.mkdir()
    node = {"extraMounts": [{"hostPath": str(volumes), "containerPath": str(volumes)}]}
    config = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "nodes": [{"role": "control-plane", **node}, {"role": "worker", **node}],
    }
    _kind("create", "cluster", "--name", NAME, "--kubeconfig", str(kubeconfig), "--wait", "120s", "--config", "-", stdin=json.dumps(config))
    addons.kubectl(kubeconfig, "taint", "nodes", FIRST, "node-role.kubernetes.io/control-plane-")
    load(*images.own_archives())
    addons.add_ingress(kubeconfig)
    address = _docker("inspect", "-f", '{{(index .NetworkSettings.Networks "kind").IPAddress}}', FIRST)
    _start_traefik(state, address)
    return {
        "KUBECONFIG": str(kubeconfig),
        "CORRAL_E2E_NODES": " ".join(_kind("get", "nodes", "--name", NAME).split()),
        "CORRAL_E2E_INGRESS": f"{address}:{addons.HTTP_PORT}",
        "CORRAL_E2E_VOLUMES": str(volumes),
    }


def running(state: Path) -> bool:
    if not (state / "env").exists():
        return False
    try:
        addons.kubectl(state / "kubeconfig", "get", "--raw=/readyz")
    except ClusterError:
        return False
    return True


def down() -> None:
    _kind("delete", "cluster", "--name", NAME)


def load(*archives: Path) -> None:
    for archive in archives:
        _kind("load", "image-archive", str(archive), "--name", NAME)


def _start_traefik(state: Path, address: str) -> None:
    config = state / "traefik.yaml"
    config.write_text(json.dumps(addons.traefik_config(address)))
    _docker("cp", str(tools.folder(tools.TRAEFIK) / "traefik"), f"{FIRST}:/usr/local/bin/traefik")
    _docker("cp", str(config), f"{FIRST}:/etc/traefik.yaml")
    _docker("exec", "-d", "-e", "KUBECONFIG=/etc/kubernetes/admin.conf", FIRST, "/usr/local/bin/traefik", "--configfile=/etc/traefik.yaml")


def _kind(*arguments: str, stdin: str = "") -> str:
    return _run([str(tools.folder(tools.KIND) / "kind"), *arguments], stdin)


def _docker(*arguments: str) -> str:
    return _run(["docker", *arguments]).strip()


def _run(command: list[str], stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command[:4])} failed: {done.stderr.strip()}")
    return done.stdout
