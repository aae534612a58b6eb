"""Load: commitment, on host memory the kubelet's grant, wake, and the outcome.

The commitment is on the pod before anything may use it, and is taken back only after the supervisor said that no engine runs. A failure ends with
the memory given back and a back-off that the decision reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from corral.control.keeping import give_back, lift, make_way
from corral.control.observation import SupervisorStatus, rfc3339
from corral.control.pods import Pod
from corral.control.shell import Shell, to_json
from corral.control.supervisors import Rejected, Unreachable
from corral.domain import reasons
from corral.domain.model import HOST_ID, DeviceKey, DeviceKind, ReplicaState
from corral.domain.plan import Load
from corral.kube.ports import COMMIT, LOADED_FOR, TURN, Conflict, Gone, NotLeader, Refused

log = logging.getLogger(__name__)


async def load(shell: Shell, action: Load) -> None:
    key = action.replica
    pod, need = shell.pod(key), needed_on_host(action)
    if pod is not None and need:
        await make_way(shell, pod.record.node, need, key)
    if not await _commit(shell, action):
        return
    pod = shell.pod(key)
    if pod is None:
        return
    record = pod.record
    granted = await _bound(shell, action) and await _granted(shell, action)
    if not granted:
        await give_back(shell, key)
        return
    before = pod.status
    try:
        await _wake(shell, action)
    except (Rejected, Unreachable) as error:
        shell.store.fail(action.model, record.node, reasons.LOAD_FAILED, f"waking it: {error}", retry=True, now=shell.clock())
        await give_back(shell, key)
        return
    await shell.store.until(key, _ended(before, record.restarts), shell.settings.load_timeout)
    pod = shell.pod(key)
    if pod is not None and not pod.resident:
        await give_back(shell, key)


async def _commit(shell: Shell, action: Load) -> bool:
    pod = shell.pod(action.replica)
    if pod is None:
        return False
    commitment = to_json(
        {
            "epoch": shell.leadership.epoch,
            "devices": {device.id: count for device, count in action.commitment.items()},
            "split": list(action.split),
            "at": rfc3339(shell.clock()),
        }
    )
    waiter = None if action.loaded_for is None else to_json({"since": rfc3339(action.loaded_for)})
    version = pod.record.resource_version
    try:
        record = await shell.workloads.annotate(pod.record, {COMMIT: commitment, LOADED_FOR: waiter, TURN: None}, precondition=True)
    except Conflict:
        # Somebody changed the pod since the plan was made: plan again, from what it is now.
        await shell.store.until(action.replica, lambda it: it is None or it.record.resource_version != version, 1.0)
        return False
    except Gone:
        return False
    except (NotLeader, Refused):
        raise
    except Exception as error:
        # It may have been written all the same: the bytes stay given away (by this action's order) until the watch had time to tell.
        log.warning("committing memory to %s: %s", action.replica, error)
        await shell.store.until(action.replica, lambda it: it is None or it.record.resource_version != version, shell.settings.request_timeout)
        return False
    pod.turn_started = None
    pod.kept = None
    shell.store.put_pod(record)
    return True


async def _bound(shell: Shell, action: Load) -> bool:
    """Where a scheduler allocates the devices, nothing may load before what it allocated was read back and is what was decided."""

    def settled(pod: Pod | None) -> bool:
        return pod is None or pod.gone or not pod.record.claims or bool(pod.record.gpu_uuids) or bool(pod.record.failure)

    await shell.store.until(action.replica, settled, shell.settings.grant_timeout)
    pod = shell.pod(action.replica)
    if pod is None or not pod.record.claims:
        return pod is not None
    record = pod.record
    if record.gpu_uuids == record.devices:
        return True
    why = record.message if record.gpu_uuids else f"no allocation was seen within {shell.settings.grant_timeout:g} s"
    shell.store.fail(action.model, record.node, reasons.BINDING_DIFFERS, why, retry=True, now=shell.clock())
    return False


def needed_on_host(action: Load) -> int:
    return sum(count for device, count in action.commitment.items() if device.id == HOST_ID)


async def _granted(shell: Shell, action: Load) -> bool:
    """On host memory nothing may load before the kubelet has set the bytes aside."""
    need, key = needed_on_host(action), action.replica
    pod = shell.pod(key)
    if pod is None:
        return False
    if need:
        async with shell.node_lock(pod.record.node):
            pass  # its request may be being lowered for somebody else at this moment
        pod = shell.pod(key)
    if pod is None:
        return False
    if not need or (min(pod.record.memory_request, pod.record.memory_wanted) >= need and not shell.limit(pod)):
        return True
    node, why = pod.record.node, f"the kubelet did not grant {need} bytes within {shell.settings.grant_timeout:g} s"
    try:
        await lift(shell, key, need, shell.limit(pod))
        await shell.store.until(key, lambda it: it is None or it.gone or it.record.memory_request >= need, shell.settings.grant_timeout)
    except Refused as error:
        why = str(error)
    except Gone:
        return False
    pod = shell.pod(key)
    if pod is None:
        return False
    if pod.record.memory_request >= need:
        return True
    if pod.record.resize_pending:
        why = f"{why}: {pod.record.resize_pending}"
    shell.store.fail(action.model, node, reasons.WAITING_FOR_GRANT, why, retry=True, now=shell.clock())
    return False


async def _wake(shell: Shell, action: Load) -> None:
    devices = tuple(action.commitment)
    kind = device_kind(shell, devices)
    for attempt in range(shell.settings.wake_attempts):
        pod = shell.pod(action.replica)
        if pod is None:
            return
        try:
            await shell.supervisors.wake(pod.record, tuple(device.id for device in devices), action.split, kind)
        except Unreachable:
            if attempt + 1 == shell.settings.wake_attempts:
                raise
            await asyncio.sleep(0.1 * 2**attempt)
        else:
            return


def device_kind(shell: Shell, devices: tuple[DeviceKey, ...]) -> str:
    known = shell.store.state.devices.get(devices[0]) if devices else None
    host = known.kind is DeviceKind.HOST if known is not None else any(device.id == HOST_ID for device in devices)
    return "host" if host else "gpu"


def _ended(before: SupervisorStatus | None, restarts: int) -> Callable[[Pod | None], bool]:
    """Whether the load has come to an end: loaded, failed, or its supervisor has started anew and forgot it."""

    def holds(pod: Pod | None) -> bool:
        if pod is None or pod.gone or pod.record.restarts != restarts:
            return True
        status = pod.status
        if status is None or not pod.reachable or status.state is ReplicaState.LOADING:
            return False
        if status.state in (ReplicaState.LOADED, ReplicaState.DRAINING):
            return True
        if before is not None and status.version < before.version:
            return True
        return status.error is not None and (before is None or status.error != before.error)

    return holds
