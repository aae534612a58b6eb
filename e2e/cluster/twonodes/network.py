"""The machine's part of the network: one namespace a node, a bridge between them, routes to the pods. Nothing leaves this machine.

Node i is 10.89.0.i with the pods 10.244.i.0/24; the machine itself is 10.89.0.254, so that tests reach nodes, pods and Services directly.
"""

import json
import subprocess

BRIDGE = "corral0"
HOST = "10.89.0.254"
SERVICES = "10.96.0.0/16"
PODS = "10.244.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"


def namespace(index: int) -> str:
    return f"corral-n{index}"


def address(index: int) -> str:
    return f"10.89.0.{index}"


def pod_range(index: int) -> str:
    return f"10.244.{index}.0/24"


def up(nodes: int) -> None:
    indices = range(1, nodes + 1)
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "add", f"{HOST}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    for index in indices:
        inside = ("-n", namespace(index))
        _ip("netns", "add", namespace(index))
        _ip("link", "add", f"corral-v{index}", "type", "veth", "peer", "name", "eth0", "netns", namespace(index))
        _ip("link", "set", f"corral-v{index}", "master", BRIDGE, "up")
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
        if entry["name"].startswith("corral-n"):
            _ip("netns", "delete", entry["name"], check=False)
    names = {link["ifname"] for link in json.loads(_output("link", "show"))}
    for name in names:
        if name == BRIDGE or name.startswith("corral-v"):
            _ip("link", "delete", name, check=False)


def conflict() -> str:
    """The interface that already has an address of ours, if there is one."""
    for link in json.loads(_output("address", "show")):
        addresses = [entry["local"] for entry in link.get("addr_info", []) if entry["family"] == "inet"]
        if any(found.startswith("10.89.0.") for found in addresses):
            return str(link["ifname"])
    return ""


def _output(*arguments: str) -> str:
    return subprocess.run(["ip", "-j", *arguments], check=True, capture_output=True, text=True).stdout or "[]"


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
