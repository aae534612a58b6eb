"""The operator's metrics, from plans and from what actions came to. Labels hold reasons, devices and pools, never names of models."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from corral.domain.plan import Action
from corral.domain.snapshot import State

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
QUICK = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        device = ("pool", "node", "device")
        self._capacity = Gauge("corral_device_capacity_bytes", "Memory that the device has for models", device, registry=self.registry)
        self._committed = Gauge("corral_device_committed_bytes", "Memory that is given to replicas", device, registry=self.registry)
        self._margin = Gauge("corral_device_margin_bytes", "Memory that is left free on purpose", device, registry=self.registry)
        self._free = Gauge("corral_device_free_bytes", "Memory that can still be given, margin taken off", device, registry=self.registry)
        self._replicas = Gauge("corral_replicas", "Server pods by state", ("state",), registry=self.registry)
        self._waiting = Gauge(
            "corral_waiting_models", "Models that somebody waits for and that are not loaded, by reason", ("reason",), registry=self.registry
        )
        self._actions = Counter("corral_actions_total", "Actions started, by kind and reason", ("action", "reason"), registry=self.registry)
        self._evictions = Counter("corral_evictions_total", "Replicas put to sleep, by reason", ("reason",), registry=self.registry)
        self._failures = Counter("corral_failures_total", "Failed estimates, downloads and loads, by reason", ("reason",), registry=self.registry)
        self._swaps = Counter("corral_swaps_total", "Evictions that made room for another model", registry=self.registry)
        self._turns = Counter("corral_turns_total", "Turns that began", registry=self.registry)
        self._plan_seconds = Histogram("corral_plan_seconds", "Time that one decision took", buckets=QUICK, registry=self.registry)
        self._load_seconds = Histogram("corral_load_seconds", "From the decision to load until loaded", buckets=SECONDS, registry=self.registry)
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
        self._devices: dict[tuple[str, str, str], None] = {}

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

    def loaded(self, seconds: float, *, waited: float | None, estimated: int, measured: int) -> None:
        self._load_seconds.observe(seconds)
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

    def observe(self, state: State, waiting: dict[str, int]) -> None:
        """The gauges, from the whole state; called now and then, not with every plan."""
        present: dict[tuple[str, str, str], None] = {}
        for key, device in state.devices.items():
            labels = (device.pool, key.node, key.id)
            used = state.used.get(key, 0)
            present[labels] = None
            self._capacity.labels(*labels).set(device.capacity)
            self._margin.labels(*labels).set(device.margin)
            self._committed.labels(*labels).set(used)
            self._free.labels(*labels).set(max(0, device.usable - used))
        for labels in self._devices.keys() - present.keys():
            for gauge in (self._capacity, self._margin, self._committed, self._free):
                gauge.remove(*labels)
        self._devices = present
        self._replicas.clear()
        for replica in state.replicas.values():
            self._replicas.labels(replica.state.value).inc()
        self._waiting.clear()
        for reason, count in waiting.items():
            self._waiting.labels(reason).set(count)
