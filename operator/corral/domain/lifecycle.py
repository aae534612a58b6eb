"""What ends without anybody needing its room: deleted models, lost nodes and devices, pods that never start, idle replicas, surplus ones.

It must never load or place anything.
"""

from __future__ import annotations

from collections.abc import Iterable

from corral.domain import reasons
from corral.domain.draft import Draft
from corral.domain.eviction import unused_since
from corral.domain.fairness import demand_of
from corral.domain.model import Model, Replica, ReplicaState
from corral.domain.plan import Delete, Evict
from corral.domain.policy_lru import last_use
from corral.domain.units import clock, seconds

SCHEDULE_TIMEOUT = 20.0  # a pod that the scheduler has not placed by then is tried elsewhere
SCALE_DOWN_AFTER = 60.0  # a replica more than wanted sleeps after this, or after sleepAfter when that is shorter


def end_orphans(draft: Draft, keys: Iterable[str]) -> None:
    """Replicas whose model is gone or going."""
    for key in keys:
        model = draft.snapshot.models.get(key)
        if model is not None and not model.deleting:
            continue
        timeout = draft.pool(model).drain_timeout if model is not None else 30.0
        for replica in draft.snapshot.replicas_of(key):
            if draft.free_to_act(replica):
                draft.act(Delete(key, reasons.DELETED, f"{key} was deleted.", replica.id, draft.now + timeout))


def clear_away(draft: Draft, model: Model) -> None:
    """Replicas that can serve nobody where they are."""
    standing = draft.standing(model)
    for replica in standing.lost:
        if draft.free_to_act(replica):
            _end_lost(draft, model, replica)
    for replica in standing.outdated:
        if draft.free_to_act(replica):
            message = f"{replica.name} is of revision {replica.revision}, the spec asks for {model.revision}."
            draft.act(Delete(model.key, reasons.REVISION_REPLACED, message, replica.id))
    for replica in standing.coming:
        if replica.scheduled or replica.unschedulable_since is None or not draft.free_to_act(replica):
            continue
        if draft.now < replica.unschedulable_since + SCHEDULE_TIMEOUT:
            draft.wake(replica.unschedulable_since + SCHEDULE_TIMEOUT)
            continue
        message = f"{replica.name} was not scheduled on {replica.node} within {seconds(SCHEDULE_TIMEOUT)}: {replica.message or 'no reason given'}"
        draft.act(Delete(model.key, reasons.UNSCHEDULABLE, message, replica.id))
        draft.comes_no_more(model, replica)
    for replica in standing.failed:
        if replica.error is not None and replica.error.reason == reasons.NO_SPACE and draft.free_to_act(replica):
            message = f"{replica.name} has no space for its file on {replica.node}: {replica.error.message}"
            draft.act(Delete(model.key, reasons.NO_SPACE, message, replica.id))
        elif replica.error is not None and replica.error.reason == reasons.BINDING_DIFFERS and draft.free_to_act(replica):
            draft.act(Delete(model.key, reasons.BINDING_DIFFERS, f"{replica.name}: {replica.error.message}", replica.id))


def _end_lost(draft: Draft, model: Model, replica: Replica) -> None:
    """A pod on a NotReady node stays: its commitments end with the node, and it may come back."""
    for key in replica.devices:
        if key.node not in draft.snapshot.nodes:
            draft.act(Delete(model.key, reasons.NODE_LOST, f"Node {key.node} is gone.", replica.id, draft.now))
            return
        device = draft.snapshot.devices.get(key)
        if device is not None and device.no_execute:
            deadline = draft.now + draft.pool(model).drain_timeout
            draft.act(Delete(model.key, reasons.TAINTED, f"{key} has a NoExecute taint.", replica.id, deadline))
            return
        if device is not None and device.vanished_since is not None:
            message = f"{key} is absent since {clock(device.vanished_since)}."
            draft.act(Delete(model.key, reasons.DEVICE_LOST, message, replica.id, draft.now + draft.pool(model).drain_timeout))
            return


def retire(draft: Draft, model: Model) -> None:
    """Put to sleep what is idle, wished away or one too many; delete pods that slept long enough; release what nobody wants."""
    standing = draft.standing(model)
    if not (standing.serving or standing.asleep or standing.failed):
        return
    demand = demand_of(draft, model)
    asked = bool(demand.waiting) or demand.wish == "Load" or draft.places.get(model.key, (None, None))[0] is not None
    surplus = standing.have - max(standing.target, 1 if asked else 0)
    for replica in sorted(standing.serving, key=lambda each: (last_use(each), each.id)):
        if not draft.free_to_act(replica) or not replica.reachable or replica.in_flight or replica.queued or model.pinned:
            continue
        if surplus > 0 and _put_to_sleep(draft, model, replica, wished=demand.wish == "Unload"):
            surplus -= 1
    _end_sleepers(draft, model, asked=asked)


def _put_to_sleep(draft: Draft, model: Model, replica: Replica, *, wished: bool) -> bool:
    standing = draft.standing(model)
    over = standing.have > max(model.max_replicas, standing.floor)
    several = standing.have > 1
    after = 0.0 if over else min(model.sleep_after, SCALE_DOWN_AFTER) if several else model.sleep_after
    at = last_use(replica) + after
    if replica.loaded_for is not None and replica.served == 0:
        at = max(at, (replica.loaded_at or 0.0) + min(after, draft.pool(model).hold_timeout))
    if wished:
        reason, message = reasons.WISHED, f"{model.key}: unloaded by hand."
    elif at > draft.now:
        draft.wake(at)
        return False
    elif several:
        reason, message = reasons.SCALE_DOWN, f"{replica.name}: one replica more than wanted, unused since {clock(last_use(replica))}."
    else:
        reason = reasons.IDLE_TIMEOUT
        message = f"{replica.name}: unused since {clock(last_use(replica))}, sleepAfter is {seconds(model.sleep_after)}."
    draft.act(Evict(model.key, reason, message, replica.id, "", unused_since(replica)))
    return True


def _end_sleepers(draft: Draft, model: Model, *, asked: bool) -> None:
    standing = draft.standing(model)
    spare = standing.have + len(standing.asleep) + len(standing.coming) - max(model.max_replicas, standing.floor, 1)
    kept = asked or standing.have < standing.floor
    sleepers = [each for each in (*standing.asleep, *standing.failed) if each.committed or standing.have or not kept]
    sleepers.sort(key=lambda each: (last_use(each), each.id))
    for replica in sleepers:
        if not draft.free_to_act(replica):
            continue
        if replica.committed:
            if replica.reachable:
                # Left by a crash: whoever could have used it here would have been told to load by now.
                message = f"{replica.name} sleeps on a commitment that nobody uses: it is taken back."
                draft.act(Evict(model.key, reasons.IDLE_TIMEOUT, message, replica.id, "", unused_since(replica)))
            continue
        if replica.state is ReplicaState.SLEEPING and spare > 0 and standing.have:
            spare -= 1
            draft.act(Delete(model.key, reasons.SCALE_DOWN, f"{replica.name} sleeps and {model.key} is loaded elsewhere.", replica.id))
            continue
        if kept:
            continue
        at = max(last_use(replica), replica.created) + model.stop_after
        if at > draft.now:
            draft.wake(at)
            continue
        message = f"{replica.name}: unused since {clock(max(last_use(replica), replica.created))}, stopAfter is {seconds(model.stop_after)}."
        draft.act(Delete(model.key, reasons.IDLE_TIMEOUT, message, replica.id))
