"""Where a model that wants a replica goes: what sleeps already, where it fits now, whose eviction makes room, or what it waits for.

Called once per entry of the queue, in its order, on one tentative ledger. It must never order the queue or say who may be a victim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from corral.domain import explain, reasons
from corral.domain.draft import Draft
from corral.domain.eviction import (
    Lack,
    Prospect,
    Purpose,
    Victim,
    cheapest,
    is_wanted_asleep,
    prospect,
    unused_since,
)
from corral.domain.model import DeviceKey, DeviceKind, Model, Replica, ReplicaState
from corral.domain.places import MOST_SHOWN, Finder, Place, falls_asleep, fits_now, fits_soon, foreign_claims, lacks_of, left_over, own_place
from corral.domain.plan import Create, Delete, Evict, Explanation, Load, Next
from corral.domain.policy import policy_of
from corral.domain.policy_lru import last_use
from corral.domain.waiting import await_turns, pinned_overflow, target

CLOCK_TICK = 1.0  # Kubernetes tells the time of a creation in whole seconds


class Want(NamedTuple):
    """One entry of the queue."""

    model: Model
    purpose: Purpose
    since: float  # arrival of the oldest waiter, or the creation of the model
    missing: int = 1
    waiter: float | None = None  # what `Load.loaded_for` says
    reason: str = reasons.REQUESTED


class Option(NamedTuple):
    """A place, and the victims that it takes."""

    place: Place
    victims: tuple[Victim, ...]
    price: float

    @property
    def rank(self) -> tuple[float, int, bool, tuple[DeviceKey, ...]]:
        return self.price, sum(sum(each.freed.values()) for each in self.victims), self.place.own is None, self.place.keys


@dataclass(slots=True)
class Search:
    """What one search saw, for the explanation."""

    places: dict[tuple[DeviceKey, ...], tuple[Place, Prospect]] = field(default_factory=dict)
    squeezed: bool = False  # a place would have done but for what is promised there


def place(draft: Draft, want: Want) -> None:
    """Find room for each missing replica of one model; say what it waits for otherwise."""
    asleep, coming = draft.at_hand(want.model)
    for _ in range(want.missing):
        if not _place_one(draft, want, asleep, coming):
            return


def promise(draft: Draft, wants: Sequence[Want]) -> None:
    """Before anybody is placed: what newcomers will ask for whose pods start or download. Others had better go elsewhere."""
    for want in wants:
        for replica in draft.standing(want.model).coming:
            found = own_place(draft, want.model, want.model.footprint, replica, coming=True) if want.model.footprint is not None else None
            if found is not None:
                draft.wish(want.model.key, {key: need - replica.uses(key) for key, need in found.needs.items()})


def _place_one(draft: Draft, want: Want, asleep: list[Replica], coming: list[Replica]) -> bool:
    """True when one more replica may be looked at: this one is taken care of for now."""
    model = want.model
    footprint = model.footprint
    if footprint is None:
        return False
    own = [found for each in asleep if (found := own_place(draft, model, footprint, each)) is not None]
    committed = [each for each in own if each.own is not None and each.own.committed]
    for each in committed:
        # Left by a crash between commitment and wake: used as it is, unless somebody else was given the same bytes meanwhile.
        if fits_now(draft, model, each):
            _load(draft, want, each, asleep)
            return True
    for each in committed:
        _take_back(draft, each.own)  # type: ignore[arg-type]
        asleep.remove(each.own)  # type: ignore[arg-type]
        own.remove(each)
    ready = [each for each in own if fits_now(draft, model, each)]
    if ready:
        _load(draft, want, min(ready, key=lambda each: (left_over(draft, each), each.keys)), asleep)
        return True
    for each in own:
        if fits_soon(draft, each):
            draft.keep(each.needs, each.own)
            asleep.remove(each.own)  # type: ignore[arg-type]
            explain.evicting(draft, want.model, each.need, each.keys)
            return True
    if coming:
        replica = coming.pop(0)
        explain.coming(draft, model, replica)
        return True
    finder = Finder(draft, model, footprint)
    here = finder.free_now()
    if here:
        return _create(draft, want, min(here, key=lambda each: _score(draft, model, each)), asleep)
    handed = _handed_over(draft, model, finder)
    if handed is not None:
        draft.keep(handed.needs, None)
        explain.evicting(draft, model, handed.need, handed.keys)
        return True
    return _make_room(draft, want, own, finder, asleep)


def _handed_over(draft: Draft, model: Model, finder: Finder) -> Place | None:
    """A place that only waits for pods of another namespace to be gone which leave already: no second device is emptied meanwhile."""
    for each in finder.on(draft.handed_over()):
        claims = foreign_claims(draft, model, each)
        if claims and all(it.deleting or it.ordered == "Delete" for it in claims) and fits_soon(draft, each):
            return each
    return None


def _score(draft: Draft, model: Model, place_: Place) -> tuple[bool, bool, float, int, int, tuple[DeviceKey, ...]]:
    """The least wins: not promised to another newcomer, the file is there, best fit, spread of the model's replicas, then the key."""
    left = left_over(draft, place_)
    promised = any(draft.wished(each.key, model.key) > draft.room(each).now - place_.needs[each.key] for each in place_.devices)
    near = sum(1 for each in draft.snapshot.replicas_of(model.key) if each.node == place_.node)
    return draft.pods_left(place_.node) < 1, promised, place_.waits, left, near, place_.keys


# Actions.


def _load(draft: Draft, want: Want, place_: Place, asleep: list[Replica]) -> None:
    replica = place_.own
    assert replica is not None  # noqa: S101 - only a sleeping replica is loaded
    asleep.remove(replica)
    draft.take(place_.needs, replica)
    message = explain.load(draft, want.model, want.reason, want.waiter, place_.needs)
    draft.act(Load(want.model.key, want.reason, message, replica.id, place_.needs, place_.shares, want.waiter))
    explain.loading(draft, want.model, place_.need, place_.keys)


def _take_back(draft: Draft, replica: Replica) -> None:
    message = f"{replica.name} sleeps on a commitment for which there is no room any more: it is taken back."
    draft.act(Evict(replica.model, reasons.EVICTED, message, replica.id, "", unused_since(replica)))


def _create(draft: Draft, want: Want, place_: Place, asleep: list[Replica]) -> bool:
    """A sleeping pod on the place, or what has to happen before there can be one."""
    model = want.model
    host = next((each for each in place_.devices if each.kind is DeviceKind.HOST), None)
    if host is not None and min((room := draft.room(host)).now, room.soon) < model.residue:
        return False
    if draft.pods_left(place_.node) < 1:
        return _free_a_slot(draft, model, place_)
    pods = [each for each in draft.snapshot.replicas_of(model.key) if not each.deleting and each.ordered != "Delete"]
    if len(pods) > model.max_replicas and asleep:
        spare = min(asleep, key=lambda each: (each.last_used, each.id))
        asleep.remove(spare)
        draft.act(Delete(model.key, reasons.SCALE_DOWN, f"{spare.name}: another replica takes its place on {place_.node}.", spare.id))
    if host is not None:
        draft.take({host.key: model.residue}, None, models=0)
    draft.wish(model.key, {key: max(0, need - (model.residue if host is not None else 0)) for key, need in place_.needs.items()})
    draft.create_pod(place_.node)
    draft.claim(place_.devices, model.namespace)
    where = explain.where(place_.keys)
    draft.act(Create(model.key, want.reason, f"{model.key}: a sleeping replica on {where}.", place_.keys, model.revision))
    explain.starting(draft, model, where)
    return True


def _free_a_slot(draft: Draft, model: Model, place_: Place) -> bool:
    """The node takes no more pods: the one that slept longest and that nobody wants makes way, unless some pod leaves already."""
    there = [draft.snapshot.replicas[each] for each in sorted(draft.snapshot.by_node.get(place_.node, ()))]
    leaving = sum(1 for each in there if each.deleting or each.ordered == "Delete")
    if draft.pods_left(place_.node) + leaving < 1:
        spare = [each for each in there if each.model != model.key and _dispensable(draft, each)]
        if not spare:
            text = f"needs a pod on {place_.node}, which takes no more, and every pod of Corral there is wanted."
            draft.say(model, Explanation(reasons.POD_SLOTS, text, place_.need))
            return False
        oldest = min(spare, key=lambda each: (each.last_used, each.id))
        message = f"{oldest.name} sleeps, and {place_.node} takes no more pods: {model.key} needs one."
        draft.act(Delete(oldest.model, reasons.POD_SLOTS, message, oldest.id))
    draft.create_pod(place_.node)
    explain.starting(draft, model, explain.where(place_.keys))
    return True


def _dispensable(draft: Draft, replica: Replica) -> bool:
    if replica.state not in (ReplicaState.SLEEPING, ReplicaState.FAILED) or replica.committed or not draft.free_to_act(replica):
        return False
    owner = draft.snapshot.models.get(replica.model)
    return owner is None or not is_wanted_asleep(draft, owner)


def _evict(draft: Draft, want: Want, option: Option) -> None:
    timeout = draft.pool(want.model).drain_timeout
    for victim in option.victims:
        deadline = draft.now + timeout if victim.busy else None
        message = explain.eviction(want.model, option.place.need, option.place.keys, victim)
        replica = victim.replica
        if victim.deleted:
            draft.act(Delete(replica.model, victim.reason, message, replica.id, deadline))
        else:
            draft.act(Evict(replica.model, victim.reason, message, replica.id, want.model.key, unused_since(replica), deadline))


# Making room.


def _make_room(draft: Draft, want: Want, own: list[Place], finder: Finder, asleep: list[Replica]) -> bool:
    model = want.model
    if want.purpose is Purpose.ROLLOUT:
        # The new revision never costs another model its place: it sleeps beside the old one and takes over from it.
        there = {key for each in draft.standing(model).old for key in each.devices}
        beside = [] if own else finder.on(sorted(there))
        return bool(beside) and _create(draft, want, beside[0], asleep)
    pool = draft.pool(model)
    search = Search()
    # A pod was made in this very wait: whoever then also took what others are promised would send them on to the next place, pod after pod.
    modest = any(_made_for(want, each) for each in asleep)
    option = _chosen_before(draft, want, own, search)
    if option is None:
        option = _best(draft, want, own, finder, search, end_turns=False, beside_promises=draft.has_wishes)
    if option is None and not modest and finder.promised:
        return _create(draft, want, min(finder.promised, key=lambda each: _score(draft, model, each)), asleep)
    if option is None and not modest and (finder.squeezed or search.squeezed):
        option = _best(draft, want, own, finder, search, end_turns=False, beside_promises=False)
    if option is None and want.purpose is Purpose.WAITER:
        if draft.now - want.since >= pool.max_wait:
            option = ended_turn(draft, want, own, finder, modest=modest)
        else:
            draft.wake(want.since + pool.max_wait)
    if option is None:
        _look_around(draft, want, finder, search)
        _wait(draft, want, finder, search, asleep)
        return False
    if option.place.own is not None:
        _evict(draft, want, option)
        draft.keep(option.place.needs, option.place.own)
        asleep.remove(option.place.own)
        explain.evicting(draft, model, option.place.need, option.place.keys)
        return True
    return _prepare(draft, want, option, asleep)


def _prepare(draft: Draft, want: Want, option: Option, asleep: list[Replica]) -> bool:
    """A new pod comes first: nobody is evicted for a file that is not there. Only what keeps the pod itself from starting has to go before."""
    place_ = option.place
    claims = {each.id for each in foreign_claims(draft, want.model, place_)}
    first = [each for each in option.victims if each.replica.id in claims]
    host = next((each for each in place_.devices if each.kind is DeviceKind.HOST), None)
    if not first and host is not None:
        room = draft.room(host)
        short = want.model.residue - min(room.now, room.soon)
        if short > 0 and room.soon < want.model.residue:
            first = cheapest({host.key: Lack(want.model.residue - room.soon, 0)}, option.victims) or list(option.victims)
        elif short > 0:
            explain.evicting(draft, want.model, place_.need, place_.keys)
            return True
    if first:
        _evict(draft, want, Option(place_, tuple(first), option.price))
        explain.evicting(draft, want.model, place_.need, place_.keys)
        return True
    return _create(draft, want, place_, asleep)


def _made_for(want: Want, replica: Replica) -> bool:
    """Whether the pod was started in the wait that goes on."""
    return replica.created >= want.since - CLOCK_TICK


def _chosen_before(draft: Draft, want: Want, own: Sequence[Place], search: Search) -> Option | None:
    """Where a pod was made in this very wait, as long as nobody has used since what makes way there: who always went to the place that is best by now
    would start pod after pod.
    """
    options = []
    for each in own:
        if each.own is None or not _made_for(want, each.own):
            continue
        found = _option(draft, want, each, search, end_turns=False, beside_promises=False)
        if found is not None and all(last_use(it.replica) <= each.own.created + CLOCK_TICK for it in found.victims):
            options.append(found)
    return min(options, key=lambda it: it.rank, default=None)


def ended_turn(draft: Draft, want: Want, own: Sequence[Place], finder: Finder, *, modest: bool) -> Option | None:
    """The same for whoever waited so long that turns end for it."""
    search = Search()
    found = _best(draft, want, own, finder, search, end_turns=True, beside_promises=draft.has_wishes)
    if found is None and not modest and (finder.squeezed or search.squeezed):
        found = _best(draft, want, own, finder, search, end_turns=True, beside_promises=False)
    return found


def _best(draft: Draft, want: Want, own: Sequence[Place], finder: Finder, search: Search, *, end_turns: bool, beside_promises: bool) -> Option | None:
    """The cheapest; `beside_promises`: leaving alone what newcomers are promised that are still on their way."""
    policy = policy_of(draft.pool(want.model).policy)
    best: Option | None = None
    fresh = finder.evictable(end_turns=end_turns, beside_promises=beside_promises)
    for bound, each in chain(((float("-inf"), place_) for place_ in own), fresh):
        if best is not None and policy.least_price(bound) >= best.price:
            break
        found = _option(draft, want, each, search, end_turns=end_turns, beside_promises=beside_promises)
        if found is not None and (best is None or found.rank < best.rank):
            best = found
    return best


def _look_around(draft: Draft, want: Want, finder: Finder, search: Search) -> None:
    """Nobody can make way: the places that come closest belong to the explanation, and one of them is waited for."""
    for each in finder.nearest():
        if len(search.places) >= MOST_SHOWN:
            return
        if each.keys not in search.places:
            search.places[each.keys] = (each, prospect(draft, want.model, each.keys, want.purpose))


def _option(draft: Draft, want: Want, place_: Place, search: Search, *, end_turns: bool, beside_promises: bool) -> Option | None:
    policy = policy_of(draft.pool(want.model).policy)
    seen = prospect(draft, want.model, place_.keys, want.purpose, end_turns=end_turns)
    search.places[place_.keys] = (place_, seen)
    others = want.model.key if beside_promises and place_.own is None else ""
    lacks = lacks_of(draft, place_, beside_promises_to_others_than=others)
    claims = {each.id for each in foreign_claims(draft, want.model, place_)}
    must = [each for each in seen.victims if each.replica.id in claims]
    if len(must) < len(claims):
        return None
    chosen = cheapest(lacks, seen.victims, must)
    if chosen is None and any(each.kind is DeviceKind.HOST for each in place_.devices):
        seen = prospect(draft, want.model, place_.keys, want.purpose, end_turns=end_turns, delete=True)
        chosen = cheapest(lacks, seen.victims, must)
    if chosen is None:
        search.squeezed |= beside_promises and any(draft.wished(key, want.model.key) for key in place_.keys)
        return None
    price = policy.price([each.worth for each in chosen], place_.waits, draft.now)
    return Option(place_, tuple(chosen), price)


# Waiting.


def _wait(draft: Draft, want: Want, finder: Finder, search: Search, asleep: list[Replica]) -> None:
    """Nothing can make way now. Choose where it will, so that nobody behind takes that room, and say what is in the way everywhere."""
    model = want.model
    backoffs = [each for each in model.backoff if each.until > draft.now]
    if backoffs and not search.places:
        explain.backing_off(draft, model, backoffs)
        return
    if model.pinned and pinned_overflow(draft, finder):
        explain.pinned_overflow(draft, model, list(search.places.values()))
        return
    likely = target(draft, want, search)
    then: Next | None = None
    reason = reasons.WAITING_FOR_MEMORY
    if likely is not None and want.purpose is Purpose.WAITER:
        place_, seen = likely
        then, reason = await_turns(draft, want, seen.refused)
        kept = place_.needs
        pod = bool(asleep) or place_.own is not None or any(falls_asleep(draft, each) for each in draft.snapshot.replicas_of(model.key))
        if not pod and not foreign_claims(draft, model, place_) and _create(draft, want, place_, asleep):
            kept = {each.key: place_.needs[each.key] - (model.residue if each.kind is DeviceKind.HOST else 0) for each in place_.devices}
        draft.keep(kept, place_.own)
    explain.waiting(draft, model, reason, list(search.places.values()), then, finder.count)
