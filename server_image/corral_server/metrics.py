"""Prometheus metrics of one server: llama.cpp's names where it has them, `corral_server_` for the rest.

Counts what the engine reports; a scrape reads and changes nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from corral_server.lifecycle import Lifecycle, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Totals:
    """Sums since the supervisor started, over all its engines."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_seconds: float = 0.0
    predicted_tokens: int = 0
    predicted_seconds: float = 0.0
    crashes: int = 0
    drafts: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    longest: int = 0
    decodes: int = 0
    busy: int = 0
    threads: int = 0
    """Of the engine's last step."""
    _decodes: int = 0
    _busy: int = 0

    def stepped(self, figures: dict[str, int]) -> None:
        """What an engine counts since its start; a new one begins at 0."""
        if figures["decodes"] < self._decodes:
            self._decodes = self._busy = 0
        self.decodes += figures["decodes"] - self._decodes
        self.busy += figures["busy"] - self._busy
        self._decodes, self._busy = figures["decodes"], figures["busy"]
        self.longest = max(self.longest, figures["held"])
        self.threads = figures["threads"]

    def finished(self, usage: dict[str, Any]) -> None:
        cached = usage.get("cached", 0)
        self.requests += 1
        self.prompt_tokens += usage.get("prompt", 0) - cached
        self.cached_tokens += cached
        self.prompt_seconds += usage.get("prompt_ms", 0.0) / 1e3
        self.predicted_tokens += usage.get("completion", 0)
        self.predicted_seconds += usage.get("predicted_ms", 0.0) / 1e3
        self.drafts += "draft" in usage
        self.drafted_tokens += usage.get("draft", 0)
        self.accepted_tokens += usage.get("accepted", 0)


class _Collector:
    def __init__(self, life: Lifecycle, totals: Totals, processing: int, queued: int) -> None:
        self._life, self._totals, self._processing, self._queued = life, totals, processing, queued

    def collect(self) -> Iterable[Metric]:
        t, life = self._totals, self._life
        for name, text, value in (
            ("llamacpp:prompt_tokens", "Prompt tokens that were evaluated.", t.prompt_tokens),
            ("llamacpp:prompt_seconds", "Time spent on prompts.", t.prompt_seconds),
            ("llamacpp:tokens_predicted", "Tokens that were generated.", t.predicted_tokens),
            ("llamacpp:n_decode", "Steps of all engines so far.", t.decodes),
            ("llamacpp:spec_decode_num_drafts", "Answers with guessed tokens.", t.drafts),
            ("llamacpp:spec_decode_num_draft_tokens", "Tokens that were guessed.", t.drafted_tokens),
            ("llamacpp:spec_decode_num_accepted_tokens", "Guessed tokens that the model chose too.", t.accepted_tokens),
            ("llamacpp:tokens_predicted_seconds", "Time spent on generation.", t.predicted_seconds),
            ("llamacpp:prompt_tokens_cached", "Prompt tokens that were taken from a cache.", t.cached_tokens),
            ("corral_server_answers", "Answers that were completed.", t.requests),
            ("corral_server_loads", "Loads of the model that succeeded.", life.loads),
            ("corral_server_engine_crashes", "Ends of the engine that nobody asked for.", t.crashes),
        ):
            yield CounterMetricFamily(name, text, value=value)
        for name, text, gauge in (
            ("llamacpp:requests_processing", "Answers being generated.", self._processing),
            ("llamacpp:n_busy_slots_per_decode", "Slots at work in a step, on average.", t.busy / max(t.decodes, 1)),
            (
                "llamacpp:prompt_tokens_seconds",
                "Prompt tokens evaluated a second, on average.",
                t.prompt_tokens / t.prompt_seconds if t.prompt_seconds else 0.0,
            ),
            (
                "llamacpp:predicted_tokens_seconds",
                "Tokens generated a second, on average.",
                t.predicted_tokens / t.predicted_seconds if t.predicted_seconds else 0.0,
            ),
            ("llamacpp:requests_deferred", "Answers that wait for a slot.", self._queued),
            ("corral_server_in_flight", "Requests admitted and not ended.", life.in_flight),
            ("corral_server_threads", "Threads of the last step: fewer than the engine has where others want its processors.", t.threads),
            ("corral_server_load_seconds", "How long the last load took, warm-up included.", life.timings.get("total", 0.0)),
        ):
            yield GaugeMetricFamily(name, text, value=gauge)
        states = GaugeMetricFamily("corral_server_state", "1 for the state that the server is in.", labels=["state"])
        for state in State:
            states.add_metric([state.value], 1.0 if life.state is state else 0.0)
        yield states
        memory = GaugeMetricFamily("corral_server_memory_bytes", "Measured memory by kind.", labels=["kind"])
        for kind, size in {**life.memory, "residue": life.residue}.items():
            memory.add_metric([kind], float(size))
        yield memory


def exposition(life: Lifecycle, totals: Totals, *, processing: int, queued: int) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Collector(life, totals, processing, queued))
    # llama.cpp has it as a counter whose name says nothing of a total, which the library does not write.
    name = "llamacpp:n_tokens_max"
    longest = f"# HELP {name} The longest sequence held.\n# TYPE {name} counter\n{name} {totals.longest}\n"
    return generate_latest(registry) + longest.encode()
