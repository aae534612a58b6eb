"""One run of one scenario: everything is built, faults strike at their time, the invariants are looked at after each event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from corral.domain.model import ReplicaState
from corral.simulate.cluster import Cluster
from corral.simulate.gateways import Gateway
from corral.simulate.invariants import InvariantError, Watchdog
from corral.simulate.operators import Operator
from corral.simulate.requests import Requests
from corral.simulate.scenario import Fault, Scenario
from corral.simulate.timeline import Timeline


@dataclass(slots=True)
class Result:
    scenario: Scenario
    events: int
    checks: int
    decisions: int
    requests: int
    answered: int
    evictions: int
    turns: int
    outcomes: dict[str, int]
    waits: list[float]
    history: list[tuple[float, str]]
    ended_at: float
    failure: InvariantError | None = None


class World:
    def __init__(self, scenario: Scenario, mutate: Callable[[World], None] | None = None) -> None:
        self.scenario = scenario
        self.timeline = Timeline()
        self.cluster = Cluster(scenario, self.timeline)
        self.watchdog = self.cluster.watchdog = Watchdog(self.cluster)
        self.requests = self.cluster.requests = Requests(self.cluster)
        self.operator: Operator | None = None
        self.on_operator: Callable[[Operator], None] = lambda _: None
        self.on_gateway: Callable[[Gateway], None] = lambda _: None
        self.decisions = 0
        self._named = 0
        if mutate is not None:
            mutate(self)
        for spec in scenario.models:
            if spec.created <= 0:
                self.cluster.put_model(spec)
            else:
                self.timeline.at(spec.created, self.cluster.put_model, spec)
        for _ in range(scenario.gateways):
            self._new_gateway()
        self._new_operator()
        for request in scenario.requests:
            self.timeline.at(request.at, self.requests.begin, request)
        for fault in scenario.faults:
            self.timeline.at(fault.at, self._strike, fault)

    def run(self) -> Result:
        failure: InvariantError | None = None
        try:
            self.timeline.run(self.scenario.until, self.watchdog.after_event)
            self.watchdog.finish()
        except InvariantError as error:
            failure = error
        if self.operator is not None:
            self.decisions += self.operator.decisions
        outcomes: dict[str, int] = {}
        for request in self.requests.all:
            outcomes[request.outcome or "open"] = outcomes.get(request.outcome or "open", 0) + 1
        waits = [each.first_byte - each.arrived for each in self.requests.all if each.outcome == "answered"]
        return Result(
            self.scenario,
            self.timeline.events,
            self.watchdog.checks,
            self.decisions,
            len(self.requests.all),
            outcomes.get("answered", 0),
            self.watchdog.evictions,
            self.watchdog.turns,
            outcomes,
            waits,
            self.cluster.history,
            self.timeline.now,
            failure,
        )

    def _new_operator(self) -> None:
        self.cluster.lease_epoch += 1
        self._named += 1
        if self.operator is not None:
            self.decisions += self.operator.decisions
        self.operator = Operator(self.cluster, f"operator-{self._named}", self.cluster.lease_epoch)
        self.on_operator(self.operator)
        self.operator.start()

    def _new_gateway(self) -> None:
        self._named += 1
        gateway = Gateway(self.cluster, f"gateway-{self._named}")
        self.on_gateway(gateway)
        self.requests.gateways = [each for each in self.requests.gateways if each.alive]
        self.requests.gateways.append(gateway)
        gateway.start()

    # Faults.

    def _strike(self, fault: Fault) -> None:
        handler: Callable[[Fault], float] = getattr(self, f"_{fault.kind.replace('-', '_')}")
        self.cluster.note(f"fault: {fault.kind} {fault.target} {fault.seconds:.0f} s")
        lasts = handler(fault)
        self.watchdog.fault(lasts)

    def _operator_crash(self, fault: Fault) -> float:
        if self.operator is not None and self.operator.alive:
            self.operator.stop()
            self.timeline.after(fault.seconds, self._new_operator)
        return fault.seconds

    def _operator_freeze(self, fault: Fault) -> float:
        """Like SIGSTOP. When it lasts longer than the lease, somebody else leads before this one goes on."""
        operator = self.operator
        if operator is None or not operator.alive or operator.frozen_until > self.timeline.now:
            return 0.0
        operator.frozen_until = self.timeline.now + fault.seconds
        if fault.seconds > self.scenario.lease:
            self.timeline.after(self.scenario.lease + 0.5, self._new_operator)
        return fault.seconds

    def _gateway_crash(self, fault: Fault) -> float:
        living = [each for each in self.requests.gateways if each.alive]
        if living:
            living[0].crash()
            self.timeline.after(fault.seconds, self._new_gateway)
        return fault.seconds + self.scenario.report_lifetime

    def _node_partition(self, fault: Fault) -> float:
        self.cluster.partition(fault.target, fault.seconds)
        return fault.seconds + 60.0

    def _node_lost(self, fault: Fault) -> float:
        self.cluster.lose_node(fault.target)
        return 60.0

    def _pod_crash(self, fault: Fault) -> float:
        """The container of one pod starts anew."""
        found = self._some_pod(fault)
        if found:
            self.cluster.note(f"{found[0]} starts anew")
            self.cluster.supervisors[found[1]].restart()
        return 5.0

    def _pod_deleted(self, fault: Fault) -> float:
        found = self._some_pod(fault)
        if found:
            self.cluster.delete_pod(*found)
        return 5.0

    def _engine_crash(self, fault: Fault) -> float:
        found = self._some_pod(fault)
        if found:
            self.cluster.supervisors[found[1]].crash_engine()
        return 5.0

    def _supervisor_silent(self, fault: Fault) -> float:
        found = self._some_pod(fault)
        if found:
            supervisor = self.cluster.supervisors[found[1]]
            supervisor.silent_until = self.timeline.now + fault.seconds
            self.cluster.note(f"{found[0]} does not answer for {fault.seconds:.0f} s")
        return fault.seconds + 20.0

    def _some_pod(self, fault: Fault) -> tuple[str, str] | None:
        pods = sorted(each.id for each in self.cluster.pods.values() if each.uid in self.cluster.supervisors and not each.deleting)
        if not pods:
            return None
        key = pods[int(fault.target or 0) % len(pods)]
        return key, self.cluster.pods[key].uid

    def _respec(self, fault: Fault) -> float:
        facts = self.cluster.models.get(fault.target)
        if facts is not None:
            self.cluster.change_model(fault.target, revision=facts.revision + 1)
        return 30.0

    def _delete_model(self, fault: Fault) -> float:
        facts = self.cluster.models.get(fault.target)
        if facts is not None and not facts.deleted:
            self.cluster.change_model(fault.target, deleted=True)
            self.timeline.after(1.0, self._collect, fault.target)
        return 5.0

    def _collect(self, key: str) -> None:
        """The object goes when nothing of it is left."""
        if any(each.model == key for each in self.cluster.pods.values()):
            self.timeline.after(1.0, self._collect, key)
        elif key in self.cluster.models:
            del self.cluster.models[key]
            self.cluster.tell("model", key)

    def _create_model(self, fault: Fault) -> float:
        if fault.target not in self.cluster.models:
            spec = next(each for each in self.scenario.models if each.key == fault.target)
            self.cluster.put_model(replace(spec, created=self.timeline.now))
        return 5.0

    def _cordon(self, fault: Fault) -> float:
        self.cluster.cordon(fault.target, schedulable=False)
        self.timeline.after(fault.seconds, self.cluster.cordon, fault.target, True)
        return fault.seconds

    def _slow_watch(self, fault: Fault) -> float:
        """Watches tell of things late."""
        self.cluster.watch_slowness = 20.0
        self.timeline.after(fault.seconds, self._fast_watch)
        return fault.seconds

    def _fast_watch(self) -> None:
        self.cluster.watch_slowness = 1.0

    def _wish_load(self, fault: Fault) -> float:
        return self._wish(fault.target, "Load")

    def _wish_unload(self, fault: Fault) -> float:
        return self._wish(fault.target, "Unload")

    def _wish(self, key: str, action: str) -> float:
        living = [each for each in self.requests.gateways if each.alive]
        if living:
            living[0].machine.wish(key, action, int(self.timeline.now * 1000) + 1, self.timeline.now)
            living[0]._schedule()  # noqa: SLF001 - a wish is an event like any other
        return 0.0


def resident(world: World) -> list[str]:
    """Names of the models that are loaded, for tests and the command line."""
    return sorted(each.spec.name for each in world.cluster.supervisors.values() if each.state is ReplicaState.LOADED)
