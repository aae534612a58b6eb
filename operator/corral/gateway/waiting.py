"""The waiting room: the queues of all models together, bounded by count, bytes and time. Pure; the machine decides who enters and leaves."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Mapping

from corral.gateway import refusals
from corral.gateway.effects import Arrival, Rejection
from corral.gateway.entries import Model, Ticket
from corral.gateway.ports import ModelView


class WaitingRoom:
    """`tickets`: the machine's, by request; a deadline of one that is gone or in flight by now means nothing."""

    def __init__(self, tickets: Mapping[str, Ticket], held_bytes_max: int) -> None:
        self._tickets = tickets
        self._held_bytes_max = held_bytes_max
        self._deadlines: list[tuple[float, int, str]] = []
        self._by_key: dict[tuple[str, str], int] = {}
        self.waiting = 0
        self.held_bytes = 0

    def no_place(self, model: Model, view: ModelView, arrival: Arrival) -> Rejection | None:
        """Why there is no place for it; None when there is one."""
        if len(model.queue) >= view.hold.per_model:
            return refusals.full(view, f"{len(model.queue)} requests wait already for this model (hold.perModel {view.hold.per_model})")
        if self.waiting >= view.hold.total:
            return refusals.full(view, f"{self.waiting} requests wait already (hold.total {view.hold.total})")
        if self.held_bytes + arrival.size > self._held_bytes_max:
            return refusals.full(view, f"{self.held_bytes} bytes of requests are held already (at most {self._held_bytes_max})")
        if arrival.key and arrival.key_share < 1.0:
            share = max(1, int(view.hold.per_model * arrival.key_share))
            if self._by_key.get((model.key, arrival.key), 0) >= share:
                return refusals.full(view, f"this key's {share} places in the waiting room are taken")
        return None

    def enter(self, model: Model, ticket: Ticket) -> None:
        """At its place, which is not the last one for a request that came back."""
        bisect.insort(model.queue, ticket, key=lambda one: one.place)
        arrival = ticket.arrival
        self.waiting += 1
        self.held_bytes += arrival.size
        if arrival.key:
            slot = (model.key, arrival.key)
            self._by_key[slot] = self._by_key.get(slot, 0) + 1
        heapq.heappush(self._deadlines, (ticket.deadline, ticket.place, arrival.id))

    def leave(self, model: Model, ticket: Ticket) -> None:
        del model.queue[self.ahead(model, ticket)]
        arrival = ticket.arrival
        self.waiting -= 1
        self.held_bytes -= arrival.size
        if arrival.key:
            slot = (model.key, arrival.key)
            self._by_key[slot] -= 1
            if not self._by_key[slot]:
                del self._by_key[slot]

    @staticmethod
    def ahead(model: Model, ticket: Ticket) -> int:
        """How many wait before it."""
        return bisect.bisect_left(model.queue, ticket.place, key=lambda one: one.place)

    def next_deadline(self) -> float | None:
        while self._deadlines and self._stale(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def pop_overdue(self, now: float) -> str | None:
        """A request whose wait is over."""
        due = self.next_deadline()
        return heapq.heappop(self._deadlines)[2] if due is not None and due <= now else None

    def _stale(self, entry: tuple[float, int, str]) -> bool:
        ticket = self._tickets.get(entry[2])
        return ticket is None or ticket.replica is not None or ticket.place != entry[1]
