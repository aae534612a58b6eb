"""Who may be a victim, and the cheapest set of them on one node whose release makes a newcomer fit.

It must never look for places (that is `placement`) nor decide that a turn is over by itself: it is told whether turns may end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from corral.domain import reasons
from corral.domain.draft import Draft
from corral.domain.model import DeviceKey, Model, Replica, ReplicaState
from corral.domain.plan import Refusal
from corral.domain.policy import EvictionPolicy, policy_of
from corral.domain.standing import floor_of

PASSING = frozenset(
    {reasons.IN_FLIGHT, reasons.WANTED, reasons.IN_ITS_TURN, reasons.YOUNG, reasons.JUST_LOADED, reasons.LOADING, reasons.LEAVING, reasons.STARTING}
)  # refusals that end by themselves
OF_TURNS = frozenset({reasons.IN_FLIGHT, reasons.WANTED, reasons.IN_ITS_TURN})
SERVE_GRACE = 5.0  # a waiter that left the queue may be on its way to the replica that was loaded for it


class Purpose(IntEnum):
    """Why a model wants a replica, in the order in which they are looked at."""

    WAITER = 0
    FLOOR = 1
    SCALE = 2
    ROLLOUT = 3


class Victim(NamedTuple):
    replica: Replica
    freed: Mapping[DeviceKey, int]
    worth: float
    deleted: bool  # its pod has to go, sleeping is not enough
    busy: bool = False  # its turn is over
    reason: str = reasons.EVICTED


class Prospect(NamedTuple):
    """What could be freed on some devices for one newcomer, and what not."""

    victims: tuple[Victim, ...]  # the least worth first
    refused: tuple[Refusal, ...]

    @property
    def freeable(self) -> int:
        return sum(sum(victim.freed.values()) for victim in self.victims)


class Lack(NamedTuple):
    """What is missing on one device: bytes, and places for models."""

    size: int
    models: int


def turn_start(replica: Replica) -> float | None:
    """Since when the turn runs; None when it has none. One of an earlier load does not count."""
    if replica.turn_started is None or (replica.loaded_at is not None and replica.turn_started < replica.loaded_at):
        return None
    return replica.turn_started


def unused_since(replica: Replica) -> float:
    """A drain is refused when a request was admitted at or after this: just behind the last one that the plan knows of."""
    return replica.last_used + 0.001


def refusal(draft: Draft, replica: Replica, newcomer: Model, purpose: Purpose, *, end_turns: bool) -> Refusal | None:
    """Why this replica is not a victim for the newcomer; None when it is one. The order of the rules is the order of what a reader would ask."""
    model = draft.snapshot.models.get(replica.model)
    if not draft.free_to_act(replica):
        leaving = replica.deleting or replica.ordered in ("Evict", "Delete") or replica.id in draft.acted
        return _refuse(replica, reasons.LEAVING if leaving else reasons.LOADING)
    if replica.state is ReplicaState.LOADING:
        return _refuse(replica, reasons.LOADING)
    if not replica.reachable:
        return _refuse(replica, reasons.UNREACHABLE)
    if model is None:
        return None
    if model.pinned:
        return _refuse(replica, reasons.PINNED)
    if model.priority > newcomer.priority:
        return _refuse(replica, reasons.HIGHER_PRIORITY)
    if not replica.resident:
        return _wanted_asleep(draft, replica, model)
    if purpose is not Purpose.WAITER and not (newcomer.pinned and purpose is Purpose.FLOOR):
        # What nobody waits for takes from less important models only: else two could push each other out for ever.
        if is_floor(draft, model):
            return _refuse(replica, reasons.FLOOR_OF_SAME_PRIORITY)
        if model.priority == newcomer.priority:
            return _refuse(replica, reasons.SAME_PRIORITY)
    return _in_use(draft, replica, model, end_turns=end_turns)


def is_floor(draft: Draft, model: Model) -> bool:
    """Losing one more replica would bring it below its floor."""
    return floor_of(model) > 0 and draft.standing(model).have <= floor_of(model)


def is_wanted_asleep(draft: Draft, model: Model) -> bool:
    """Somebody waits for its sleeping replicas, or its floor does."""
    demand = draft.snapshot.demand.get(model.key)
    if demand is not None and (demand.waiting or demand.wish == "Load"):
        return True
    return floor_of(model) > 0 and draft.standing(model).have < floor_of(model)


def _wanted_asleep(draft: Draft, replica: Replica, model: Model) -> Refusal | None:
    """A sleeping one is deleted for the little that it keeps, unless it is wanted."""
    if is_wanted_asleep(draft, model):
        return _refuse(replica, reasons.WANTED)
    if replica.state not in (ReplicaState.SLEEPING, ReplicaState.FAILED):
        return _refuse(replica, reasons.STARTING)
    return None


def _in_use(draft: Draft, replica: Replica, model: Model, *, end_turns: bool) -> Refusal | None:
    demand = draft.snapshot.demand.get(model.key)
    pool = draft.pool(model)
    waited_for = demand is not None and demand.waiting > 0
    loaded_at = replica.loaded_at if replica.loaded_at is not None else 0.0
    if replica.loaded_for is not None and replica.served == 0:
        if waited_for and draft.now < loaded_at + pool.hold_timeout:
            return _refuse(replica, reasons.JUST_LOADED)
        if draft.now < loaded_at + SERVE_GRACE:
            return _refuse(replica, reasons.JUST_LOADED, loaded_at + SERVE_GRACE)
    if draft.now < loaded_at + pool.min_residency:
        return _refuse(replica, reasons.YOUNG, loaded_at + pool.min_residency)
    in_flight = replica.in_flight + replica.queued
    if in_flight or waited_for:
        started = turn_start(replica)
        over = started is not None and draft.now >= started + pool.turn
        if end_turns and over:
            return None
        if end_turns:
            return Refusal(replica.id, replica.model, reasons.IN_ITS_TURN, started + pool.turn if started is not None else None, in_flight)
        return Refusal(replica.id, replica.model, reasons.IN_FLIGHT if in_flight else reasons.WANTED, None, in_flight)
    return None


def _refuse(replica: Replica, reason: str, until: float | None = None) -> Refusal:
    return Refusal(replica.id, replica.model, reason, until, replica.in_flight + replica.queued)


def prospect(
    draft: Draft, newcomer: Model, keys: tuple[DeviceKey, ...], purpose: Purpose, *, end_turns: bool = False, delete: bool = False
) -> Prospect:
    """Look at everybody on these devices. `delete`: on host memory sleeping is not enough, the pods have to go.

    What it says depends on no more of the newcomer than the key below: many that wait look at the same devices. Replicas change only by what this
    decision orders, and that is counted.
    """
    own = newcomer.key if newcomer.key in draft.snapshot.by_model else ""
    asks = (own, newcomer.namespace, newcomer.pool, newcomer.priority, newcomer.pinned, purpose)
    key = (keys, asks, end_turns, delete, len(draft.acted))
    found = draft.prospects.get(key)
    if found is None:
        found = draft.prospects[key] = _prospect(draft, newcomer, keys, purpose, end_turns=end_turns, delete=delete)
    return found


def _prospect(draft: Draft, newcomer: Model, keys: Sequence[DeviceKey], purpose: Purpose, *, end_turns: bool, delete: bool) -> Prospect:
    policy = policy_of(draft.pool(newcomer).policy)
    victims: list[Victim] = []
    refused: list[Refusal] = []
    seen: set[str] = set()
    for key in keys:
        for replica in draft.takers(key):
            if replica.model == newcomer.key:
                continue
            if len(keys) > 1:
                if replica.id in seen:
                    continue
                seen.add(replica.id)
            claimed = replica.namespace_claim and replica.namespace != newcomer.namespace
            if replica.namespace_claim and not claimed and not any(replica.uses(each) for each in keys):
                continue
            no = refusal(draft, replica, newcomer, purpose, end_turns=end_turns)
            if no is not None:
                if no.reason != reasons.LEAVING:
                    refused.append(no)
                continue
            victims.append(_victim(draft, replica, keys, policy, delete=delete or claimed, claimed=claimed))
    victims.sort(key=lambda victim: (victim.worth, victim.replica.id))
    refused.sort(key=lambda each: each.replica)
    return Prospect(tuple(victims), tuple(refused))


def _victim(draft: Draft, replica: Replica, keys: Sequence[DeviceKey], policy: EvictionPolicy, *, delete: bool, claimed: bool) -> Victim:
    model = draft.snapshot.models.get(replica.model)
    asleep = not replica.resident
    deleted = delete or (asleep and not any(replica.committed.get(key, 0) for key in keys))
    freed = {key: draft.freed(replica, key, deleted=deleted) for key in keys if replica.uses(key)}
    worth = policy.worth(replica, model, draft.now)
    if model is not None and draft.standing(model).have > max(1, floor_of(model)) and replica.resident:
        worth -= draft.now  # one of several: the model goes on without it
    reason = reasons.EVICTED
    if claimed:
        reason = reasons.CLAIM_IN_THE_WAY
    elif asleep:
        reason = reasons.RESIDUE_IN_THE_WAY
    demand = draft.snapshot.demand.get(replica.model)
    busy = bool(replica.in_flight or replica.queued or (demand is not None and demand.waiting and replica.resident))
    if busy:
        reason = reasons.TURN_ENDED
    return Victim(replica, freed, worth, deleted, busy, reason)


def cheapest(lacks: Mapping[DeviceKey, Lack], victims: Sequence[Victim], must: Sequence[Victim] = ()) -> list[Victim] | None:
    """Take victims in order until nothing is lacking, then put back, the most valuable first, whoever turns out not to be needed.

    No victim of the answer can be left out. `must` are taken whatever they free. None: all of them together are not enough.
    """
    size = {key: lack.size for key, lack in lacks.items()}
    models = {key: lack.models for key, lack in lacks.items()}
    taken: list[Victim] = []

    def lacking() -> bool:
        return any(each > 0 for each in size.values()) or any(each > 0 for each in models.values())

    def change(victim: Victim, sign: int) -> None:
        for key, freed in victim.freed.items():
            if key in size:
                size[key] -= sign * freed
                models[key] -= sign * (1 if victim.replica.committed.get(key, 0) else 0)

    for victim in must:
        change(victim, 1)
    for victim in victims:
        if not lacking():
            break
        if victim in must:
            continue
        if any((size[key] > 0 and freed > 0) or models[key] > 0 for key, freed in victim.freed.items() if key in size):
            taken.append(victim)
            change(victim, 1)
    if lacking():
        return None
    for victim in reversed(taken[:]):
        change(victim, -1)
        if lacking():
            change(victim, 1)
        else:
            taken.remove(victim)
    return [*must, *taken]
