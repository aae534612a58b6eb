"""How the operator holds at the size of a fleet: a real API server and scheduler, nodes and GPUs that are only objects, and one process that answers
for every pod's supervisor.

    python bench/fleet.py --nodes 1000 --gpus 8 --models 10000 --resident 4000 --seconds 300 [--json FILE]

Cold models are asked for, so many at once (`--waiting`) that there is always one to decide upon: first until the GPUs are full, then for `--seconds`
with an eviction for each. Needs root, for a network namespace of its own, and the programs of e2e/cluster.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fleet_cluster import NAMESPACE, SYSTEM, ControlPlane, Size, fill
from fleet_pods import Fleet, Supervisor, commitments

from corral.kube.client import GATEWAY_REPORTS, PODS, KubeClient

ROOT = Path(__file__).resolve().parents[1]
METRICS = 18081
CLAIMS = "/apis/resource.k8s.io/v1/resourceclaims"


@dataclass
class Waiter:
    model: str
    since: float
    decided: float = 0.0


@dataclass
class Phase:
    """What one stretch of the run came to."""

    began: float
    decisions: list[float] = field(default_factory=list)
    wakes: list[float] = field(default_factory=list)


class Load:
    """A gateway in which always so many cold models are waited for."""

    def __init__(self, client: KubeClient, models: list[str], waiting: int) -> None:
        self._client = client
        self._models = models
        self._waiting = waiting
        self._chance = random.Random(1)
        self.waiters: dict[str, Waiter] = {}
        self.loaded: set[str] = set()
        self.phase = Phase(time.monotonic())
        self._sequence = 0
        self._dirty = asyncio.Event()

    def top_up(self) -> None:
        while len(self.waiters) < self._waiting:
            model = self._chance.choice(self._models)
            if model not in self.waiters and model not in self.loaded:
                self.waiters[model] = Waiter(model, time.time())
                self._dirty.set()

    def decided(self, model: str) -> None:
        waiter = self.waiters.get(model)
        if waiter is not None and not waiter.decided:
            waiter.decided = time.time()
            self.phase.decisions.append(waiter.decided - waiter.since)

    def changed(self, supervisor: Supervisor) -> None:
        if not supervisor.life.admitting:
            self.loaded.discard(supervisor.model)
            return
        if supervisor.model in self.loaded:
            return
        self.loaded.add(supervisor.model)
        waiter = self.waiters.pop(supervisor.model, None)
        if waiter is not None:
            supervisor.life.admit(time.time())
            supervisor.life.release(time.time())
            self.phase.wakes.append(time.time() - waiter.since)
            asyncio.get_running_loop().call_soon(supervisor.told)
            self._dirty.set()

    async def report(self) -> None:
        """As a gateway does: at once for a new waiter, otherwise not more often than each 100 ms here."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._dirty.wait(), 5)
            self._dirty.clear()
            self._sequence += 1
            now = time.time()
            entries = [{"name": it.model, "waiting": 1, "oldestWaitSeconds": int(now - it.since), "inFlight": 0} for it in self.waiters.values()]
            body = {
                "apiVersion": GATEWAY_REPORTS.api_version, "kind": "GatewayReport", "metadata": {"name": "gw", "namespace": SYSTEM},
                "spec": {"sequence": self._sequence, "models": sorted(entries, key=lambda it: str(it["name"]))},
            }  # fmt: skip
            await self._client.apply(GATEWAY_REPORTS.path(SYSTEM, "gw"), body, manager="corral-gateway")
            await asyncio.sleep(0.1)


class Operator:
    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self._env = {
            **os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(ROOT / "operator"), "CORRAL_NAMESPACE": SYSTEM,
            "CORRAL_SERVER_IMAGE": "localhost/corral-server:fleet", "CORRAL_POD_NAME": "operator", "CORRAL_HTTP_PORT": str(METRICS),
            "CORRAL_LOG_LEVEL": "WARNING",
        }  # fmt: skip
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *prefix: str) -> None:
        with (self._folder / "operator.log").open("ab") as log:
            command = [sys.executable, *prefix, "-m", "corral.cli", "operator"]
            self.process = subprocess.Popen(command, env=self._env, stdout=log, stderr=log)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None

    def use(self) -> tuple[float, int]:
        """Seconds of CPU and bytes of memory."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"the operator ended with {self.process.returncode}; see {self._folder}/operator.log")
        return process_use(self.process.pid)

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def process_use(pid: int) -> tuple[float, int]:
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK"), int(status["VmRSS"].split()[0]) * 1024


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


async def pages(client: KubeClient, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    params = {"limit": "500"}
    while True:
        page = await client.list(path, params)
        found += page["items"]
        following = page["metadata"].get("continue")
        if not following:
            return found
        params = {"limit": "500", "continue": following}


async def invariants(client: KubeClient, size: Size, fleet: Fleet) -> list[str]:
    """What the objects say that must not be."""
    before = {it.uid: it.life.loads for it in fleet.pods.values() if it.resident}
    pods = await pages(client, PODS.path(NAMESPACE))
    resident = {it.uid for it in fleet.pods.values() if it.resident and before.get(it.uid) == it.life.loads}
    wrong = []
    limit = size.memory - size.margin
    wrong += [f"{node}/{device}: {count} bytes are committed of {limit}" for (node, device), count in commitments(pods).items() if count > limit]
    holders: dict[tuple[str, str], str] = {}
    for claim in await pages(client, CLAIMS):
        for it in ((claim.get("status") or {}).get("allocation") or {}).get("devices", {}).get("results", []):
            other = holders.setdefault((it["pool"], it["device"]), claim["metadata"]["name"])
            if other != claim["metadata"]["name"]:
                wrong.append(f"{it['pool']}/{it['device']} is allocated to {other} and {claim['metadata']['name']}")
    for pod in pods:
        if pod["metadata"]["uid"] in resident and "corral.dev/commit" not in (pod["metadata"].get("annotations") or {}):
            wrong.append(f"{pod['metadata']['name']} runs an engine without a commitment")
    return wrong


async def kopf_alone(kubeconfig: Path) -> int:
    """The memory of a process that only lets kopf hold these objects, less what it has before it begins."""
    env = {**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(ROOT / "operator")}
    command = [sys.executable, str(ROOT / "bench" / "fleet_kopf.py")]
    process = await asyncio.create_subprocess_exec(*command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
    out, _ = await process.communicate()
    return int(out or 0)


async def measure(name: str, load: Load, operator: Operator, plane: ControlPlane, done: Any) -> dict[str, Any]:
    cpu, _ = operator.use()
    calls = plane.calls()
    plans, spent = operator.metric("corral_plan_seconds_count"), operator.metric("corral_plan_seconds_sum")
    load.phase = phase = Phase(time.monotonic())
    most = 0
    while not done(phase):
        load.top_up()
        most = max(most, operator.use()[1])
        await asyncio.sleep(0.1)
    took = time.monotonic() - phase.began
    cpu_after, rss = operator.use()
    count = max(1, len(phase.wakes))
    asked = plane.calls() - calls
    planned = operator.metric("corral_plan_seconds_count") - plans
    return {
        "phase": name, "seconds": round(took, 1), "wakes": len(phase.wakes), "wakes per second": round(len(phase.wakes) / took, 2),
        "decision p50 ms": round(quantile(phase.decisions, 0.5) * 1000), "decision p99 ms": round(quantile(phase.decisions, 0.99) * 1000),
        "wake p50 ms": round(quantile(phase.wakes, 0.5) * 1000), "wake p99 ms": round(quantile(phase.wakes, 0.99) * 1000),
        "decide() mean ms": round((operator.metric("corral_plan_seconds_sum") - spent) / max(1.0, planned) * 1000, 2),
        "decisions per wake": round(planned / count, 1),
        "API calls per wake": round(asked.total() / count, 1),
        "operator CPU": f"{(cpu_after - cpu) / took:.0%}", "CPU ms per wake": round((cpu_after - cpu) / count * 1000, 1),
        "operator MB": round(max(most, rss) / 1e6),
        "calls": {f"{verb} {what}": round(number / count, 1) for (verb, what), number in asked.most_common(9)},
    }  # fmt: skip


async def cold_start(operator: Operator, load: Load) -> float:
    """From the start of a fresh process, with requests waiting, to the first decision that it makes."""
    operator.stop()
    load.phase = Phase(time.monotonic())
    for waiter in load.waiters.values():
        waiter.decided = 0.0
    load.top_up()
    await asyncio.sleep(1)
    load.phase = Phase(time.monotonic())
    began = time.monotonic()
    operator.start()
    while not load.phase.decisions and time.monotonic() - began < 300:
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def run(options: argparse.Namespace, folder: Path) -> int:
    size = Size(options.nodes, options.gpus, options.models, options.resident)
    plane = ControlPlane(folder)
    operator = Operator(plane.authority.kubeconfig("operator"), folder)
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {
        "nodes": size.nodes,
        "gpus": size.nodes * size.gpus,
        "models": size.models,
        "resident": size.resident,
        "waiting": options.waiting,
    }
    try:
        plane.start()
        client = await KubeClient.connect(user_agent="fleet", kubeconfig=str(plane.authority.kubeconfig("admin")), request_timeout=60)
        began = time.monotonic()
        needs = await fill(client, size, plane.authority.kubeconfig("admin"))
        print(
            f"{size.nodes} nodes, {size.nodes * size.gpus} GPUs, {size.models} models are objects after {time.monotonic() - began:.0f} s", flush=True
        )
        plane.start_controllers()
        load = Load(client, list(needs), options.waiting)
        fleet = Fleet(client, needs, load.changed, load.decided)
        await fleet.start()
        if options.kopf:
            alone = await kopf_alone(plane.authority.kubeconfig("admin"))
            found["kopf alone MB"] = round(alone / 1e6)
            print(f"kopf alone, holding these objects: {alone / 1e6:.0f} MB", flush=True)
        profile = ["-m", "cProfile", "-o", str(options.profile)] if options.profile else []
        load.top_up()
        reporting = asyncio.create_task(load.report())
        began = time.monotonic()
        operator.start(*profile)
        while not load.phase.decisions:
            operator.use()
            await asyncio.sleep(0.05)
        found["first decision s"] = round(time.monotonic() - began, 1)
        print(f"first decision {found['first decision s']} s after the operator's start", flush=True)
        target = options.resident * 9 // 10

        def full(phase: Phase) -> bool:
            return len(load.loaded) >= target or time.monotonic() - phase.began > options.limit

        for name, done in (("fill", full), ("evict", lambda phase: time.monotonic() - phase.began > options.seconds)):
            rows.append(await measure(name, load, operator, plane, done))
            print(json.dumps(rows[-1]), flush=True)
            print(f"resident: {len(load.loaded)}, pods: {len(fleet.pods)}; broken: {await invariants(client, size, fleet) or 'none'}", flush=True)
        restarts = [await cold_start(operator, load) for _ in range(options.restarts)]
        if restarts:
            print(
                f"cold start to first decision: {', '.join(f'{it:.1f}' for it in restarts)} s; median {statistics.median(restarts):.1f} s", flush=True
            )
        wrong = await invariants(client, size, fleet)
        found |= {"phases": rows, "cold starts": [round(it, 1) for it in restarts], "broken": wrong}
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
        print(f"invariants broken, by the API's objects: {wrong or 'none'}", flush=True)
        reporting.cancel()
        await fleet.stop()
        operator.stop()
        await client.close()
        return 1 if wrong else 0
    finally:
        if operator.process is not None:
            operator.process.kill()
            operator.process.wait()
        plane.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=8, help="of each node")
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--resident", type=int, default=4000, help="how many models all GPUs together hold")
    parser.add_argument("--waiting", type=int, default=16, help="how many cold models are waited for at any time")
    parser.add_argument("--seconds", type=float, default=300, help="of evictions")
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which the GPUs count as full")
    parser.add_argument("--restarts", type=int, default=1, help="cold starts of the operator at the end")
    parser.add_argument("--kopf", action="store_true", help="tell kopf's own memory apart, in a process of its own")
    parser.add_argument("--profile", type=Path, help="a file for the operator's profile (cProfile)")
    parser.add_argument("--keep", type=Path, help="a folder for logs, kept; a new one")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        os.execvp("unshare", ["unshare", "--net", "--mount", "--", sys.executable, __file__, *sys.argv[1:], "--inside"])
    # Asked to end, it ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.keep:
        if options.keep.exists():
            parser.error(f"--keep {options.keep}: is there already; another run's API server left its objects in it")
        options.keep.mkdir(parents=True)
        return asyncio.run(run(options, options.keep.absolute()))
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        return asyncio.run(run(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
