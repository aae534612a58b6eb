"""A witness over the whole run: every event of every server pod, judged by the API server's own data.

It asserts what must hold at each moment (allocated requests on a node never pass the capacity less the margin; nobody is killed for
memory) and keeps what it saw for the tests. It must never change anything in the cluster.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

SERVERS = "app.kubernetes.io/component=server"
UNITS = {"": 1, "m": 0.001, "k": 1000, "M": 1000**2, "G": 1000**3, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}


def quantity(value: str | float) -> int:
    """Bytes of a Kubernetes quantity."""
    text = str(value)
    digits = text.rstrip("kKMGTim")
    return int(float(digits) * UNITS[text[len(digits) :]])


@dataclass
class Witness:
    limit_by_node: dict[str, int]  # capacity less margin, bytes
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    highest: dict[str, int] = field(default_factory=dict)
    events: int = 0
    history: list[tuple[float, str, str, int]] = field(default_factory=list)  # time, pod, node, allocated bytes

    def begin(self) -> None:
        self.pods.clear()

    def take(self, event: dict[str, Any]) -> None:
        pod = event["object"]
        uid = pod["metadata"]["uid"]
        self.events += 1
        finished = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if event["type"] == "DELETED" or finished:
            self.pods.pop(uid, None)
        else:
            self.pods[uid] = pod
        self._judge(pod)

    def _judge(self, pod: dict[str, Any]) -> None:
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        for status in pod.get("status", {}).get("containerStatuses") or []:
            for state in (status.get("state", {}), status.get("lastState", {})):
                if state.get("terminated", {}).get("reason") == "OOMKilled":
                    self.violations.append(f"{name} was OOMKilled")
        sums: dict[str, int] = {}
        for other in self.pods.values():
            node = other["spec"].get("nodeName")
            if node:
                sums[node] = sums.get(node, 0) + allocated(other)
        node = pod["spec"].get("nodeName", "")
        self.history.append((time.time(), name, node, allocated(pod)))
        for where, total in sums.items():
            self.highest[where] = max(self.highest.get(where, 0), total)
            limit = self.limit_by_node.get(where)
            if limit is not None and total > limit:
                detail = ", ".join(f"{p['metadata']['name']}={allocated(p)}" for p in self.pods.values() if p["spec"].get("nodeName") == where)
                self.violations.append(f"{where}: {total} bytes allocated, {limit} allowed ({detail})")

    def assert_clean(self) -> None:
        assert not self.violations, "\n".join(dict.fromkeys(self.violations))


def allocated(pod: dict[str, Any]) -> int:
    """The memory that the kubelet has allocated to a pod; before it says so, what the spec asks for."""
    total = 0
    statuses = {s["name"]: s for s in pod.get("status", {}).get("containerStatuses") or []}
    for container in pod["spec"]["containers"]:
        granted = (statuses.get(container["name"], {}).get("allocatedResources") or {}).get("memory")
        asked = (container.get("resources", {}).get("requests") or {}).get("memory", "0")
        total += quantity(granted if granted is not None else asked)
    return total
