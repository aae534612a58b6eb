"""Who wants a replica, and in which order they are looked at: by priority, a waiter before a floor, then by how long the oldest request has waited.

It owns the place in the queue and must never look at devices.
"""

from __future__ import annotations

from collections.abc import Iterable

from corral.domain import reasons
from corral.domain.draft import Draft
from corral.domain.eviction import Purpose
from corral.domain.model import Demand, Model
from corral.domain.placement import Want

NO_DEMAND = Demand()
KEPT_PLACE = 60.0  # a place is kept this long after a hold timed out when no gateway says how long: twice a Retry-After of 30 s
SAME_ARRIVAL = 2.0  # gateways report waits in whole seconds: two arrivals this close are the same


def demand_of(draft: Draft, model: Model) -> Demand:
    return draft.snapshot.demand.get(model.key, NO_DEMAND)


def queue_place(draft: Draft, model: Model) -> tuple[float | None, float | None]:
    """Since when the model's place in the queue counts, and until when it is kept although nobody waits."""
    now = draft.now
    demand = demand_of(draft, model)
    since, until = model.queue_since, model.queue_until
    oldest = (demand.oldest if demand.oldest is not None else now) if demand.waiting else None
    if since is not None and oldest is not None and abs(oldest - since) <= SAME_ARRIVAL:
        oldest = since
    if since is not None and demand.returning_until is not None and demand.returning_until > now:
        until = demand.returning_until
    elif since is not None and until is None and oldest != since and now - since >= draft.pool(model).hold_timeout - SAME_ARRIVAL:
        until = now + KEPT_PLACE  # it did not leave, its hold was over
    kept = since is not None and until is not None and until > now
    if oldest is not None:
        return (min(oldest, since), until) if kept and since is not None else (oldest, None)
    if demand.wish == "Load":
        return (since if since is not None else now), None
    return (since, until) if kept else (None, None)


def queue(draft: Draft, models: Iterable[Model]) -> list[Want]:
    wants: list[Want] = []
    for model in models:
        standing = draft.standing(model)
        if not standing.target and not standing.old and model.queue_since is None and model.key not in draft.snapshot.demand:
            continue  # nobody asks for it
        have = standing.have + len(standing.old)
        since, until = queue_place(draft, model) if have == 0 else (None, None)
        draft.places[model.key] = (since, until)
        draft.wake(until)
        target = standing.target
        floor = min(standing.floor, target)
        first = 0
        if have == 0 and since is not None and model.max_replicas > 0:
            demand = demand_of(draft, model)
            waiter = since if demand.waiting else None
            reason = reasons.REQUESTED if demand.waiting or demand.wish != "Load" else reasons.WISHED
            wants.append(Want(model, Purpose.WAITER, since, 1, waiter, reason))
            first = 1
        if floor > have + first:
            wants.append(Want(model, Purpose.FLOOR, model.created, floor - have - first, None, reasons.FLOOR))
        if have and target > max(have, floor):
            wants.append(Want(model, Purpose.SCALE, model.created, target - max(have, floor), None, reasons.SCALE_UP))
        if standing.old:
            count = min(max(target, len(standing.old)), max(model.max_replicas, floor)) - standing.have
            if count > 0:
                wants.append(Want(model, Purpose.ROLLOUT, model.created, count, None, reasons.REVISION_REPLACED))
    wants.sort(key=lambda want: (-want.model.priority, want.purpose, want.since, want.model.created, want.model.key))
    return wants
