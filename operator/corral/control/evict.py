"""Evict and Delete: drain, sleep, confirmed exit; then the commitment is cleared and the memory given back.

Only the supervisor knows what is in flight, so it has the last word: a refused drain changes nothing and the decision is made again.
"""

from __future__ import annotations

import logging

from corral.control.keeping import give_back
from corral.control.pods import Pod
from corral.control.shell import Shell
from corral.control.supervisors import Rejected, Unreachable
from corral.domain import reasons
from corral.domain.plan import Delete, Evict

log = logging.getLogger(__name__)

JUST_AFTER = 0.001
"""Added to the last use that we know of: whatever was admitted since is newer."""


async def evict(shell: Shell, action: Evict) -> bool:
    """True when the replica's engine is gone and its bytes are given back."""
    key = action.replica
    pod = shell.pod(key)
    if pod is None:
        return False
    if pod.resident:
        try:
            stopped = await (_drain_idle(shell, key, pod) if action.deadline is None else _drain_until(shell, key, action.deadline))
        except Unreachable as error:
            log.info("%s", error)
            stopped = False
        if not stopped:
            return False
    return await give_back(shell, key, swap=bool(action.evicting_for))


async def _drain_idle(shell: Shell, key: str, pod: Pod) -> bool:
    """Stop it if nobody has used it since the plan was made. By the pod's own clock: ours may differ."""
    known = pod.status.last_used if pod.status is not None else 0.0
    try:
        await shell.supervisors.drain(pod.record, if_idle=True, if_unused_since=known + JUST_AFTER, deadline=None)
    except Rejected as refused:
        shell.in_use(key, refused.body)
        told = pod.status
        await shell.store.until(key, lambda it: it is None or it.status is not told, shell.settings.refusal_pause)
        return False
    shell.draining(key)
    return True


async def _drain_until(shell: Shell, key: str, deadline: float) -> bool:
    """The end of a turn: it admits nobody any more, and what is in flight has until the deadline."""
    settings = shell.settings
    while True:
        pod = shell.pod(key)
        if pod is None:
            return False
        try:
            left = await shell.supervisors.drain(pod.record, if_idle=False, if_unused_since=None, deadline=deadline)
        except Rejected as refused:
            shell.in_use(key, refused.body)
            return False
        shell.draining(key)
        if not left:
            return True
        over = deadline + settings.drain_grace - shell.clock()
        if over <= 0:
            log.warning("%s still has %d requests in flight after the end of its turn", key, left)
            return False
        renew = min(settings.drain_ttl / 3, over)
        if await shell.store.until(key, _idle, renew):
            pod = shell.pod(key)
            return pod is not None


def _idle(pod: Pod | None) -> bool:
    return pod is None or pod.gone or pod.status is None or pod.status.in_flight == 0 or not pod.resident


async def delete(shell: Shell, action: Delete) -> None:
    key = action.replica
    pod = shell.pod(key)
    if pod is None:
        return
    if pod.resident and pod.reachable and action.deadline is not None:
        try:
            await _drain_until(shell, key, action.deadline)
        except Unreachable as error:
            log.info("%s", error)
    pod = shell.pod(key)
    if pod is None:
        return
    record = pod.record
    await shell.workloads.delete(record, shell.settings.delete_grace)
    if action.reason in (reasons.UNSCHEDULABLE, reasons.BINDING_DIFFERS):
        shell.store.fail(action.model, record.node, action.reason, record.message or action.message, retry=True, now=shell.clock())
    shell.store.expect_gone(key, record.uid, shell.clock() + shell.settings.expectation_lifetime)
