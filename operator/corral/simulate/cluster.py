"""The simulated world: an API server with versions and watches, kubelets, nodes and devices. It carries out, and decides nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from corral.domain.model import Backoff, DeviceKey, DeviceKind, ReplicaState
from corral.simulate.pods import Commit, Record, Supervisor
from corral.simulate.scenario import START, ModelSpec, NodeSpec, Scenario
from corral.simulate.timeline import Timeline

if TYPE_CHECKING:
    from corral.simulate.invariants import Watchdog
    from corral.simulate.requests import Requests


class ConflictError(Exception):
    """409: the object changed since it was read."""


class GoneError(Exception):
    """404: the object is gone."""


@dataclass(slots=True)
class NodeState:
    spec: NodeSpec
    ready: bool = True
    not_ready_since: float | None = None
    schedulable: bool = True
    gone: bool = False
    partitioned_until: float = 0.0
    cached: set[str] = field(default_factory=set)


@dataclass(slots=True)
class ModelState:
    """The object of one ModelDeployment: its spec, and what its status keeps beyond one leader."""

    spec: ModelSpec
    revision: int = 1
    deleted: bool = False
    estimated: bool = False
    measured: int = 0
    queue_since: float | None = None
    queue_until: float | None = None
    backoff: tuple[Backoff, ...] = ()
    verdict: tuple[str, bool, str] = ("", False, "")  # reason, stalled, message: what gateways read
    wish_done: int = 0


Watcher = Callable[[str, Any], None]


class Cluster:
    def __init__(self, scenario: Scenario, timeline: Timeline) -> None:
        self.scenario = scenario
        self.timeline = timeline
        self.epoch0 = START
        self.nodes = {spec.name: NodeState(spec) for spec in scenario.nodes}
        self.models: dict[str, ModelState] = {}
        self.pods: dict[str, Record] = {}
        self.supervisors: dict[str, Supervisor] = {}  # by uid
        self.reports: dict[str, Any] = {}  # by gateway
        self.lease_epoch = 0
        self.history: list[tuple[float, str]] = []
        self.trust_old_epochs = False
        self.watch_slowness = 1.0
        self.watchdog: Watchdog
        self.requests: Requests
        self._watchers: dict[str, Watcher] = {}
        self._last: dict[tuple[str, str], float] = {}  # deliveries keep their order
        self._randoms: dict[str, random.Random] = {}
        self._versions = 0
        self._uids = 0
        self.supervisor_listeners: dict[str, Callable[[Supervisor], None]] = {}

    # Time and chance.

    @property
    def now(self) -> float:
        return self.timeline.now

    @property
    def wall(self) -> float:
        return self.timeline.now + self.epoch0

    def random(self, name: str) -> random.Random:
        """Each name has its own stream, so that leaving something out of a scenario changes little else."""
        found = self._randoms.get(name)
        if found is None:
            found = self._randoms[name] = random.Random(f"{self.scenario.seed} {name}")
        return found

    def delay(self, kind: str, *names: object) -> float:
        upper: float = getattr(self.scenario.latencies, kind)
        return upper * self.random(f"{kind} {' '.join(map(str, names))}").random()

    def note(self, text: str) -> None:
        self.history.append((self.now, text))

    # Watches.

    def watch(self, name: str, watcher: Watcher) -> None:
        self._watchers[name] = watcher

    def unwatch(self, name: str) -> None:
        self._watchers.pop(name, None)
        self.supervisor_listeners.pop(name, None)

    def tell(self, kind: str, value: Any) -> None:
        for name in list(self._watchers):
            slow = self.watch_slowness * self.delay("watch", name)
            at = max(self.now + slow, self._last.get((name, kind), 0.0))
            self._last[name, kind] = at
            self.timeline.at(at, self._deliver, name, self._watchers[name], kind, value)

    def _deliver(self, name: str, watcher: Watcher, kind: str, value: Any) -> None:
        if self._watchers.get(name) == watcher:
            watcher(kind, value)

    def supervisor_changed(self, supervisor: Supervisor) -> None:
        for listener in list(self.supervisor_listeners.values()):
            listener(supervisor)

    # Pods.

    def create_pod(self, spec: ModelSpec, revision: str, name: str, devices: tuple[DeviceKey, ...]) -> Record:
        key = f"{spec.namespace}/{name}"
        if key in self.pods:
            raise ConflictError(f"{key} is there already")
        self._uids += 1
        host = devices[0].id == "host"
        record = Record(
            name,
            spec.namespace,
            f"uid-{self._uids}",
            self._version(),
            spec.key,
            revision,
            devices,
            self.wall,
            requested=spec.residue if host else 0,
            claims=spec.namespace_claims and not host,
        )
        self._store(record)
        self.note(f"pod {record.id} is created for {', '.join(map(str, devices))}")
        self.timeline.after(self.delay("pod", record.uid), self._schedule, record.id, record.uid)
        return record

    def _schedule(self, key: str, uid: str) -> None:
        record = self.pods.get(key)
        if record is None or record.uid != uid or record.deleting or record.scheduled:
            return
        node = self.nodes.get(record.node)
        fits = node is not None and not node.gone and node.ready and self._host_fits(record, record.requested) and self._claims_fit(record)
        fits = fits and sum(each.node == record.node and each.scheduled for each in self.pods.values()) < self.nodes[record.node].spec.pod_slots
        if not fits:
            if record.unschedulable_since is None:
                self._store(replace(record, unschedulable_since=self.wall, version=self._version()))
                self.note(f"pod {key} cannot be scheduled")
            self.timeline.after(1.0, self._schedule, key, uid)
            return
        self._store(replace(record, scheduled=True, unschedulable_since=None, granted=record.requested, version=self._version()))
        supervisor = Supervisor(self, uid, self.models[record.model].spec, record.devices, ReplicaState.PENDING)
        self.supervisors[uid] = supervisor
        self.timeline.after(self.delay("pod", uid), self._started, supervisor)

    def _claims_fit(self, record: Record) -> bool:
        if not record.claims:
            return True
        others = (each for each in self.pods.values() if each.claims and each.namespace != record.namespace and each.scheduled)
        return not any(set(each.devices) & set(record.devices) for each in others)

    def _started(self, supervisor: Supervisor) -> None:
        if not supervisor.alive:
            return
        supervisor.state = ReplicaState.DOWNLOADING
        supervisor.bump()
        node = self.nodes[supervisor.devices[0].node]
        seconds = 0.05 if supervisor.spec.key in node.cached else supervisor.spec.download
        self.timeline.after(seconds, self._downloaded, supervisor, node)

    def _downloaded(self, supervisor: Supervisor, node: NodeState) -> None:
        if supervisor.alive and supervisor.state is ReplicaState.DOWNLOADING:
            if node.spec.shared_cache:
                node.cached.add(supervisor.spec.key)
                self.tell("node", node.spec.name)
            supervisor.state = ReplicaState.SLEEPING
            supervisor.bump()

    def annotate(self, key: str, version: int | None, **changes: Any) -> Record:
        record = self.pods.get(key)
        if record is None or record.deleting:
            raise GoneError(key)
        if version is not None and record.version != version:
            raise ConflictError(key)
        changed = replace(record, version=self._version(), **changes)
        self._store(changed)
        return changed

    def delete_pod(self, key: str, uid: str, grace: float = 2.0) -> None:
        record = self.pods.get(key)
        if record is None or record.uid != uid:
            raise GoneError(key)
        if record.deleting:
            return
        self._store(replace(record, deleting=True, version=self._version()))
        supervisor = self.supervisors.get(uid)
        if supervisor is not None:
            self.watchdog.terminating(supervisor)
            supervisor.admitting = False
            supervisor.draining = True
            supervisor.bump()
        if not self.nodes[record.node].gone:  # a kubelet that cannot be reached ends it when it hears of it again
            self.timeline.after(grace * 0.5 * (1 + self.random(f"grace {uid}").random()), self._gone, key, uid)

    def _gone(self, key: str, uid: str) -> None:
        record = self.pods.get(key)
        if record is None or record.uid != uid:
            return
        if self.partitioned(record.node) and not self.nodes[record.node].gone:
            self.timeline.after(1.0, self._gone, key, uid)
            return
        del self.pods[key]
        supervisor = self.supervisors.pop(uid, None)
        if supervisor is not None:
            supervisor.die()
            supervisor.bump()
        self.note(f"pod {key} is gone")
        self.tell("pod-gone", record)

    def _store(self, record: Record) -> None:
        self.pods[record.id] = record
        self.tell("pod", record)

    def _version(self) -> int:
        self._versions += 1
        return self._versions

    # Memory.

    def capacity(self, key: DeviceKey) -> int:
        return self.nodes[key.node].spec.devices[key.id]

    def physical(self, key: DeviceKey) -> int:
        """What engines and sleeping supervisors really take."""
        total = 0
        for supervisor in self.supervisors.values():
            if key in supervisor.memory:
                total += supervisor.memory[key]
            elif key.id == "host" and key in supervisor.devices and supervisor.state is not ReplicaState.PENDING:
                total += supervisor.spec.residue
        return total

    def out_of_memory(self, supervisor: Supervisor) -> bool:
        """Whether this engine, all of it, is more than its devices have, or its pod may use."""
        for key, size in supervisor.memory.items():
            if self.physical(key) > self.capacity(key):
                return True
            if key.id == "host" and size > supervisor.given.get(key, 0) * 1.25 + (256 << 20):
                return True
        return False

    def _host_fits(self, record: Record, size: int) -> bool:
        """What the kubelet checks: allocated requests against what the node has."""
        if record.devices[0].id != "host":
            return True
        others = sum(each.granted for each in self.pods.values() if each.devices[0] == record.devices[0] and each.uid != record.uid)
        return others + size <= self.capacity(record.devices[0])

    def resize(self, key: str, uid: str, size: int) -> Record:
        record = self.pods.get(key)
        if record is None or record.uid != uid or record.deleting:
            raise GoneError(key)
        changed = replace(record, requested=size, version=self._version())
        self._store(changed)
        self.timeline.after(self.delay("grant", uid), self._grant, key, uid)
        return changed

    def _grant(self, key: str, uid: str) -> None:
        record = self.pods.get(key)
        if record is None or record.uid != uid or record.granted == record.requested:
            return
        if self._host_fits(record, record.requested) and not self.partitioned(record.node):
            self._store(replace(record, granted=record.requested, version=self._version()))
        else:
            self.timeline.after(0.5, self._grant, key, uid)

    # Nodes.

    def partitioned(self, name: str) -> bool:
        node = self.nodes[name]
        return node.gone or node.partitioned_until > self.now

    def partition(self, name: str, seconds: float) -> None:
        node = self.nodes[name]
        node.partitioned_until = self.now + seconds
        self.note(f"node {name} cannot be reached for {seconds:.0f} s")
        self.timeline.after(3.0, self._check_node, name)
        self.timeline.after(seconds + 0.1, self._check_node, name)

    def _check_node(self, name: str) -> None:
        node = self.nodes[name]
        ready = not self.partitioned(name)
        if ready != node.ready and not node.gone:
            node.ready = ready
            node.not_ready_since = None if ready else self.wall
            self.note(f"node {name} is {'ready' if ready else 'not ready'}")
            self.tell("node", name)

    def lose_node(self, name: str) -> None:
        node = self.nodes[name]
        if node.gone:
            return
        node.gone, node.ready = True, False
        self.note(f"node {name} is gone")
        self.tell("node", name)
        for record in list(self.pods.values()):
            if record.node == name:
                del self.pods[record.id]
                supervisor = self.supervisors.pop(record.uid, None)
                if supervisor is not None:
                    supervisor.die()
                self.tell("pod-gone", record)

    def cordon(self, name: str, schedulable: bool) -> None:
        self.nodes[name].schedulable = schedulable
        self.tell("node", name)

    def device_kind(self, key: DeviceKey) -> DeviceKind:
        return DeviceKind.HOST if key.id == "host" else DeviceKind.GPU

    # Models.

    def put_model(self, spec: ModelSpec) -> None:
        self.models[spec.key] = ModelState(spec)
        self.tell("model", spec.key)

    def change_model(self, key: str, **changes: Any) -> None:
        """A write of the operator into the status, or of a user into the spec."""
        model = self.models.get(key)
        if model is None:
            return
        for name, value in changes.items():
            setattr(model, name, value)
        self.tell("model", key)

    def put_report(self, gateway: str, sequence: int, entries: Mapping[str, Any] | None) -> None:
        """None: the gateway's pod is gone, and its report with it."""
        if entries is None:
            self.reports.pop(gateway, None)
        else:
            self.reports[gateway] = (sequence, entries)
        self.tell("report", (gateway, sequence, entries))


__all__ = ["Cluster", "Commit", "ConflictError", "GoneError", "ModelState", "NodeState"]
