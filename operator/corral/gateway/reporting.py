"""When a report is due and which models are in it. Pure: time is passed in.

At once when a cold model gets its first waiter or has lost its last, when the first request joins a load, and for a wish; at most once a second when
something else changed; every five seconds while anything waits or is in flight; never at rest.
"""

from __future__ import annotations

INTERVAL = 1.0
RENEWAL = 5.0


class ReportSchedule:
    """Remembers what changed since the last report, and when the next may go."""

    def __init__(self, first_sequence: int = 1) -> None:
        self.changed: set[str] = set()
        self.sequence = first_sequence - 1
        self._due: float | None = None
        self._last = float("-inf")

    def mark(self, key: str, now: float, *, urgent: bool = False) -> bool:
        """This model's demand is not what the last report said. Whether the next report is due earlier than before."""
        self.changed.add(key)
        due = now if urgent or now > self._last + INTERVAL else self._last + INTERVAL
        if self._due is None or due < self._due:
            self._due = due
            return True
        return False

    def due_at(self, *, active: bool) -> float | None:
        """When the next report goes out, if nothing else happens."""
        if not active or self._last == float("-inf"):
            return self._due
        renewal = self._last + RENEWAL
        return renewal if self._due is None else min(self._due, renewal)

    def take(self, now: float, *, active: bool) -> set[str] | None:
        """The changed models when a report is due now, else None. Taking it starts the next interval."""
        due = self.due_at(active=active)
        if due is None or due > now:
            return None
        changed, self.changed = self.changed, set()
        self._due = None
        self._last = now
        self.sequence += 1
        return changed

    def lost(self, keys: set[str], now: float) -> None:
        """A report did not arrive: what it said is due again."""
        self.changed |= keys
        self._last = now
        self._due = now + INTERVAL
