"""What a model waits for that finds no room: where it will be first, and the turns that end for it. It must never evict nor place anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from corral.domain import reasons
from corral.domain.draft import Draft
from corral.domain.eviction import OF_TURNS, PASSING, Prospect, turn_start
from corral.domain.model import DeviceKey
from corral.domain.places import Finder, Place, lacks_of
from corral.domain.plan import Next, Refusal

if TYPE_CHECKING:
    from corral.domain.placement import Search, Want


def pinned_overflow(draft: Draft, finder: Finder) -> bool:
    """Pinned models alone leave no room for one more, wherever it could go: waiting changes nothing."""
    snapshot = draft.snapshot
    for key in finder.ranks.usable.at_least(finder.least):
        others = [each for each in snapshot.on_device(key) if each.model != finder.model.key and each.uses(key)]
        pinned = sum(each.uses(key) for each in others if (model := snapshot.models.get(each.model)) is not None and model.pinned)
        if snapshot.devices[key].usable - pinned >= finder.least:
            return False
    return finder.single


def await_turns(draft: Draft, want: Want, refused: Sequence[Refusal]) -> tuple[Next | None, str]:
    """Start the turns that end for this waiter, and say when the first obstacle goes."""
    pool = draft.pool(want.model)
    reason = reasons.WAITING_FOR_MEMORY
    last: Next | None = None
    for each in refused:
        at, what = each.until, f"{each.model} may be evicted"
        if each.reason in OF_TURNS:
            replica = draft.snapshot.replicas[each.replica]
            started = turn_start(replica)
            if started is None:
                started = draft.turns.setdefault(replica.id, draft.now)
            at, what = max(started + pool.turn, want.since + pool.max_wait), f"the turn of {each.model} ends"
            reason = reasons.WAITING_FOR_TURN
        draft.wake(at)
        if at is not None and (last is None or at > last.at):
            last = Next(at, what)
    return last, reason


def target(draft: Draft, want: Want, search: Search) -> tuple[Place, Prospect] | None:
    """The place that is likely to be free first: nothing lasting in the way, its own sleeping replica, the earliest end, the least to move."""

    def rank(entry: tuple[Place, Prospect]) -> tuple[bool, float, float, tuple[DeviceKey, ...]]:
        place_, seen = entry
        ends = [each.until if each.until is not None else draft.now + draft.pool(want.model).turn for each in seen.refused if each.reason in PASSING]
        return place_.own is None, max(ends, default=draft.now), place_.waits, place_.keys

    possible = [entry for entry in search.places.values() if _passing(draft, *entry)]
    return min(possible, key=rank) if possible else None


def _passing(draft: Draft, place_: Place, seen: Prospect) -> bool:
    """Everything that is in the way goes by itself some time."""
    passing = [draft.snapshot.replicas[each.replica] for each in seen.refused if each.reason in PASSING]
    for key, lack in lacks_of(draft, place_).items():
        size, models = lack
        for victim in seen.victims:
            size -= victim.freed.get(key, 0)
            models -= 1 if victim.replica.committed.get(key, 0) else 0
        for replica in passing:
            size -= draft.freed(replica, key, deleted=False)
            models -= 1 if replica.committed.get(key, 0) else 0
        if size > 0 or models > 0:
            return False
    return not any(each.reason not in PASSING and draft.snapshot.replicas[each.replica].namespace_claim for each in seen.refused)
