"""The gateway's Prometheus metrics. It owns their names; labels are known models, status codes and fixed words, so that their number is bounded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ADDED = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1)


class Metrics:
    """One registry for each gateway, so that several live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.misses = Counter("corral_gateway_misses", "Requests that did not find their model resident.", ("model",), registry=registry)
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
        self.returned = Counter("corral_gateway_returned", "Requests that a pod gave back into the hold.", ("model",), registry=registry)
        self.retries = Counter("corral_gateway_connection_retries", "Requests sent again because a reused connection was stale.", registry=registry)
        self.reports = Counter("corral_gateway_reports", "Reports written, by result.", ("result",), registry=registry)
        self.held_bytes = Gauge("corral_gateway_held_bytes", "Bytes of held requests.", registry=registry)
        self._ended: dict[tuple[str, int], int] = {}
        self._hits: dict[str, int] = {}
        self._added_counts = [0] * (len(ADDED) + 1)
        self._added_sum = 0.0
        self._retries = 0
        self._reports = (0, 0)
        registry.register(self)

    # What every request counts is kept in plain numbers, and told when somebody looks.

    def ended(self, model: str, code: int) -> None:
        pair = (model, code)
        self._ended[pair] = self._ended.get(pair, 0) + 1

    def hit(self, model: str) -> None:
        self._hits[model] = self._hits.get(model, 0) + 1

    def added(self, seconds: float) -> None:
        self._added_counts[bisect_left(ADDED, seconds)] += 1
        self._added_sum += seconds

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        requests = CounterMetricFamily("corral_gateway_requests", "Requests that ended, by model and status.", labels=("model", "code"))
        for (model, code), count in self._ended.items():
            requests.add_metric((model, str(code)), count)
        yield requests
        hits = CounterMetricFamily("corral_gateway_hits", "Requests that found their model resident.", labels=("model",))
        for model, count in self._hits.items():
            hits.add_metric((model,), count)
        yield hits
        total, buckets = 0, []
        for bound, count in zip((*ADDED, None), self._added_counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound is None else str(bound), total))
        family = HistogramMetricFamily("corral_gateway_added_seconds", "Time from a request's arrival to its sending, less the hold.")
        family.add_metric((), buckets, self._added_sum)
        yield family

    def forget(self, model: str) -> None:
        """A model is gone: so are its series."""
        for metric in (self.misses, self.in_flight, self.waiting, self.hold_seconds, self.cold_start, self.returned):
            metric.remove_by_labels({"model": model})
        self._hits.pop(model, None)
        self._ended = {pair: count for pair, count in self._ended.items() if pair[0] != model}

    def count_retries(self, total: int) -> None:
        self.retries.inc(total - self._retries)
        self._retries = total

    def count_reports(self, stored: int, failed: int) -> None:
        self.reports.labels("stored").inc(stored - self._reports[0])
        self.reports.labels("failed").inc(failed - self._reports[1])
        self._reports = (stored, failed)
