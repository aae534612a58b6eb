"""The six invariants, watched from outside: by what pods and clients see, never by what the decision believes.

1 memory, 2 who may be a victim, 3 a model serves whom it was loaded for, 4 every request ends once, 5 nobody starves, 6 no swap without need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from corral.domain import reasons
from corral.domain.model import DeviceKey, DeviceKind
from corral.domain.plan import Create, Load, Plan
from corral.domain.snapshot import Snapshot

if TYPE_CHECKING:
    from corral.simulate.cluster import Cluster
    from corral.simulate.pods import Supervisor
    from corral.simulate.requests import Request
    from corral.simulate.scenario import ModelSpec

GOING_ANYWAY = frozenset(
    {reasons.DELETED, reasons.REVISION_REPLACED, reasons.TAINTED, reasons.DEVICE_LOST, reasons.NODE_LOST}
)  # ends that no waiter and no turn has to justify
SLACK = 1e-6
LAG = 8.0  # a waiter that left is still believed in for a report, a watch and a plan
RECOVERY = 30.0  # after a fault, before starvation counts again


class InvariantError(AssertionError):
    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"invariant {number}: {text}")
        self.number = number
        self.text = text


class Watchdog:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.checks = 0
        self.evictions = 0
        self.swaps: dict[DeviceKey, int] = {}
        self.turns = 0
        self._unserved: dict[str, float] = {}  # models that somebody wants, and since when nobody of them was served
        self._quiet_since = 0.0  # after faults
        self._looked = 0.0
        self._under_way: dict[tuple[str, str], str] = {}
        self._turns: dict[str, float] = {}

    # 1

    def after_event(self) -> None:
        self.checks += 1
        given: dict[DeviceKey, int] = {}
        used: dict[DeviceKey, int] = {}
        for supervisor in self.cluster.supervisors.values():
            for key, size in supervisor.given.items():
                given[key] = given.get(key, 0) + size
                used[key] = used.get(key, 0) + supervisor.memory.get(key, 0)
            if not supervisor.given and supervisor.devices[0].id == "host" and supervisor.alive:
                key = supervisor.devices[0]
                given[key] = given.get(key, 0) + supervisor.spec.residue
        for key, size in given.items():
            spec = self.cluster.nodes[key.node].spec
            if size > spec.devices[key.id] - spec.margin:
                raise InvariantError(1, f"{key}: engines were given {size} of {spec.devices[key.id]} bytes, margin {spec.margin}")
        if self.cluster.now >= self._looked + 1.0:
            self._looked = self.cluster.now
            self._each_second()

    def woke(self, supervisor: Supervisor) -> None:
        self.cluster.note(f"{supervisor.spec.name} ({supervisor.uid}) loads")
        for key, size in supervisor.given.items():
            if key.id == "host":
                granted = next((each.granted for each in self.cluster.pods.values() if each.uid == supervisor.uid), 0)
                if granted < size:
                    raise InvariantError(1, f"{supervisor.uid} loads {size} bytes on {key}, the kubelet has granted {granted}")

    def ordered(self, operator: str, replica: str, kind: str) -> None:
        """One action for one replica at a time: two would count the same bytes once."""
        if (operator, replica) in self._under_way:
            raise InvariantError(1, f"{kind} of {replica} is begun while {self._under_way[operator, replica]} is under way")
        self._under_way[operator, replica] = kind

    def over(self, operator: str, replica: str) -> None:
        self._under_way.pop((operator, replica), None)

    def planned(self, snapshot: Snapshot, plan: Plan, now: float) -> None:  # noqa: ARG002
        """The ledger adds up in every plan, and no replica gets two orders."""
        sums: dict[DeviceKey, int] = {}
        seen: set[str] = set()
        for action in plan.actions:
            replica_id = getattr(action, "replica", "")
            if replica_id:
                if replica_id in seen or snapshot.replicas[replica_id].ordered:
                    raise InvariantError(1, f"{replica_id} gets a second order: {type(action).__name__} ({action.reason})")
                seen.add(replica_id)
            if isinstance(action, Load):
                replica = snapshot.replicas[action.replica]
                for key, size in action.commitment.items():
                    sums[key] = sums.get(key, 0) + size - replica.uses(key)
            elif isinstance(action, Create):
                for key in action.devices:
                    if snapshot.devices[key].kind is DeviceKind.HOST:
                        sums[key] = sums.get(key, 0) + snapshot.models[action.model].residue
        for key, size in sums.items():
            device = snapshot.devices[key]
            if size > 0 and snapshot.used.get(key, 0) + size > device.capacity - device.margin:
                raise InvariantError(1, f"{key}: the plan adds {size} to {snapshot.used.get(key, 0)} of {device.capacity}, margin {device.margin}")

    # 2, 3, 6

    def stopped_admitting(self, supervisor: Supervisor, why: str, evicting_for: str, *, ended_turn: bool) -> None:
        spec, pool, wall = supervisor.spec, self.cluster.scenario.pool, self.cluster.wall
        record = next((each for each in self.cluster.pods.values() if each.uid == supervisor.uid), None)
        facts = self.cluster.models.get(spec.key)
        self.cluster.note(f"{spec.name} ({supervisor.uid}) admits no more: {why}, {len(supervisor.in_flight)} in flight")
        if facts is None or facts.deleted or why in GOING_ANYWAY:
            return
        if spec.pinned:
            raise InvariantError(2, f"pinned {spec.key} stops admitting: {why}")
        if supervisor.in_flight and not ended_turn:
            raise InvariantError(2, f"{spec.key} stops admitting with {len(supervisor.in_flight)} in flight: {why}")
        if supervisor.in_flight:
            # The mark on the pod is written after the fact; what the leader knew counts as well.
            marks = [each for each in (record.turn if record is not None else None, self._turns.get(supervisor.uid)) if each is not None]
            turn = max((each for each in marks if supervisor.loaded_at is None or each >= supervisor.loaded_at - SLACK), default=None)
            if turn is None:
                raise InvariantError(2, f"{spec.key} stops admitting with requests in flight, and it never had a turn")
            if wall < turn + pool.turn - SLACK:
                raise InvariantError(2, f"{spec.key} stops admitting {turn + pool.turn - wall:.1f} s before its turn is over")
            self.turns += 1
        if why in (reasons.IDLE_TIMEOUT, reasons.WISHED, reasons.SCALE_DOWN):
            return
        self._serves_its_waiter(supervisor, record.loaded_for if record is not None else None)
        self.evictions += 1
        for key in supervisor.devices:
            self.swaps[key] = self.swaps.get(key, 0) + 1
        # A new leader knows when the memory was committed, not when the load ended: swaps are bounded by either.
        committed = record.commit.at if record is not None and record.commit is not None else None
        if committed is not None and wall < committed + pool.min_residency - SLACK:
            raise InvariantError(6, f"{spec.key} is evicted {wall - committed:.1f} s after its commitment, minResidency is {pool.min_residency}")
        if evicting_for:
            self._somebody_waits(spec, evicting_for)

    def turn(self, uid: str, at: float) -> None:
        self._turns[uid] = at

    def _serves_its_waiter(self, supervisor: Supervisor, loaded_for: float | None) -> None:
        if loaded_for is None or supervisor.served or supervisor.loaded_at is None:
            return
        pool = self.cluster.scenario.pool
        if self.cluster.wall > supervisor.loaded_at + pool.hold_timeout:
            return
        loaded = supervisor.loaded_at - self.cluster.epoch0
        still = [each for each in self.cluster.requests.waiting.get(supervisor.spec.key, {}).values() if each.arrived <= loaded]
        if still:
            raise InvariantError(3, f"{supervisor.spec.key} is evicted before it served {still[0].id}, for whom it was loaded")

    def _somebody_waits(self, victim: ModelSpec, newcomer_key: str) -> None:
        newcomer = self.cluster.models.get(newcomer_key)
        if newcomer is None or newcomer.deleted:
            return
        if newcomer.spec.priority < victim.priority:
            raise InvariantError(2, f"{victim.key} (priority {victim.priority}) makes room for {newcomer_key} (priority {newcomer.spec.priority})")
        kept = newcomer.queue_until is not None and newcomer.queue_until > self.cluster.wall - LAG
        # A leader that was away cannot know whether a waiter's hold was over or its client gone: the place in the queue counts.
        kept |= newcomer.queue_since is not None and self.cluster.now < self._quiet_since
        lag = LAG + self.cluster.scenario.report_lifetime + 4 * self.cluster.scenario.latencies.watch * self.cluster.watch_slowness
        last = self.cluster.requests.last_waited.get(newcomer_key, float("-inf"))
        waited = bool(self.cluster.requests.waiting.get(newcomer_key)) or last >= self.cluster.now - lag
        wished = any(each.kind == "wish-load" and each.target == newcomer_key for each in self.cluster.scenario.faults)
        if kept or waited or wished or newcomer.spec.pinned:
            return
        more = newcomer.spec.max_replicas > 1 and victim.priority < newcomer.spec.priority  # one more replica of a busy model
        if not newcomer.spec.min_replicas and not more:
            raise InvariantError(6, f"{victim.key} makes room for {newcomer_key}, for which nobody waits")
        if not more and (victim.min_replicas or victim.priority >= newcomer.spec.priority):
            raise InvariantError(6, f"{victim.key} makes room for the floor of {newcomer_key}, which is no more important")

    def slept(self, supervisor: Supervisor) -> None:
        if supervisor.in_flight:
            raise InvariantError(2, f"{supervisor.spec.key} is put to sleep with {len(supervisor.in_flight)} in flight")

    def loaded(self, supervisor: Supervisor) -> None:
        self.cluster.note(f"{supervisor.spec.name} ({supervisor.uid}) is loaded")

    def terminating(self, supervisor: Supervisor) -> None:
        self.cluster.note(f"{supervisor.spec.name} ({supervisor.uid}) is terminated, {len(supervisor.in_flight)} in flight")

    # 4

    def ended(self, request: Request, outcome: str) -> None:
        if request.outcome:
            raise InvariantError(4, f"{request.id} ends twice: {request.outcome}, then {outcome}")
        pool, model = self.cluster.scenario.pool, request.spec.model
        waited = request.waited + (self.cluster.now - request.waits_since if request.waits_since is not None else 0.0)
        if waited > pool.hold_timeout + 1.0:
            raise InvariantError(4, f"{request.id} was held for {waited:.1f} s, the limit is {pool.hold_timeout} s")
        facts = self.cluster.models.get(model)
        if outcome == "hold_timeout" and self.cluster.now - request.arrived < pool.hold_timeout - 1.0:
            raise InvariantError(4, f"{request.id} is told hold_timeout after {self.cluster.now - request.arrived:.1f} s")
        pinned = [each.spec.key for each in self.cluster.models.values() if each.spec.pinned]
        overflow = facts is not None and facts.spec.pinned and len(pinned) > 1  # pinned models alone may fill everything
        if outcome == "does_not_fit" and facts is not None and self.fits(facts.spec) and not overflow:
            raise InvariantError(4, f"{request.id} is told does_not_fit, and {model} fits")

    def finish(self) -> None:
        """At the end of the run: whoever still lives is where it should be."""
        for request in self.cluster.requests.live.values():
            self._alive(request)

    def _alive(self, request: Request) -> None:
        pool = self.cluster.scenario.pool
        budget = pool.hold_timeout + request.spec.service + pool.drain_timeout + 5.0
        if self.cluster.now - request.arrived > budget + request.spec.service:
            raise InvariantError(4, f"{request.id} for {request.spec.model} has not ended {self.cluster.now - request.arrived:.1f} s after it came")

    # 5

    def wanted(self, model: str) -> None:
        self._unserved.setdefault(model, self.cluster.now)

    def served(self, request: Request) -> None:
        model = request.spec.model
        self._unserved.pop(model, None)
        if self.cluster.requests.wanting.get(model, 0) > 0:
            self._unserved[model] = self.cluster.now

    def fault(self, seconds: float) -> None:
        """What is broken does not count as starving."""
        self._quiet_since = max(self._quiet_since, self.cluster.now + seconds + RECOVERY)

    def fits(self, spec: ModelSpec) -> bool:
        """On some device with nothing else there, by the truth."""
        need = max(spec.size, spec.estimated)
        for node in self.cluster.nodes.values():
            if node.gone:
                continue
            rooms = sorted((size - node.spec.margin for size in node.spec.devices.values()), reverse=True)
            if rooms and need <= rooms[0]:
                return True
            if spec.layers and sum(rooms[: spec.max_devices]) >= need * 1.2:
                return True
        return False

    def servable(self, spec: ModelSpec) -> bool:
        """It fits beside everything that is pinned or of higher priority, wherever that is."""
        if spec.load_failures or spec.namespace_claims:
            return False
        others = [each.spec for each in self.cluster.models.values() if each.spec.key != spec.key and not each.deleted]
        ahead = [each for each in others if each.pinned or each.priority > spec.priority]
        if sum(max(1, each.max_replicas) for each in ahead) >= self.cluster.scenario.pool.max_models_per_device:
            return False
        above = sum(max(each.size, each.estimated) * max(1, each.max_replicas) for each in ahead)
        need = int(max(spec.size, spec.estimated) * 1.2)
        for node in self.cluster.nodes.values():
            if node.gone or not node.ready or not node.schedulable:
                continue
            residues = sum(2 * each.residue for each in [*others, spec]) if node.spec.kind is DeviceKind.HOST else 0
            if any(size - node.spec.margin - above - residues >= need for size in node.spec.devices.values()):
                return True
        return False

    def bound(self, spec: ModelSpec) -> float:
        """(turn + drain + load) x the models ahead, with what every swap costs besides."""
        pool = self.cluster.scenario.pool
        specs = [each.spec for each in self.cluster.models.values()]
        load = max(each.load for each in specs) * 1.5
        download = max(each.download for each in specs)
        each_turn = pool.turn + pool.drain_timeout + load + pool.min_residency + 10.0
        return pool.max_wait + each_turn * len(specs) + download * 2 + 40.0 + spec.load

    def _each_second(self) -> None:
        for request in self.cluster.requests.live.values():
            self._alive(request)
        for model, since in list(self._unserved.items()):
            if not self.cluster.requests.wanting.get(model, 0):
                del self._unserved[model]
                continue
            facts = self.cluster.models.get(model)
            if facts is None or facts.deleted or not self.servable(facts.spec):
                self._unserved[model] = self.cluster.now
                continue
            waited = self.cluster.now - max(since, self._quiet_since)
            if waited > self.bound(facts.spec):
                raise InvariantError(5, f"{model} is wanted and unserved for {waited:.0f} s, the bound is {self.bound(facts.spec):.0f} s")
