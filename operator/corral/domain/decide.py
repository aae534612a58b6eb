"""`decide(snapshot, now) -> Plan`: the one decision. Pure; see the package.

Its steps are the order of what matters: what must end, what is not known yet, the queue, and what is idle.
"""

from __future__ import annotations

from corral.domain import explain, reasons
from corral.domain.draft import Draft
from corral.domain.eviction import Purpose
from corral.domain.fairness import demand_of, queue
from corral.domain.fit import candidates, fits_alone, refused_by_pool
from corral.domain.lifecycle import clear_away, end_orphans, retire
from corral.domain.model import Model
from corral.domain.placement import backing_off, place
from corral.domain.plan import Estimate, Explanation, Plan
from corral.domain.rollout import finish, roll
from corral.domain.snapshot import Snapshot

MOST_ESTIMATES = 4  # at once: each is a Job


def decide(snapshot: Snapshot, now: float) -> Plan:
    """Say what to do next, in order, and why. `now`: seconds since the epoch."""
    draft = Draft(snapshot, now)
    end_orphans(draft, sorted({*snapshot.by_model, *(key for key, model in snapshot.models.items() if model.deleting)}))
    models = [model for _, model in sorted(snapshot.models.items()) if not model.deleting]
    for model in models:
        clear_away(draft, model)
    _estimate(draft, models)
    for want in queue(draft, [model for model in models if placeable(draft, model)]):
        if want.purpose is Purpose.ROLLOUT:
            roll(draft, want)
        else:
            place(draft, want)
    for model in models:
        finish(draft, model)
        retire(draft, model)
        _speak(draft, model)
    return draft.plan()


def _estimate(draft: Draft, models: list[Model]) -> None:
    """Who has waiters comes first, then the oldest."""
    under_way = sum(1 for model in models if model.estimating)
    unknown = [model for model in models if model.footprint is None and model.blocked is None and not model.estimating]
    unknown.sort(key=lambda model: (not demand_of(draft, model).waiting, model.created, model.key))
    for model in unknown:
        if model.estimate_after is not None and model.estimate_after > draft.now:
            draft.wake(model.estimate_after)
            continue
        if under_way >= MOST_ESTIMATES:
            break
        under_way += 1
        draft.act(Estimate(model.key, reasons.ESTIMATING, f"{model.key}: the memory that it needs is not known yet."))


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
    if not fits_alone(draft.snapshot, model):
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
        draft.say(model, explain.rest_of(model, draft.snapshot.replicas_of(model.key)))
