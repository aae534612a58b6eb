"""Replicas of an old revision: replaced beside the new one when memory allows, in its place when not.

It chooses among the model's own replicas only and never makes another model give way.
"""

from __future__ import annotations

from corral.domain import reasons
from corral.domain.draft import Draft
from corral.domain.model import Model, Replica
from corral.domain.placement import Want, place
from corral.domain.places import fits_now, own_place
from corral.domain.plan import Delete


def roll(draft: Draft, want: Want) -> None:
    """Bring the new revision up; where only the old one is in its way, the old one goes first."""
    model = want.model
    standing = draft.standing(model)
    place(draft, want)
    asleep, _ = draft.at_hand(model)
    if model.footprint is None:
        return
    for replica in asleep:
        found = own_place(draft, model, model.footprint, replica)
        if found is None or fits_now(draft, model, found):
            continue
        in_place = [each for each in standing.old if draft.free_to_act(each) and set(each.devices) & set(found.keys)]
        if in_place:
            _replace(draft, model, in_place[0], "there is no room for both")
            draft.keep(found.needs, replica)
            return


def finish(draft: Draft, model: Model) -> None:
    """Old replicas leave as new ones take over, so that what is wanted is served all the time."""
    standing = draft.standing(model)
    if not standing.serving:
        return
    spare = len(standing.serving) + len(standing.old) - max(standing.target, 1)
    for replica in standing.old:
        if spare <= 0:
            return
        if draft.free_to_act(replica):
            _replace(draft, model, replica, "the new one serves")
            spare -= 1


def _replace(draft: Draft, model: Model, replica: Replica, why: str) -> None:
    message = f"{replica.name} is of revision {replica.revision}, the spec asks for {model.revision}; {why}."
    draft.act(Delete(model.key, reasons.REVISION_REPLACED, message, replica.id, draft.now + draft.pool(model).drain_timeout))
