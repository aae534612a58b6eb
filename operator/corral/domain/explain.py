"""Why a model is where it is, in numbers, and in words once somebody reads them.

It renders what the decision found and must never find anything itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from corral.domain import reasons
from corral.domain.fit import candidates, device_closed, node_closed
from corral.domain.footprint import layers_of, need_on
from corral.domain.model import Backoff, Device, DeviceKey, DeviceKind, Model, Replica, ReplicaState
from corral.domain.plan import Candidate, Explanation, Next, Refusal, Words
from corral.domain.units import clock, plural, quantity

if TYPE_CHECKING:
    from corral.domain.draft import Draft
    from corral.domain.eviction import Prospect, Victim
    from corral.domain.places import Place

MOST_CANDIDATES = 8
MOST_REFUSED = 6
NO_SLOT = "no pod slot, or bound by another replica of it"

REFUSED = {
    reasons.PINNED: "pinned",
    reasons.HIGHER_PRIORITY: "of higher priority",
    reasons.YOUNG: "young",
    reasons.JUST_LOADED: "just loaded for a waiter",
    reasons.WANTED: "wanted by its own waiters",
    reasons.LOADING: "loading",
    reasons.LEAVING: "leaving",
    reasons.STARTING: "starting",
    reasons.FLOOR_OF_SAME_PRIORITY: "a floor too",
    reasons.SAME_PRIORITY: "of the same priority",
    reasons.UNREACHABLE: "unreachable",
}
CLOSED = {
    reasons.NOT_READY: "node not ready",
    reasons.CORDONED: "node cordoned",
    reasons.TAINTED: "tainted",
    reasons.VANISHED: "absent",
    reasons.FOREIGN_CLAIM: "claimed by others",
    reasons.BACKING_OFF: "backing off",
    reasons.UNREACHABLE: "its pod there does not answer",
}


def where(keys: Iterable[DeviceKey]) -> str:
    """`gpu-1/GPU-1111`; several devices of one node as `gpu-1/GPU-1111+GPU-2222`; host memory as the node alone."""
    found = list(keys)
    if len(found) == 1:
        return str(found[0])
    return f"{found[0].node}/{'+'.join(key.id for key in found)}" if found else "nowhere"


def refused_text(refusal: Refusal) -> str:
    name = refusal.model.rpartition("/")[2]
    if refusal.reason == reasons.IN_FLIGHT:
        return f"{name} in flight ({refusal.in_flight})"
    if refusal.reason == reasons.IN_ITS_TURN:
        busy = f" ({refusal.in_flight})" if refusal.in_flight else ""
        return f"{name} in its turn{busy}" + (f" until {clock(refusal.until)}" if refusal.until is not None else "")
    return f"{name} {REFUSED.get(refusal.reason, refusal.reason)}" + (f" until {clock(refusal.until)}" if refusal.until is not None else "")


def candidate_of(draft: Draft, place: Place, seen: Prospect) -> Candidate:
    capacity = margin = free = 0
    for device in place.devices:
        capacity += device.capacity
        margin += device.margin
        free += draft.room(device, place.own).now
    return Candidate(place.keys, capacity, margin, free, place.need, seen.freeable, refused=seen.refused)


def line(candidate: Candidate, capacities: Sequence[int]) -> str:
    """One place: `gpu-1/GPU-1: 24Gi, free 3.1Gi; could free 20.9Gi: qwen in flight (2), mistral young until 10:42:11Z.`"""
    size = " + ".join(quantity(each) for each in capacities)
    text = f"{where(candidate.devices)}: {size}, free {quantity(max(0, candidate.free))}"
    if candidate.closed:
        return f"{text}; {CLOSED.get(candidate.closed, candidate.closed)}."
    text += f"; could free {quantity(candidate.freeable)}" if candidate.freeable else ""
    if candidate.refused:
        shown = ", ".join(refused_text(each) for each in candidate.refused[:MOST_REFUSED])
        left = len(candidate.refused) - MOST_REFUSED
        text += f"; not: {shown}" + (f" and {left} more" if left > 0 else "")
    return text + "."


def needs_text(need: int, devices: int, layers: int, max_devices: int) -> str:
    if max_devices > 1 and devices > 1:
        return f"needs {quantity(need)} on one node ({layers} layers over at most {max_devices} devices)"
    return f"needs {quantity(need)} on one device"


def margins_text(margins: Iterable[int]) -> str:
    found = sorted(set(margins))
    if not found:
        return ""
    if len(found) == 1:
        return f"margin {quantity(found[0])} per device"
    return f"margin {quantity(found[0])} to {quantity(found[-1])} per device"


def waiting(draft: Draft, model: Model, reason: str, places: Sequence[tuple[Place, Prospect]], then: Next | None, total: int = 0) -> None:
    """The whole arithmetic of a model that found no room: the places that come closest first. `total`: how many are big enough."""
    ranked = sorted(places, key=lambda entry: (-(draft.room(entry[0].devices[0], entry[0].own).soon + entry[1].freeable), entry[0].keys))
    ranked = ranked[:MOST_CANDIDATES]
    shown = tuple(candidate_of(draft, place, seen) for place, seen in ranked)
    more = max(0, max(total, len(places)) - len(shown))
    if not shown:
        draft.say(model, Explanation(reason, no_place(draft, model), need_of(draft, model)))
        return
    layers = layers_of(model.footprint) if model.footprint is not None else 0
    words = Words(waiting_text, (shown, tuple([place.devices for place, _ in ranked]), layers, model.max_devices, more, then))
    draft.say(model, Explanation(reason, words, shown[0].need, shown, more, then))


def waiting_text(shown: Sequence[Candidate], devices: Sequence[Sequence[Device]], layers: int, max_devices: int, more: int, then: Next | None) -> str:
    first = needs_text(shown[0].need, len(shown[0].devices), layers, max_devices)
    lines = [f"{first}; {margins_text(device.margin for each in devices for device in each)}."]
    lines += [line(each, [device.capacity for device in there]) for each, there in zip(shown, devices, strict=True)]
    if more:
        lines.append(f"{plural(more, 'more place')} left out.")
    if then is not None:
        lines.append(f"Next: {then.what} at {clock(then.at)}.")
    return "\n".join(lines)


def pinned_overflow(draft: Draft, model: Model, places: Sequence[tuple[Place, Prospect]]) -> None:
    """It is pinned, and so is everything that is in its way."""
    waiting(draft, model, reasons.PINNED_DOES_NOT_FIT, places, None)
    told = draft.verdicts[model.key].explanation
    message = f"Pinned models alone overflow pool {model.pool}: {told.message}"
    draft.say(model, Explanation(told.reason, message, told.need, told.candidates, told.more), stalled=True)


def need_of(draft: Draft, model: Model) -> int:
    """What it needs where it would go: the largest device of its pool says of which kind those are."""
    if model.footprint is None:
        return 0
    largest = next(draft.snapshot.index.pool(model.pool).usable.largest(), None)
    return need_on(model.footprint, draft.snapshot.devices[largest].kind if largest is not None else DeviceKind.GPU)


def own_need(model: Model) -> int:
    """Before a place is weighed: without what a GPU takes on top."""
    return need_on(model.footprint, DeviceKind.HOST) if model.footprint is not None else 0


def no_place(draft: Draft, model: Model) -> str:
    """Big enough devices exist, and none is open."""
    silent = {key for each in draft.snapshot.replicas_of(model.key) if not each.reachable for key in each.devices}
    closed: Counter[str] = Counter()
    for node, device in candidates(draft.snapshot, model):
        closed[node_closed(model, node) or device_closed(device) or (reasons.UNREACHABLE if device.key in silent else NO_SLOT)] += 1
    text = ", ".join(f"{CLOSED.get(why, why)} ({plural(count, 'device')})" for why, count in sorted(closed.items()))
    return f"needs {quantity(need_of(draft, model))} on one device; no device is open to it now: {text or 'there is none'}."


def does_not_fit(model: Model, devices: Sequence[Device]) -> Explanation:
    """It can never fit: the largest device, the need and the margin."""
    footprint = model.footprint
    assert footprint is not None  # noqa: S101 - only a known footprint can be too large
    largest = max(devices, key=lambda each: (max(each.capacity, each.largest) - each.margin, each.key))
    need = need_on(footprint, largest.kind)
    capacity = max(largest.capacity, largest.largest)
    message = (
        f"needs {quantity(need)}; the largest device of pool {model.pool} is {largest.key} with {quantity(capacity)}, "
        f"of which {quantity(largest.margin)} stay free as margin: {quantity(need - capacity + largest.margin)} too little."
    )
    if model.max_devices > 1:
        message += f" Nor does it fit over {model.max_devices} devices of one node."
    candidate = Candidate((largest.key,), capacity, largest.margin, capacity - largest.margin, need)
    return Explanation(reasons.DOES_NOT_FIT, message, need, (candidate,))


# What is under way.


def evicting(draft: Draft, model: Model, need: int, keys: Sequence[DeviceKey]) -> None:
    draft.say(model, Explanation(reasons.EVICTING, Words(_evicting_text, (need, keys)), need))


def _evicting_text(need: int, keys: Sequence[DeviceKey]) -> str:
    return f"Room for {quantity(need)} is being made on {where(keys)}."


def loading(draft: Draft, model: Model, need: int, keys: Sequence[DeviceKey]) -> None:
    draft.say(model, Explanation(reasons.LOADING, Words(_loading_text, (need, keys)), need))


def _loading_text(need: int, keys: Sequence[DeviceKey]) -> str:
    return f"Loads {quantity(need)} on {where(keys)}."


def starting(draft: Draft, model: Model, place: str) -> None:
    draft.say(model, Explanation(reasons.STARTING, f"A pod is started on {place}.", need_of(draft, model)))


def backing_off(draft: Draft, model: Model, backoffs: Sequence[Backoff]) -> None:
    """Wherever it would go it failed lately: the first that is tried again speaks."""
    first = min(backoffs, key=lambda each: (each.until, each.node))
    place = f" on {first.node}" if first.node else ""
    text = f"{first.message} Tried again{place} at {clock(first.until)} (failure {first.failures})."
    draft.say(model, Explanation(reasons.BACKING_OFF, text, need_of(draft, model), next=Next(first.until, "the load is tried again")))


def coming(draft: Draft, model: Model, replica: Replica) -> None:
    draft.say(model, rest_of(model, [replica]))


FURTHEST = (
    (ReplicaState.LOADED, reasons.LOADED, "Loaded on"),
    (ReplicaState.LOADING, reasons.LOADING, "Loads on"),
    (ReplicaState.DRAINING, reasons.DRAINING, "Finishes what is in flight on"),
    (ReplicaState.SLEEPING, reasons.SLEEPING, "Asleep on"),
    (ReplicaState.DOWNLOADING, reasons.DOWNLOADING, "Downloads on"),
    (ReplicaState.PENDING, reasons.STARTING, "Starts on"),
)


AT_REST = Explanation(reasons.IDLE, "At rest; a request wakes it.")


def rest_of(model: Model, replicas: Sequence[Replica]) -> Explanation:
    """What the replicas alone tell: the furthest one speaks for the model."""
    need = max((sum(each.committed.values()) for each in replicas), default=0) or own_need(model)
    states = {each.state for each in replicas}
    for state, reason, words in FURTHEST:
        if state in states:
            return Explanation(reason, Words(_rest_text, (words, tuple(each.devices for each in replicas if each.state is state))), need)
    failed = [each for each in replicas if each.state is ReplicaState.FAILED]
    if failed:
        error = failed[0].error
        return Explanation(error.reason if error else reasons.FAILED, error.message if error else f"{failed[0].name} failed.", need)
    return AT_REST._replace(need=own_need(model))


def _rest_text(words: str, places: Sequence[Sequence[DeviceKey]]) -> str:
    return f"{words} {', '.join(where(keys) for keys in places)}."


def load(draft: Draft, model: Model, reason: str, waiter: float | None, needs: Mapping[DeviceKey, int]) -> str:
    parts = ", ".join(f"{quantity(need)} on {key}" for key, need in needs.items())
    why = f"waited for since {clock(waiter)}" if waiter is not None else reason
    free = ", ".join(f"{quantity(max(0, draft.room(draft.snapshot.devices[key]).now))} stay free" for key in list(needs)[:1])
    return f"{model.key}: commits {parts} ({why}; {free})."


def eviction(newcomer: Model, need: int, keys: Sequence[DeviceKey], victim: Victim) -> str:
    replica = victim.replica
    used = f"unused since {clock(replica.last_used)}" if replica.last_used else "never used"
    if victim.busy:
        used = f"its turn is over, {replica.in_flight + replica.queued} in flight"
    elif not replica.resident:
        used = f"asleep, {used}"
    return f"{replica.model} makes room for {newcomer.key}, which needs {quantity(need)} on {where(keys)}: {used}."
