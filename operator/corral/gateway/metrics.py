"""The gateway's Prometheus metrics. It owns their names; labels are known models, status codes and fixed words, so that their number is bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ADDED = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1)


class Metrics:
    """One registry for each gateway, so that several live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("corral_gateway_requests", "Requests that ended, by model and status.", ("model", "code"), registry=registry)
        self.residency = Counter(
            "corral_gateway_residency", "Requests that found their model resident (hit) or not (miss).", ("model", "result"), registry=registry
        )
        self.in_flight = Gauge("corral_gateway_in_flight", "Requests at a pod.", ("model",), registry=registry)
        self.waiting = Gauge("corral_gateway_waiting", "Requests that are held.", ("model",), registry=registry)
        self.hold_seconds = Histogram("corral_gateway_hold_seconds", "How long requests were held.", ("model",), buckets=SECONDS, registry=registry)
        self.cold_start = Histogram(
            "corral_gateway_cold_start_seconds",
            "How long the phases of a cold start took, as the waiting clients saw them.",
            ("model", "phase"),
            buckets=SECONDS,
            registry=registry,
        )
        self.added = Histogram(
            "corral_gateway_added_seconds",
            "Time from a request's arrival to its sending, less the hold.",
            buckets=ADDED,
            registry=registry,
        )
        self.returned = Counter("corral_gateway_returned", "Requests that a pod gave back into the hold.", ("model",), registry=registry)
        self.retries = Counter("corral_gateway_connection_retries", "Requests sent again because a reused connection was stale.", registry=registry)
        self.reports = Counter("corral_gateway_reports", "Reports written, by result.", ("result",), registry=registry)
        self.held_bytes = Gauge("corral_gateway_held_bytes", "Bytes of held requests.", registry=registry)
        self._children: dict[tuple[str, int], Counter] = {}
        self._hits: dict[str, Counter] = {}
        self._retries = 0
        self._reports = (0, 0)

    def ended(self, model: str, code: int) -> None:
        """The path of every request: the labels are looked up once for each pair."""
        child = self._children.get((model, code))
        if child is None:
            child = self._children[(model, code)] = self.requests.labels(model, str(code))
        child.inc()

    def hit(self, model: str) -> None:
        child = self._hits.get(model)
        if child is None:
            child = self._hits[model] = self.residency.labels(model, "hit")
        child.inc()

    def forget(self, model: str) -> None:
        """A model is gone: so are its series."""
        for metric in (self.requests, self.residency, self.in_flight, self.waiting, self.hold_seconds, self.cold_start, self.returned):
            metric.remove_by_labels({"model": model})
        self._hits.pop(model, None)
        self._children = {pair: child for pair, child in self._children.items() if pair[0] != model}

    def count_retries(self, total: int) -> None:
        self.retries.inc(total - self._retries)
        self._retries = total

    def count_reports(self, stored: int, failed: int) -> None:
        self.reports.labels("stored").inc(stored - self._reports[0])
        self.reports.labels("failed").inc(failed - self._reports[1])
        self._reports = (stored, failed)

    def page(self) -> bytes:
        return generate_latest(self.registry)
