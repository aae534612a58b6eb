"""`decide(snapshot, now) -> Plan`: the one decision. Pure; see the package.

Its steps are the order of what matters: what must end, what is not known yet, the queue, and what is idle.
"""

from __future__ import annotations

from itertools import chain

from corral.domain import explain, reasons
from corral.domain.draft import Draft
from corral.domain.eviction import Purpose
from corral.domain.fairness import queue
from corral.domain.fit import candidates, refused_by_pool
from corral.domain.index import to_estimate
from corral.domain.lifecycle import clear_away, end_orphans, retire
from corral.domain.model import Model
from corral.domain.placement import place, promise
from corral.domain.places import backing_off
from corral.domain.plan import Estimate, Explanation, Plan
from corral.domain.rollout import finish, roll
from corral.domain.snapshot import Snapshot

MOST_ESTIMATES = 4  # at once: each is a Job


def decide(snapshot: Snapshot, now: float) -> Plan:
    """Say what to do next, in order, and why. `now`: seconds since the epoch.

    Only models that need it are looked at; the verdict of every other is that it is at rest, as its replicas tell.
    """
    draft = Draft(snapshot, now)
    keys = snapshot.index.looks(now)
    end_orphans(draft, keys)
    models = [model for key in keys if (model := snapshot.models.get(key)) is not None and not model.deleting]
    for model in models:
        clear_away(draft, model)
    _estimate(draft)
    wants = queue(draft, [model for model in models if placeable(draft, model)])
    promise(draft, wants)
    for want in wants:
        if want.purpose is Purpose.ROLLOUT:
            roll(draft, want)
        else:
            place(draft, want)
    for model in models:
        finish(draft, model)
        retire(draft, model)
        _speak(draft, model)
    draft.wake(snapshot.index.next_due(now))
    return draft.plan()


def _estimate(draft: Draft) -> None:
    """Who has waiters comes first, then the oldest."""
    index, snapshot = draft.snapshot.index, draft.snapshot
    if not index.unknown:
        return
    left = MOST_ESTIMATES - len(index.estimating)
    asked = [
        key for key, demand in snapshot.demand.items() if demand.waiting and (model := snapshot.models.get(key)) is not None and to_estimate(model)
    ]
    asked.sort(key=lambda key: (snapshot.models[key].created, key))
    seen = set(asked)
    for key in chain(asked, (key for _, key in index.unknown if key not in seen)):
        if left <= 0:
            return
        model = snapshot.models[key]
        if model.estimate_after is not None and model.estimate_after > draft.now:
            draft.wake(model.estimate_after)
            continue
        left -= 1
        draft.act(Estimate(key, reasons.ESTIMATING, f"{key}: the memory that it needs is not known yet."))


def placeable(draft: Draft, model: Model) -> bool:
    """Whether it may stand in the queue; says why not."""
    if model.blocked is not None:
        draft.say(model, Explanation(model.blocked.reason, model.blocked.message), stalled=True)
        return False
    refused = refused_by_pool(model, draft.snapshot.pools)
    if refused is not None:
        draft.say(model, Explanation(*refused), stalled=True)
        return False
    if model.footprint is None:
        draft.say(model, Explanation(reasons.ESTIMATING, "The memory that it needs is being found out."))
        return False
    if model.key in draft.snapshot.index.unfit:
        devices = [device for _, device in candidates(draft.snapshot, model)]
        if devices:
            draft.say(model, explain.does_not_fit(model, devices), stalled=True)
        else:
            chosen = ", ".join(f"{name}={value}" for name, value in sorted(model.node_selector.items()))
            text = f"Pool {model.pool} has no device" + (f" on a node with {chosen}." if chosen else ".")
            draft.say(model, Explanation(reasons.NO_DEVICES, text), stalled=True)
        return False
    if backing_off(draft, model, ""):
        everywhere = max((each for each in model.backoff if not each.node), key=lambda each: each.until)
        draft.wake(everywhere.until)
        explain.backing_off(draft, model, [everywhere])
        return False
    for each in model.backoff:
        draft.wake(each.until)
    return True


def _speak(draft: Draft, model: Model) -> None:
    """Whoever got no word yet is told what its replicas tell."""
    if model.key not in draft.verdicts:
        draft.say(model, draft.standing(model).rest)
