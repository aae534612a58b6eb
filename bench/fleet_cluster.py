"""The fleet bench's API server: etcd, kube-apiserver, kube-scheduler and the claims' controller as processes in one network namespace, and the
objects of a large cluster in it. There are no kubelets; `fleet_pods` plays them.
"""

import asyncio
import json
import random
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e" / "cluster"))

from twonodes import tools
from twonodes.pki import Authority

from corral.control.translate import Deployment, read_deployment
from corral.kube.client import MODEL_DEPLOYMENTS, MODEL_POOLS, NODES, KubeClient, Resource

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "10.201.0.1"
SERVER = f"https://{ADDRESS}:6443"
NAMESPACE, SYSTEM, CLASS = "fleet", "corral", "gpu.corral.test"
OPERATOR = "corral-operator"
GI = 1 << 30
SLICES = Resource("resource.k8s.io", "v1", "resourceslices", "ResourceSlice", namespaced=False)
CLASSES = Resource("resource.k8s.io", "v1", "deviceclasses", "DeviceClass", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)


@dataclass(frozen=True)
class Size:
    nodes: int
    gpus: int  # of each node
    models: int
    resident: int  # how many fit at once, about
    memory: int = 80 * GI  # of each GPU
    margin: int = GI

    @property
    def spread(self) -> list[int]:
        """How many GPUs models take: so mixed that all GPUs together hold `resident` of them."""
        mean = self.nodes * self.gpus / self.resident
        return [1] if mean <= 1 else [max(1, round(mean) - 1), round(mean), round(mean) + 1]


class ControlPlane:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.authority = Authority(folder / "pki", SERVER)

    def start(self) -> None:
        for command in (
            ["link", "set", "lo", "up"],
            ["address", "add", f"{ADDRESS}/32", "dev", "lo"],
            ["route", "add", "local", "10.200.0.0/16", "dev", "lo"],
        ):
            subprocess.run(["ip", *command], check=True)
        pki = self.authority
        names = ("DNS:localhost", "DNS:kubernetes.default.svc", f"IP:{ADDRESS}")
        pki.issue_all(
            {
                "apiserver": ("/CN=kube-apiserver", names),
                "admin": ("/O=system:masters/CN=admin", ()),
                "operator": (f"/O=system:masters/CN={OPERATOR}", ()),
            }
        )
        signer, public = pki.service_account_keys()
        etcd = [f"--data-dir={self.folder / 'etcd'}", "--unsafe-no-fsync", "--log-level=error", "--quota-backend-bytes=4294967296"]
        self._run("etcd", etcd)
        policy = self.folder / "audit.json"
        rules = [{"level": "Metadata", "users": [OPERATOR], "omitStages": ["RequestReceived", "ResponseStarted"]}, {"level": "None"}]
        policy.write_text(json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}))
        self._run("kube-apiserver", [
            "--etcd-servers=http://127.0.0.1:2379", "--service-cluster-ip-range=10.202.0.0/16", f"--bind-address={ADDRESS}", "--secure-port=6443",
            f"--advertise-address={ADDRESS}", f"--tls-cert-file={pki.certificate('apiserver')}", f"--tls-private-key-file={pki.key('apiserver')}",
            f"--client-ca-file={pki.certificate('ca')}", "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={public}", f"--service-account-signing-key-file={signer}",
            f"--audit-policy-file={policy}", f"--audit-log-path={self.folder / 'audit.log'}",
            "--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
        ])  # fmt: skip
        end = time.monotonic() + 120
        while not self._ready():
            if time.monotonic() > end or any(process.poll() is not None for process in self._processes):
                raise RuntimeError(f"the API server does not come up; see {self.folder}")
            time.sleep(0.1)

    def start_controllers(self) -> None:
        """The scheduler confirms each place; the controller takes claims back from pods that are gone."""
        admin = self.authority.kubeconfig("admin")
        config = self.folder / "scheduler.json"
        content = {
            "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration", "leaderElection": {"leaderElect": False},
            "clientConnection": {"kubeconfig": str(admin), "qps": 1000, "burst": 2000},
        }  # fmt: skip
        config.write_text(json.dumps(content))
        self._run("kube-scheduler", [f"--config={config}"])
        limits = ["--kube-api-qps=1000", "--kube-api-burst=2000", "--leader-elect=false"]
        self._run("kube-controller-manager", [f"--kubeconfig={admin}", "--controllers=resourceclaim-controller", *limits])

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()

    def _run(self, program: str, arguments: list[str]) -> None:
        with (self.folder / f"{program}.log").open("wb") as log:
            command = [str(tools.folder(tools.KUBERNETES) / program), *arguments]
            self._processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder))

    def _ready(self) -> bool:
        try:
            return self.read("/readyz") == b"ok"
        except (OSError, urllib.error.URLError):
            return False

    def read(self, path: str) -> bytes:
        context = ssl.create_default_context(cafile=str(self.authority.certificate("ca")))
        context.load_cert_chain(self.authority.certificate("admin"), self.authority.key("admin"))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        with opener.open(f"{SERVER}{path}", timeout=30) as response:
            return bytes(response.read())

    def calls(self) -> Counter[tuple[str, str]]:
        """What the operator has asked of the API server, by verb and resource; a watch counts once."""
        found: Counter[tuple[str, str]] = Counter()
        with (self.folder / "audit.log").open() as lines:
            for line in lines:
                event = json.loads(line)
                ref = event.get("objectRef") or {}
                found[event["verb"], "/".join(filter(None, (ref.get("resource"), ref.get("subresource"))))] += 1
        return found


async def fill(client: KubeClient, size: Size, kubeconfig: Path) -> dict[str, int]:
    """Everything but pods; how many bytes each model needs."""
    kubectl = str(tools.folder(tools.KUBERNETES) / "kubectl")
    subprocess.run([kubectl, f"--kubeconfig={kubeconfig}", "apply", "--server-side", "-f", str(ROOT / "crds")], check=True, stdout=subprocess.DEVNULL)
    for name in (NAMESPACE, SYSTEM):
        await client.create(NAMESPACES.path(), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    selector = {"cel": {"expression": f'device.driver == "{CLASS}"'}}
    await client.create(CLASSES.path(), _object(CLASSES, CLASS, spec={"selectors": [selector]}))
    await _until_served(client)
    await client.create(MODEL_POOLS.path(), _object(MODEL_POOLS, "default", spec=pool(size)))
    await _all(_node(client, size, number) for number in range(size.nodes))
    needs = {f"{NAMESPACE}/m{number:05d}": need for number, need in enumerate(_needs(size))}
    await _all(_model(client, key, need) for key, need in needs.items())
    return needs


def pool(size: Size) -> dict[str, Any]:
    return {
        "devices": {"from": "DRA", "dra": {"deviceClassName": CLASS}}, "memoryMargin": str(size.margin), "eviction": {"minResidency": "5s"},
        "idle": {"sleepAfter": "2h", "stopAfter": "4h"}, "maxModelsPerDevice": 16,
    }  # fmt: skip


def _needs(size: Size) -> Iterator[int]:
    """The same for the same size: whole GPUs nearly, so that places are scarce."""
    chance = random.Random(size.models)
    for _ in range(size.models):
        count = chance.choice(size.spread)
        yield count * int(chance.uniform(0.7, 0.9) * (size.memory - size.margin))


def _object(resource: Resource, name: str, **more: Any) -> dict[str, Any]:
    metadata = {"name": name, **more.pop("metadata", {})}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **more}


async def _node(client: KubeClient, size: Size, number: int) -> None:
    name = f"node-{number:04d}"
    room = {"cpu": "256", "memory": "4Ti", "pods": "512", "ephemeral-storage": "8Ti"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    status = {"allocatable": room, "capacity": room, "conditions": [ready], "nodeInfo": {}}
    await client.create(NODES.path(), _object(NODES, name, metadata={"labels": {"kubernetes.io/hostname": name}}, spec={}))
    await client.patch(NODES.path("", name, "status"), {"status": {key: status[key] for key in ("allocatable", "capacity", "conditions")}})
    devices = [
        {
            "name": f"gpu-{index}",
            "attributes": {"uuid": {"string": f"GPU-{number:08d}-{index:04d}"}, "productName": {"string": "Fake-80G"}},
            "capacity": {"memory": {"value": str(size.memory)}},
        }
        for index in range(size.gpus)
    ]
    spec = {"driver": CLASS, "nodeName": name, "pool": {"name": name, "generation": 1, "resourceSliceCount": 1}, "devices": devices}
    await client.create(SLICES.path(), _object(SLICES, f"{name}-{CLASS}", spec=spec))


async def _model(client: KubeClient, key: str, need: int) -> None:
    """With its estimate in its status already: thousands of estimate Jobs are not what is measured."""
    name = key.partition("/")[2]
    layers = 64
    spec = {"model": {"source": f"https://models.test/{name}.gguf"}, "placement": {"maxDevices": 8}}
    made = await client.create(MODEL_DEPLOYMENTS.path(NAMESPACE), _object(MODEL_DEPLOYMENTS, name, spec=spec))
    found = read_deployment(made)
    if not isinstance(found, Deployment):
        raise TypeError(found.message)
    weights, kv, compute = need * 8 // 10, need // 10, need // 100
    estimate = {
        "ok": True, "settings": found.estimate_key, "at": "2026-01-01T00:00:00Z", "architecture": "llama", "contextLength": 8192, "layers": layers,
        "weights": weights, "kvCache": kv, "compute": compute, "overhead": 100 << 20, "total": weights + kv + compute + (100 << 20),
        "fileBytes": weights, "perLayer": [[layers, weights // layers, kv // layers]], "input": 0, "output": 0,
    }  # fmt: skip
    status = {"observedGeneration": made["metadata"]["generation"], "estimate": estimate}
    await client.patch(MODEL_DEPLOYMENTS.path(NAMESPACE, name, "status"), {"status": status})


async def _until_served(client: KubeClient) -> None:
    for _ in range(100):
        try:
            await client.list(MODEL_POOLS.path())
        except Exception:
            await asyncio.sleep(0.1)
        else:
            return


async def _all(work: Iterable[Coroutine[Any, Any, None]], at_once: int = 16) -> None:
    pending: set[asyncio.Task[None]] = set()
    for each in work:
        pending.add(asyncio.create_task(each))
        if len(pending) >= at_once:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    for task in pending:
        await task
