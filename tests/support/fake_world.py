"""A world in memory for the control loop: an API server with resource versions, conflicts and deletion timestamps, a kubelet that grants memory,
supervisors that speak HTTP, a gateway with waiting requests. It keeps the books: every byte given twice is noted in `faults`.

Each controller gets its own `Client`. A client can be told to die at its n-th step: from then on nothing that it asks for has any effect, as if the
process had been killed there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.fake_supervisor import FakeSupervisor

from corral.control.loop import Controller
from corral.control.settings import ControlSettings
from corral.domain.model import HOST_ID, Device, DeviceKey, DeviceKind, Node
from corral.kube.ports import COMMIT, DEVICES, Conflict, EstimateRequest, Gone, NotLeader, PodRecord, Refused, ReplicaRequest, Sink
from corral.tokens import TokenSigner
from corral_server.lifecycle import Problem

MI = 1 << 20
EPOCH_0 = "2026-01-01T00:00:00Z"

QUICK = ControlSettings(
    residue=10 * MI, retry_min=0.005, retry_max=0.05, poll_wait=5, refusal_pause=0.02, message_interval=0.05, pool_interval=0.05,
    action_backoff=0.05, failure_backoff=0.05, failure_backoff_max=1.0, grant_timeout=0.5, resync=5.0, drain_ttl=5.0, limit_extra=0,
    keep_memory=0.3,
)  # fmt: skip


@dataclass
class SimPod:
    record: PodRecord
    supervisor: FakeSupervisor
    request: ReplicaRequest
    starter: asyncio.Task[None] | None = None


@dataclass
class SimNode:
    capacity: int
    margin: int
    kind: DeviceKind = DeviceKind.HOST
    ids: tuple[str, ...] = (HOST_ID,)


@dataclass
class Waiter:
    model: str
    since: float
    done: asyncio.Event = field(default_factory=asyncio.Event)
    served_by: str = ""


class World:
    def __init__(self) -> None:
        self.pods: dict[str, SimPod] = {}
        self.nodes: dict[str, SimNode] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.pools: dict[str, dict[str, Any]] = {}
        self.sizes: dict[str, int] = {}
        self.estimates: dict[str, dict[str, Any]] = {}
        self.download_errors: dict[str, Problem] = {}
        self.events: list[tuple[str, str, str]] = []
        self.status_writes: list[tuple[str, dict[str, Any]]] = []
        self.faults: list[str] = []
        self.waiters: list[Waiter] = []
        self.in_flight: dict[str, int] = {}
        self.wishes: dict[str, dict[str, Any]] = {}
        self.signer = TokenSigner(Ed25519PrivateKey.generate())
        self.sinks: list[Sink] = []
        self.clients: dict[int, Client] = {}
        self.refuse_resize: set[str] = set()
        self._versions = itertools.count(1)
        self._sequence = itertools.count(1)
        self._uids = itertools.count(1)
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- building

    def node(self, name: str, capacity: int, margin: int = 0, *, gpus: tuple[str, ...] = ()) -> None:
        self.nodes[name] = SimNode(capacity, margin, DeviceKind.GPU if gpus else DeviceKind.HOST, gpus or (HOST_ID,))
        for sink in self.sinks:
            self._put_node(sink, name)

    def pool(self, name: str = "default", **spec: Any) -> None:
        quick = {"eviction": {"minResidency": "0s"}, "fairness": {"maxWait": "1s", "turn": "1s"}}
        old = self.pools.get(name)
        generation = old["metadata"]["generation"] + 1 if old else 1
        meta = {"name": name, "uid": f"pool-{name}", "generation": generation, "creationTimestamp": EPOCH_0}
        self.pools[name] = {"metadata": meta, "spec": {**quick, **spec}}
        for sink in self.sinks:
            sink.put_pool(self.pools[name])

    def model(self, name: str, size: int, *, uid: str = "", created: str = EPOCH_0, **spec: Any) -> str:
        key = f"m/{name}"
        old = self.models.get(key)
        generation = old["metadata"]["generation"] + 1 if old else 1
        self.sizes[key] = size
        meta = {"namespace": "m", "name": name, "uid": uid or f"md-{name}", "generation": generation, "creationTimestamp": created}
        meta["resourceVersion"] = str(next(self._versions))
        full = {"model": {"source": f"https://models.test/{name}.gguf"}, **spec}
        self.models[key] = {"metadata": meta, "spec": full, "status": old["status"] if old else {}}
        for sink in self.sinks:
            sink.put_model(self.models[key])
        return key

    def delete_model(self, key: str) -> None:
        del self.models[key]
        namespace, _, name = key.partition("/")
        for sink in self.sinks:
            sink.remove_model(namespace, name)

    # --- what watchers see

    def attach(self, sink: Sink) -> None:
        """List everything, then watch."""
        for name in self.nodes:
            self._put_node(sink, name)
        for pool in self.pools.values():
            sink.put_pool(pool)
        for model in self.models.values():
            sink.put_model(json.loads(json.dumps(model)))
        for pod in self.pods.values():
            sink.put_pod(pod.record)
        sink.put_report(self._report())
        for source in ("models", "pools", "reports", "pods", "nodes"):
            sink.synced(source)
        self.sinks.append(sink)

    def _put_node(self, sink: Sink, name: str) -> None:
        node = self.nodes[name]
        devices = [Device(DeviceKey(name, it), "default", node.kind, node.capacity, node.margin) for it in node.ids]
        sink.put_node(Node(name, "default"), devices)

    def put(self, pod: SimPod, **changes: Any) -> PodRecord:
        pod.record = replace(pod.record, resource_version=str(next(self._versions)), **changes)
        for sink in self.sinks:
            sink.put_pod(pod.record)
        self.check()
        return pod.record

    def told(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self.check()
        self._serve()

    async def until(self, holds: Any, within: float = 10.0) -> None:
        async with asyncio.timeout(within):
            while not holds():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.02)

    def status(self, key: str) -> dict[str, Any]:
        return self.models[key]["status"]

    def condition(self, key: str, kind: str) -> dict[str, Any]:
        return next((it for it in self.status(key).get("conditions", ()) if it["type"] == kind), {})

    def loaded(self) -> set[str]:
        return {pod.record.model for pod in self.pods.values() if pod.supervisor.life.state.value == "Loaded"}

    def pods_of(self, key: str) -> list[SimPod]:
        return [pod for pod in self.pods.values() if pod.record.model == key]

    # --- the books

    def check(self) -> None:
        for name, node in self.nodes.items():
            given: dict[str, int] = {}
            allocated = 0
            for pod in self.pods.values():
                if pod.record.node != name:
                    continue
                commit = json.loads(pod.record.annotations.get(COMMIT) or '{"devices": {}}')["devices"]
                allocated += pod.record.memory_request
                if pod.supervisor.resident and 0 < pod.record.memory_limit < pod.supervisor.total:
                    self.faults.append(f"{pod.record.name} uses {pod.supervisor.total} of its limit {pod.record.memory_limit}")
                if pod.supervisor.resident and not commit:
                    self.faults.append(f"{pod.record.name} runs an engine without a commitment")
                for device, count in commit.items():
                    if pod.supervisor.resident and sum(commit.values()) < pod.supervisor.total:
                        self.faults.append(f"{pod.record.name} uses {pod.supervisor.total} of {commit}")
                    given[device] = given.get(device, 0) + count
            for device, count in given.items():
                if count > node.capacity - node.margin:
                    self.faults.append(f"{name}/{device}: {count} committed of {node.capacity - node.margin}")
            if node.kind is DeviceKind.HOST and allocated > node.capacity - node.margin:
                self.faults.append(f"{name}: {allocated} allocated of {node.capacity - node.margin}")

    # --- the gateway

    def _report(self) -> dict[str, Any]:
        now, entries = time.time(), []
        for key in sorted({it.model for it in self.waiters} | {it for it, count in self.in_flight.items() if count} | self.wishes.keys()):
            mine = [it for it in self.waiters if it.model == key]
            oldest = int(now - min(it.since for it in mine)) if mine else 0
            wish = {"wish": self.wishes[key]} if key in self.wishes else {}
            entries.append({"name": key, "waiting": len(mine), "oldestWaitSeconds": oldest, "inFlight": self.in_flight.get(key, 0), **wish})
        return {"metadata": {"namespace": "corral", "name": "gw", "uid": "gw"}, "spec": {"sequence": next(self._sequence), "models": entries}}

    def report(self) -> None:
        found = self._report()
        for sink in self.sinks:
            sink.put_report(found)

    def ask(self, key: str) -> Waiter:
        """A request that waits until some replica admits it; it is answered at once then."""
        waiter = Waiter(key, time.time())
        self.waiters.append(waiter)
        self.report()
        self._serve()
        return waiter

    async def answered(self, key: str, within: float = 10.0) -> str:
        waiter = self.ask(key)
        async with asyncio.timeout(within):
            await waiter.done.wait()
        return waiter.served_by

    def hold(self, key: str) -> SimPod:
        """A stream that goes on until `end` of the pod that it got."""
        pod = next(it for it in self.pods_of(key) if it.supervisor.life.admitting)
        assert pod.supervisor.admit()
        self.in_flight[key] = self.in_flight.get(key, 0) + 1
        self.report()
        return pod

    def end(self, pod: SimPod) -> None:
        self.in_flight[pod.record.model] -= 1
        pod.supervisor.release()
        self.report()

    def _serve(self) -> None:
        for waiter in list(self.waiters):
            pod = next((it for it in self.pods_of(waiter.model) if it.supervisor.life.admitting), None)
            if pod is None or waiter not in self.waiters:
                continue
            self.waiters.remove(waiter)
            pod.supervisor.life.admit(time.time())
            pod.supervisor.life.release(time.time())
            waiter.served_by = pod.record.name
            waiter.done.set()
            pod.supervisor.told()
            self.report()

    # --- the kubelet

    def create(self, request: ReplicaRequest) -> PodRecord:
        key = f"{request.namespace}/{request.name}"
        if key in self.pods:
            if self.pods[key].record.owner_uid != request.owner_uid or self.pods[key].record.deleting:
                raise Conflict(key)
            return self.pods[key].record
        uid = f"pod-{next(self._uids)}"
        record = PodRecord(
            namespace=request.namespace, name=request.name, uid=uid, model=request.model, revision=request.revision, pool=request.pool,
            node=request.devices[0].node, devices=tuple(it.id for it in request.devices), created=time.time(), owner_uid=request.owner_uid,
            memory_request=request.memory_request, memory_wanted=request.memory_request, memory_limit=request.memory_limit,
            annotations={DEVICES: json.dumps([it.id for it in request.devices])},
        )  # fmt: skip
        supervisor = FakeSupervisor(uid, self.sizes[request.model], request.memory_request, self._heard, self.told)
        supervisor.download_error = self.download_errors.get(request.model)
        pod = self.pods[key] = SimPod(record, supervisor, request)
        pod.starter = self._spawn(self._start(pod))
        return self.put(pod)

    async def _start(self, pod: SimPod) -> None:
        await asyncio.sleep(0)
        await pod.supervisor.start()
        self.put(pod, scheduled=True, running=True, host="127.0.0.1", control_port=pod.supervisor.port)

    def remove(self, pod: SimPod) -> None:
        if not pod.record.deleting:
            self.put(pod, deleting=True)
            self._spawn(self._end(pod))

    async def _end(self, pod: SimPod) -> None:
        if pod.starter is not None:
            await asyncio.wait([pod.starter])
        await pod.supervisor.stop()
        del self.pods[f"{pod.record.namespace}/{pod.record.name}"]
        for sink in self.sinks:
            sink.remove_pod(pod.record.namespace, pod.record.name, pod.record.uid)
        self.grant()
        self.told()

    def grant(self) -> None:
        """In-place resize: what fits beside the others is granted, the rest stays deferred."""
        for pod in self.pods.values():
            if pod.record.memory_wanted == pod.record.memory_request or pod.record.name in self.refuse_resize:
                continue
            others = sum(it.record.memory_request for it in self.pods.values() if it.record.node == pod.record.node and it is not pod)
            if others + pod.record.memory_wanted <= self.nodes[pod.record.node].capacity:
                self.put(pod, memory_request=pod.record.memory_wanted, resize_pending="")
            elif not pod.record.resize_pending:
                self.put(pod, resize_pending="Deferred")

    def later(self, call: Any) -> None:
        asyncio.get_running_loop().call_soon(call)

    async def _heard(self, step: str, epoch: int) -> None:
        client = self.clients.get(epoch)
        if client is not None:
            await client.step(step)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        self.sinks.clear()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2)
        for pod in list(self.pods.values()):
            await pod.supervisor.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Client:
    """Workloads, Statuses and Leadership of one controller."""

    def __init__(self, world: World, epoch: int) -> None:
        self.world = world
        self.epoch = epoch
        self.steps: list[str] = []
        self.dead = asyncio.Event()
        self.leading = True
        self.heard = 0
        """The highest epoch that a supervisor told of."""
        self._deadly, self._times = "", 0
        world.clients[epoch] = self

    def die_at(self, step: str, times: int = 1) -> None:
        """Be killed at this step, at its n-th time from now."""
        self._deadly, self._times = step, times

    def may_write(self) -> bool:
        return self.leading and not self.dead.is_set()

    def outdone(self, epoch: int) -> None:
        self.heard = max(self.heard, epoch)

    async def step(self, name: str) -> None:
        """One point at which this controller can be killed; when it is, it never gets past it."""
        self.steps.append(name)
        if name == self._deadly:
            self._times -= 1
            if not self._times:
                self.dead.set()
        if self.dead.is_set():
            await asyncio.Event().wait()
        if not self.leading:
            raise NotLeader(name)

    @asynccontextmanager
    async def _call(self, name: str) -> AsyncIterator[None]:
        await self.step(f"{name}:asked")
        yield
        await self.step(f"{name}:done")

    def _find(self, pod: PodRecord) -> SimPod:
        found = self.world.pods.get(f"{pod.namespace}/{pod.name}")
        if found is None or found.record.uid != pod.uid:
            raise Gone(pod.name)
        return found

    async def create(self, request: ReplicaRequest) -> PodRecord:
        async with self._call("create"):
            return self.world.create(request)

    async def delete(self, pod: PodRecord, grace: float) -> None:
        async with self._call("delete"):
            with contextlib.suppress(Gone):
                self.world.remove(self._find(pod))

    async def annotate(self, pod: PodRecord, annotations: Mapping[str, str | None], *, precondition: bool) -> PodRecord:
        what = "commit" if annotations.get(COMMIT) else "clear" if COMMIT in annotations else "mark"
        async with self._call(what):
            found = self._find(pod)
            if precondition and found.record.resource_version != pod.resource_version:
                raise Conflict(f"{pod.name}: {pod.resource_version} is not {found.record.resource_version}")
            merged = {**found.record.annotations, **annotations}
            return self.world.put(found, annotations={key: value for key, value in merged.items() if value is not None})

    async def resize(self, pod: PodRecord, memory_request: int, memory_limit: int = 0) -> PodRecord:
        async with self._call("resize"):
            found = self._find(pod)
            if memory_request > self.world.nodes[found.record.node].capacity:
                raise Refused("more than the node has")
            answer = self.world.put(found, memory_wanted=memory_request, memory_limit=memory_limit or found.record.memory_limit)
            self.world.later(self.world.grant)
            return answer

    async def estimate(self, request: EstimateRequest) -> Mapping[str, Any]:
        async with self._call("estimate"):
            size = self.world.sizes[request.model]
            good = {
                "ok": True,
                "weights": size,
                "kvCache": 0,
                "compute": 0,
                "overhead": 0,
                "total": size,
                "perLayer": [[4, size // 4, 0]],
                "layers": 4,
            }
            return self.world.estimates.get(request.model, good)

    async def write_model(self, namespace: str, name: str, uid: str, status: Mapping[str, Any]) -> None:
        await self.step("status")
        key = f"{namespace}/{name}"
        if key not in self.world.models:
            raise Gone(key)
        copy = json.loads(json.dumps(status))
        self.world.status_writes.append((key, copy))
        self.world.models[key] = {**self.world.models[key], "status": copy}
        for sink in self.world.sinks:
            sink.put_model(self.world.models[key])
        self.world.told()

    async def write_pool(self, name: str, status: Mapping[str, Any]) -> None:
        self.world.pools[name] = {**self.world.pools[name], "status": json.loads(json.dumps(status))}
        for sink in self.world.sinks:
            sink.put_pool(self.world.pools[name])

    async def event(self, regarding: Mapping[str, Any], *, warning: bool, reason: str, message: str) -> None:
        self.world.events.append((regarding["metadata"]["name"], reason, message))


class Running:
    """A controller at work on a world."""

    def __init__(self, world: World, epoch: int = 1, *, settings: ControlSettings = QUICK) -> None:
        self.world = world
        self.client = Client(world, epoch)
        self.controller = Controller(self.client, self.client, self.client, world.signer, settings=settings)
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self.controller.run(self._stop))
        world.attach(self.controller.store)

    async def drop(self) -> None:
        """As a kill would: nothing is tidied up in the world."""
        self.client.dead.set()
        if self.controller.store in self.world.sinks:
            self.world.sinks.remove(self.controller.store)
        self._stop.set()
        async with asyncio.timeout(5):
            await self._task
        self.world.clients.pop(self.client.epoch, None)
