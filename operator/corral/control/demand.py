"""Demand: what the gateways report, summed per model. A report's age is judged by our own clock since the last change that we saw.

Each report costs the models that it names, never all there are. Nothing here decides or does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from corral.api.gatewayreport import GatewayReport, ReportedModel
from corral.domain.model import Demand

SAME_WAITER = 1.5
"""Seconds come as whole numbers: an arrival that moves by less is the same waiter's."""


@dataclass(slots=True)
class _Entry:
    waiting: int
    oldest: float | None
    in_flight: int
    last_used: float
    wish: tuple[int, str] | None


@dataclass(slots=True)
class _Gateway:
    uid: str
    sequence: int
    changed: float
    entries: dict[str, _Entry] = field(default_factory=dict)
    expired: bool = False

    @property
    def active(self) -> bool:
        """Whether it has to renew: something waits or is in flight."""
        return any(entry.waiting or entry.in_flight for entry in self.entries.values())


@dataclass(slots=True)
class DemandBook:
    lifetime: float
    _gateways: dict[str, _Gateway] = field(default_factory=dict)
    _by_model: dict[str, set[str]] = field(default_factory=dict)
    _returning: dict[str, float] = field(default_factory=dict)
    """Until when a model's place is kept for clients that were told to come back: said once, and true although the gateway goes."""

    def put(self, report: GatewayReport, now: float) -> set[str]:
        """The models whose demand may be another now."""
        name = report.key
        old = self._gateways.get(name)
        if old is not None and old.uid == report.metadata.uid and report.spec.sequence <= old.sequence:
            return set()
        fresh = _Gateway(report.metadata.uid, report.spec.sequence, now)
        for model in report.spec.models:
            if model.returning_seconds:
                until = now + model.returning_seconds
                former = self._returning.get(model.name, 0.0)
                self._returning[model.name] = former if abs(until - former) <= SAME_WAITER else max(until, former)
            fresh.entries[model.name] = _entry(model, old.entries.get(model.name) if old and not old.expired else None, now)
        touched = self._forget(name) | fresh.entries.keys()
        self._gateways[name] = fresh
        for key in fresh.entries:
            self._by_model.setdefault(key, set()).add(name)
        return touched

    def remove(self, name: str) -> set[str]:
        return self._forget(name)

    def expire(self, now: float) -> set[str]:
        """Reports that should have been renewed and were not: their models."""
        touched: set[str] = set()
        for gateway in self._gateways.values():
            if not gateway.expired and gateway.active and now >= gateway.changed + self.lifetime:
                gateway.expired = True
                touched |= gateway.entries.keys()
        for model in [model for model, until in self._returning.items() if until <= now]:
            del self._returning[model]
            touched.add(model)
        return touched

    def next_expiry(self) -> float | None:
        times = [it.changed + self.lifetime for it in self._gateways.values() if not it.expired and it.active]
        times += self._returning.values()
        return min(times) if times else None

    def demand(self, model: str, acknowledged: tuple[int, str, str] | None) -> Demand:
        waiting = in_flight = 0
        oldest: float | None = None
        last_used = 0.0
        wish: tuple[int, str, str] | None = None
        for name in self._by_model.get(model, ()):
            gateway = self._gateways[name]
            entry = gateway.entries[model]
            last_used = max(last_used, entry.last_used)
            if gateway.expired:
                continue
            waiting += entry.waiting
            in_flight += entry.in_flight
            if entry.oldest is not None:
                oldest = entry.oldest if oldest is None else min(oldest, entry.oldest)
            if entry.wish and (acknowledged is None or entry.wish[0] > acknowledged[0]) and (wish is None or entry.wish[0] > wish[0]):
                wish = (*entry.wish, name)
        return Demand(
            waiting=waiting,
            oldest=oldest,
            in_flight=in_flight,
            last_used=last_used,
            wish=wish[1] if wish else "",
            wish_id=f"{wish[2]}#{wish[0]}" if wish else "",
            returning_until=self._returning.get(model),
        )

    def _forget(self, name: str) -> set[str]:
        old = self._gateways.pop(name, None)
        if old is None:
            return set()
        for key in old.entries:
            self._by_model[key].discard(name)
            if not self._by_model[key]:
                del self._by_model[key]
        return set(old.entries)


def _entry(model: ReportedModel, former: _Entry | None, now: float) -> _Entry:
    oldest: float | None = None
    if model.waiting:
        oldest = now - model.oldest_wait_seconds
        if former is not None and former.oldest is not None and abs(former.oldest - oldest) <= SAME_WAITER:
            oldest = former.oldest
    return _Entry(
        waiting=model.waiting,
        oldest=oldest,
        in_flight=model.in_flight,
        last_used=model.last_used.timestamp() if model.last_used else 0.0,
        wish=(model.wish.id, model.wish.action) if model.wish else None,
    )
