"""Create and Estimate: a sleeping pod bound to its devices; a footprint from the file's header."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container

from corral.api import effective
from corral.control.keeping import make_way
from corral.control.limits import memory_beside_gpu, memory_limit
from corral.control.pods import Order
from corral.control.shell import Shell
from corral.control.translate import Deployment
from corral.domain import reasons
from corral.domain.model import HOST_ID, DeviceKind
from corral.domain.plan import Create
from corral.kube.ports import Conflict, EstimateRequest, NotLeader, PodRecord, Refused, ReplicaRequest

log = logging.getLogger(__name__)


def planned(shell: Shell, action: Create, busy: Container[str] = ()) -> ReplicaRequest | None:
    """The pod to create, under a name that no pod has, not even one that is going, nor one for which something is still under way (`busy`)."""
    found, model = shell.store.deployments.get(action.model), shell.store.state.models.get(action.model)
    if not isinstance(found, Deployment) or model is None:
        return None
    metadata, ordinal = found.parsed.metadata, 0
    while (name := f"{metadata.namespace}/{metadata.name}-{action.revision}-{ordinal}") in shell.store.pods or name in busy:
        ordinal += 1
    device = shell.store.state.devices.get(action.devices[0])
    host = device.kind is DeviceKind.HOST if device is not None else any(key.id == HOST_ID for key in action.devices)
    return ReplicaRequest(
        model_object=found.packed.whole,
        model=action.model,
        namespace=metadata.namespace,
        name=f"{metadata.name}-{action.revision}-{ordinal}",
        revision=action.revision,
        pool=model.pool,
        devices=action.devices,
        device_kind=DeviceKind.HOST if host else DeviceKind.GPU,
        server_spec=found.server_spec,
        memory_request=shell.residue(action.model) if host else memory_beside_gpu(model.footprint, shell.residue(action.model)),
        memory_limit=memory_limit(model.footprint, shell.settings, DeviceKind.HOST if host else DeviceKind.GPU),
        owner_uid=metadata.uid,
        cache=effective(found.parsed, shell.store.pools.get(model.pool)).cache.dump(),
    )


def expect(shell: Shell, request: ReplicaRequest, action: Create) -> str:
    """Count the pod from now on, whether the API has answered or not. Its key."""
    now = shell.clock()
    record = PodRecord(
        namespace=request.namespace,
        name=request.name,
        uid="",
        model=request.model,
        revision=request.revision,
        pool=request.pool,
        node=request.devices[0].node,
        devices=tuple(device.id for device in request.devices),
        created=now,
        memory_request=request.memory_request,
        memory_wanted=request.memory_request,
        owner_uid=request.owner_uid,
    )
    shell.store.plan_pod(record, Order("Create", action.reason, now))
    return f"{request.namespace}/{request.name}"


async def create(shell: Shell, request: ReplicaRequest, key: str) -> None:
    if request.device_kind is DeviceKind.HOST:
        await make_way(shell, request.devices[0].node, request.memory_request)
    try:
        record = await shell.workloads.create(request)
    except Refused as error:
        shell.store.forget_planned(key)
        shell.store.fail(request.model, request.devices[0].node, reasons.UNSCHEDULABLE, str(error), retry=True, now=shell.clock())
        return
    except (NotLeader, Conflict):
        shell.store.forget_planned(key)
        raise
    except Exception:
        # The API may have created it all the same; what it did will be seen. Until then its memory counts.
        log.warning("creating %s: no answer that says whether it is there", key, exc_info=True)
        await shell.store.until(key, lambda pod: pod is None or bool(pod.record.uid), shell.settings.expectation_lifetime)
        shell.store.forget_planned(key)
        return
    shell.store.put_pod(record)


async def estimate(shell: Shell, key: str, gate: asyncio.Semaphore) -> str:
    """Ask for the footprint and note the answer. The reason when it failed, else empty."""
    _estimating(shell, key, now=True)
    try:
        return await _estimate(shell, key, gate)
    finally:
        _estimating(shell, key, now=False)


def _estimating(shell: Shell, key: str, *, now: bool) -> None:
    facts = shell.store.facts.get(key)
    if facts is not None:
        facts.estimating = now
        shell.store.touch_model(key)


async def _estimate(shell: Shell, key: str, gate: asyncio.Semaphore) -> str:
    async with gate:
        found = shell.store.deployments.get(key)
        if not isinstance(found, Deployment):
            return ""
        metadata, spec = found.parsed.metadata, found.parsed.spec
        request = EstimateRequest(
            model_object=found.packed.whole,
            model=key,
            namespace=metadata.namespace,
            name=metadata.name,
            server_spec=found.server_spec,
            owner_uid=metadata.uid,
            pool=spec.pool,
            cache=effective(found.parsed, shell.store.pools.get(spec.pool)).cache.dump(),
            node_selector=spec.placement.node_selector,
        )
        try:
            async with asyncio.timeout(shell.settings.estimate_timeout):
                result = await shell.workloads.estimate(request)
        except NotLeader:
            raise
        except Exception as error:
            log.warning("estimating %s", key, exc_info=not isinstance(error, Refused | TimeoutError))
            message = str(error) or f"no answer within {shell.settings.estimate_timeout:g} s"
            result = {"ok": False, "reason": reasons.ESTIMATE_FAILED, "message": message, "retry": True}
    now = shell.clock()
    facts = shell.store.facts.get(key)
    current = shell.store.deployments.get(key)
    if facts is None or not isinstance(current, Deployment) or facts.uid != metadata.uid or current.estimate_key != found.estimate_key:
        return ""  # the spec has changed meanwhile: the answer is to another question
    facts.estimated(result, now, shell.settings)
    return "" if result.get("ok") else str(result.get("reason") or reasons.ESTIMATE_FAILED)
