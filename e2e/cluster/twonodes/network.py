"""The machine's part of the network: one namespace a node, a bridge between them, routes to the pods. Nothing leaves this machine.

Node i is 10.89.0.i with the pods 10.244.i.0/24; the machine itself is 10.89.0.254, so that tests reach nodes, pods and Services directly. A
further cluster on the machine has its number added to the second byte of each.
"""

import json
import subprocess

from twonodes.state import INSTANCE

PREFIX = f"corral{INSTANCE or ''}"
BRIDGE = f"corral{INSTANCE}"
NODES = f"10.{89 + INSTANCE}.0"
HOST = f"{NODES}.254"
SERVICES = f"10.{110 + INSTANCE}.0.0/16" if INSTANCE else "10.96.0.0/16"
PODS = f"10.{244 + INSTANCE}.0.0/16"
API_SERVICE = SERVICES.replace("0.0/16", "0.1")
DNS_SERVICE = SERVICES.replace("0.0/16", "0.10")


def namespace(index: int) -> str:
    return f"{PREFIX}-n{index}"


def address(index: int) -> str:
    return f"{NODES}.{index}"


def pod_range(index: int) -> str:
    return PODS.replace("0.0/16", f"{index}.0/24")


def up(nodes: int) -> None:
    indices = range(1, nodes + 1)
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "add", f"{HOST}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    for index in indices:
        inside = ("-n", namespace(index))
        _ip("netns", "add", namespace(index))
        _ip("link", "add", f"{PREFIX}-v{index}", "type", "veth", "peer", "name", "eth0", "netns", namespace(index))
        _ip("link", "set", f"{PREFIX}-v{index}", "master", BRIDGE, "up")
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "address", "add", f"{address(index)}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        for other in indices:
            if other != index:
                _ip(*inside, "route", "add", pod_range(other), "via", address(other))
        _ip("route", "add", pod_range(index), "via", address(index))
        subprocess.run([*enter(index), "sysctl", "-q", "-w", "net.ipv4.ip_forward=1"], check=True)
    _ip("route", "add", SERVICES, "via", address(1))


def enter(index: int) -> list[str]:
    """Not `ip netns exec`: that mounts a new /sys, and the kubelet then finds no cgroups."""
    return ["nsenter", f"--net=/run/netns/{namespace(index)}"]


def down() -> None:
    for entry in json.loads(_output("netns", "list")):
        if entry["name"].startswith(f"{PREFIX}-n"):
            _ip("netns", "delete", entry["name"], check=False)
    names = {link["ifname"] for link in json.loads(_output("link", "show"))}
    for name in names:
        if name == BRIDGE or name.startswith(f"{PREFIX}-v"):
            _ip("link", "delete", name, check=False)


def conflict() -> str:
    """The interface that already has an address of ours, if there is one."""
    for link in json.loads(_output("address", "show")):
        addresses = [entry["local"] for entry in link.get("addr_info", []) if entry["family"] == "inet"]
        if any(found.startswith(f"{NODES}.") for found in addresses):
            return str(link["ifname"])
    return ""


def _output(*arguments: str) -> str:
    return subprocess.run(["ip", "-j", *arguments], check=True, capture_output=True, text=True).stdout or "[]"


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
