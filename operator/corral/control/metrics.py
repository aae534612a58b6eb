"""The operator's metrics, from plans, from what actions came to, and (the gauges) from the state as it is when somebody asks.

Labels hold reasons, devices, pools and phases, never names of models: their number is bounded by the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from corral.control.facts import LoadTimes
from corral.domain.model import ReplicaState
from corral.domain.plan import Action
from corral.domain.snapshot import State

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
QUICK = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)


DEVICE_GAUGES = (
    ("corral_device_capacity_bytes", "Memory that the device has for models"),
    ("corral_device_committed_bytes", "Memory that is given to replicas"),
    ("corral_device_margin_bytes", "Memory that is left free on purpose"),
    ("corral_device_free_bytes", "Memory that can still be given, margin taken off"),
)


class Gauges(Collector):
    """Read at each scrape: always true, and between two scrapes they cost nothing."""

    def __init__(self, state: State, waiting: Callable[[], Mapping[str, int]]) -> None:
        self._state = state
        self._waiting = waiting

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        families = [GaugeMetricFamily(name, text, labels=("pool", "node", "device")) for name, text in DEVICE_GAUGES]
        for key, device in sorted(self._state.devices.items()):
            used = self._state.used.get(key, 0)
            figures = (device.capacity, used, device.margin, max(0, device.usable - used))
            for family, figure in zip(families, figures, strict=True):
                family.add_metric((device.pool, key.node, key.id), figure)
        yield from families
        replicas = GaugeMetricFamily("corral_replicas", "Server pods by state", labels=("state",))
        counts = dict.fromkeys(ReplicaState, 0)
        for replica in self._state.replicas.values():
            counts[replica.state] += 1
        for state, count in counts.items():
            replicas.add_metric((state.value,), count)
        yield replicas
        waiting = GaugeMetricFamily("corral_waiting_models", "Models that somebody waits for and that are not loaded, by reason", labels=("reason",))
        for reason, count in sorted(self._waiting().items()):
            waiting.add_metric((reason,), count)
        yield waiting


class Metrics:
    def __init__(self, state: State, waiting: Callable[[], Mapping[str, int]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(Gauges(state, waiting))
        self._actions = Counter("corral_actions_total", "Actions started, by kind and reason", ("action", "reason"), registry=self.registry)
        self._evictions = Counter("corral_evictions_total", "Replicas put to sleep, by reason", ("reason",), registry=self.registry)
        self._failures = Counter("corral_failures_total", "Failed estimates, downloads and loads, by reason", ("reason",), registry=self.registry)
        self._swaps = Counter("corral_swaps_total", "Evictions that made room for another model", registry=self.registry)
        self._turns = Counter("corral_turns_total", "Turns that began", registry=self.registry)
        self._plan_seconds = Histogram("corral_plan_seconds", "Time that one decision took", buckets=QUICK, registry=self.registry)
        self._load_seconds = Histogram(
            "corral_load_seconds",
            "A load, with pod start and download where there were any, waiting for memory left out",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._phase_seconds = Histogram(
            "corral_load_phase_seconds", "The parts of a load: schedule, download, start, load", ("phase",), buckets=SECONDS, registry=self.registry
        )
        self._wait_seconds = Histogram(
            "corral_wait_seconds", "How long the oldest waiter had waited when its model was loaded", buckets=SECONDS, registry=self.registry
        )
        self._estimate_ratio = Histogram(
            "corral_estimate_ratio",
            "Measured memory over estimated memory, per load",
            buckets=(0.5, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.5, 2),
            registry=self.registry,
        )
        self._errors = Counter("corral_loop_errors_total", "Cycles of the control loop that raised", registry=self.registry)
        self._status_writes = Counter("corral_status_writes_total", "Statuses written, by kind", ("kind",), registry=self.registry)

    def action(self, action: Action) -> None:
        self._actions.labels(type(action).__name__, action.reason).inc()

    def evicted(self, reason: str, *, swap: bool) -> None:
        self._evictions.labels(reason).inc()
        if swap:
            self._swaps.inc()

    def failure(self, reason: str) -> None:
        self._failures.labels(reason).inc()

    def turn(self) -> None:
        self._turns.inc()

    def loaded(self, times: LoadTimes, *, waited: float | None, estimated: int, measured: int) -> None:
        self._load_seconds.observe(times.total)
        for phase, seconds in times.phases.items():
            self._phase_seconds.labels(phase).observe(seconds)
        if waited is not None:
            self._wait_seconds.observe(max(0.0, waited))
        if estimated and measured:
            self._estimate_ratio.observe(measured / estimated)

    def loop_error(self) -> None:
        self._errors.inc()

    def status_written(self, kind: str) -> None:
        self._status_writes.labels(kind).inc()

    def planned(self, seconds: float) -> None:
        self._plan_seconds.observe(seconds)
