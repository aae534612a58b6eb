"""What the GPU scenarios stand on: fake GPUs on both nodes, a pool of them, models of a known size, and a witness of every pod that ever ran.

A model's size is in its compute buffers: llama.cpp asks for them as a GPU would have to give them, but on a CPU nothing touches them, so that models
of many gibibytes run on a small machine. Only a model that has to be split has its size in its weights: a file with holes.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.support.kubectl import until
from e2e.support.ledger import SERVERS
from e2e.support.world import HUB_URL, World, deployment

GPUS = Path(__file__).resolve().parents[1] / "cluster" / "gpus"
CLASS = "gpu.corral.test"
LABEL = "corral.test/gpus"
POOL = "gpus"
SERVERS_OF_THE_POOL = f"{SERVERS},corral.dev/pool={POOL}"
GI, MI = 1 << 30, 1 << 20
CAPACITY, MARGIN = 8 * GI, GI // 2
TEAMS = TEAM_A, TEAM_B, STRANGERS = "team-a", "team-b", "strangers"
SIX = {"ant": 6.0, "bee": 5.0, "cat": 4.0, "dog": 3.2, "eel": 7.0, "fox": 2.3}
MORE = {"gnu": 3.0, "hen": 2.0, "owl": 2.0, "pig": 5.0, "ram": 5.0, "rat": 5.0, "yak": 5.0}
SIZES = {**SIX, **MORE}
"""GiB that each model takes of a GPU."""


def control(*arguments: str) -> None:
    subprocess.run([GPUS, *arguments], check=True)


def pool(**spec: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "nodeSelector": {LABEL: "yes"},
        "devices": {"from": "DRA", "dra": {"deviceClassName": CLASS}},
        "memoryMargin": str(MARGIN),
        "eviction": {"minResidency": "0s", "drainTimeout": "10s"},
        "fairness": {"maxWait": "30s", "turn": "10s"},
        "idle": {"sleepAfter": "1h", "stopAfter": "2h"},
        "hold": {"timeout": "120s", "heartbeat": "5s"},
        "cache": {"type": "EmptyDir", "size": "1Gi"},
    }
    return {"apiVersion": "corral.dev/v1alpha1", "kind": "ModelPool", "metadata": {"name": POOL}, "spec": {**base, **spec}}


def micro_batch(need: float) -> int:
    """The batch with which a model of `SOURCE` needs about `need` bytes of a GPU: 564 MiB, and 0.765 MiB a token."""
    return int((need / MI - 564) / 0.765)


def model(name: str, need: float, namespace: str = TEAM_A, **spec: Any) -> dict[str, Any]:
    """A ModelDeployment that needs about `need` bytes of a GPU and says its own name."""
    batch = micro_batch(need)
    engine = {"contextLength": 16384, "kvTokens": 16384, "microBatch": batch, "slots": 2, **spec.pop("engine", {})}
    found = deployment(name, f"{HUB_URL}/files/org/gpu/{name}.gguf", pool=POOL, engine=engine, **spec)
    found["metadata"]["namespace"] = namespace
    return found


def uuid(node: int, number: int) -> str:
    return f"GPU-00000000-0000-0000-{node:04d}-{number:012d}"


@dataclass
class PodSeen:
    namespace: str
    name: str
    node: str
    devices: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Witness:
    """Every server pod of the GPU pool that ran, with the environment that its process really had, and every moment's commitments."""

    variables: tuple[str, ...] = ("FAKE_GPU_0", "FAKE_GPU_1", "NVIDIA_VISIBLE_DEVICES")
    seen: dict[str, PodSeen] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    _commits: dict[str, dict[tuple[str, str], int]] = field(default_factory=dict)

    def begin(self) -> None:
        self._commits.clear()

    def take(self, event: dict[str, Any]) -> None:
        kind, pod = event["type"], event["object"]
        metadata = pod["metadata"]
        uid, annotations = metadata["uid"], metadata.get("annotations") or {}
        if kind == "DELETED":
            self._commits.pop(uid, None)
            return
        node = pod["spec"].get("nodeName", "")
        commit = json.loads(annotations.get("corral.dev/commit") or "{}")
        self._commits[uid] = {(node, device): int(count) for device, count in (commit.get("devices") or {}).items()}
        self._judge(metadata["name"])
        running = any("running" in status.get("state", {}) for status in pod.get("status", {}).get("containerStatuses") or [])
        if running and uid not in self.seen:
            devices = tuple(json.loads(annotations["corral.dev/devices"]))
            found = PodSeen(metadata["namespace"], metadata["name"], node, devices, self._environment(uid))
            self.seen[uid] = found
            if not found.environment:
                return  # it ended before it could be looked at
            shown = {value for name in self.variables for value in [found.environment.get(name)] if value}
            told = {item for value in shown for item in value.split(",")}
            if told != set(devices):
                self.violations.append(f"{found.name} on {node} was decided for {devices}, its environment shows {sorted(told)}")

    def _judge(self, name: str) -> None:
        sums: dict[tuple[str, str], int] = defaultdict(int)
        for commits in self._commits.values():
            for key, count in commits.items():
                sums[key] += count
        for key, total in sums.items():
            if total > CAPACITY - MARGIN:
                self.violations.append(f"{key}: {total} bytes committed after {name} changed, {CAPACITY - MARGIN} allowed")

    @staticmethod
    def _environment(uid: str) -> dict[str, str]:
        """Of the pod's processes, as the kernel has it; the nodes' processes are this machine's."""
        mark = f"CORRAL_POD_UID={uid}".encode()
        for _ in range(20):
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit():
                    continue
                try:
                    text = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if mark in text.split(b"\0"):
                    return dict(item.split("=", 1) for item in text.decode(errors="replace").split("\0") if "=" in item)
            time.sleep(0.05)
        return {}

    def assert_clean(self) -> None:
        assert not self.violations, "\n".join(dict.fromkeys(self.violations))
        assert self.seen
        looked_at = [each for each in self.seen.values() if each.environment]
        assert len(looked_at) >= 0.8 * len(self.seen)


@dataclass
class Placement:
    pod: str
    uid: str
    node: str
    devices: tuple[str, ...]
    committed: dict[str, int]
    split: tuple[float, ...]
    claims: tuple[str, ...]


def placements(world: World) -> dict[str, Placement]:
    """By model: where its engine is committed to run."""
    found = {}
    for pod in world.kubectl.list("pods", None, f"app.kubernetes.io/component=server,corral.dev/pool={POOL}"):
        annotations = pod["metadata"]["annotations"]
        commit = json.loads(annotations.get("corral.dev/commit") or "{}")
        if not commit or pod["metadata"].get("deletionTimestamp"):
            continue
        found[pod["metadata"]["labels"]["corral.dev/model"]] = Placement(
            pod=pod["metadata"]["name"],
            uid=pod["metadata"]["uid"],
            node=pod["spec"].get("nodeName", ""),
            devices=tuple(commit["devices"]),
            committed={device: int(count) for device, count in commit["devices"].items()},
            split=tuple(commit["split"]),
            claims=tuple(item["resourceClaimName"] for item in pod["spec"].get("resourceClaims") or []),
        )
    return found


def pods(world: World, namespace: str = "") -> dict[str, str]:
    """uid -> name of the server pods of the pool that are not going away."""
    items = world.kubectl.list("pods", namespace or None, f"app.kubernetes.io/component=server,corral.dev/pool={POOL}")
    return {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in items if not pod["metadata"].get("deletionTimestamp")}


def remove_all(world: World) -> None:
    for namespace in (TEAM_A, TEAM_B):
        names = [md["metadata"]["name"] for md in world.kubectl.list("md", namespace)]
        if names:
            world.kubectl.delete("md", *names, namespace=namespace)
    until("the pool's pods are gone", lambda: not world.kubectl.list("pods", None, f"corral.dev/pool={POOL}"), 90)
