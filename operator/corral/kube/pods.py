"""Server pods as the control loop sees them: a Pod object becomes a `PodRecord`.

Reading is pure. `ServerPods` owns the watch of the pods and looks after those that do not start: the kubelet tells of a missing secret in an event
only. It must never write.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from corral.domain import reasons
from corral.kube.client import EVENTS, PODS, KubeClient
from corral.kube.ports import DEVICES, MODEL_LABEL, POOL_LABEL, REVISION_LABEL, Gone, PodRecord, Refused, Unavailable
from corral.kube.quantity import memory_of, whole
from corral.kube.watch import Object, Reflector, Target

log = logging.getLogger(__name__)

MANAGED_BY = "app.kubernetes.io/managed-by"
COMPONENT = "app.kubernetes.io/component"
SERVER_SELECTOR = f"{MANAGED_BY}=corral,{COMPONENT}=server"
CONTAINER = "server"
INFERENCE_PORT = "inference"
CONTROL_PORT = "control"

START_PATIENCE = 3.0
"""Seconds that a scheduled pod may take to run before its events are read, and between readings."""
KEPT_METADATA = ("name", "namespace", "uid", "resourceVersion", "labels", "annotations", "creationTimestamp", "deletionTimestamp", "ownerReferences")
KEPT_STATUS = ("phase", "reason", "message", "podIP", "conditions", "containerStatuses")


def trim(obj: Object) -> Object:
    """What a record needs. The environment of a pod alone is kilobytes."""
    spec = obj.get("spec") or {}
    containers = [{key: item.get(key) for key in ("name", "resources", "ports")} for item in spec.get("containers") or []]
    return {
        "metadata": {key: value for key, value in obj["metadata"].items() if key in KEPT_METADATA},
        "spec": {"nodeName": spec.get("nodeName", ""), "affinity": spec.get("affinity"), "containers": containers}
        | ({"resourceClaims": spec["resourceClaims"]} if spec.get("resourceClaims") else {}),
        "status": {key: value for key, value in (obj.get("status") or {}).items() if key in KEPT_STATUS},
    }


def record(obj: Mapping[str, Any]) -> PodRecord:
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    labels = metadata.get("labels") or {}
    namespace = metadata["namespace"]
    container = _named(spec.get("containers") or []) or {}
    running, granted, restarts = _container(status, container)
    failure, message = _trouble(status)
    unschedulable = _unschedulable(status)
    pending = next((c for c in _conditions(status) if c.get("type") == "PodResizePending" and c.get("status") == "True"), None)
    owner: Mapping[str, Any] = next((o for o in metadata.get("ownerReferences") or [] if o.get("controller")), {})
    return PodRecord(
        namespace=namespace,
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        model=f"{namespace}/{labels.get(MODEL_LABEL, '')}",
        revision=labels.get(REVISION_LABEL, ""),
        pool=labels.get(POOL_LABEL, ""),
        node=spec.get("nodeName") or planned_node(spec),
        devices=_devices(metadata),
        resource_version=metadata.get("resourceVersion", ""),
        annotations=metadata.get("annotations") or {},
        host=status.get("podIP", ""),
        inference_port=_port(container, INFERENCE_PORT, 8080),
        control_port=_port(container, CONTROL_PORT, 8081),
        created=seconds(metadata.get("creationTimestamp")),
        deleting=bool(metadata.get("deletionTimestamp")),
        scheduled=bool(spec.get("nodeName")),
        unschedulable_since=seconds(unschedulable.get("lastTransitionTime")) if unschedulable else None,
        running=running,
        message=str(unschedulable.get("message", "")) if unschedulable else message,
        failure=failure,
        memory_request=granted,
        memory_wanted=memory_of(container.get("resources")),
        memory_limit=memory_of(container.get("resources"), "limits"),
        resize_pending=f"{pending.get('reason', '')}: {pending.get('message', '')}" if pending else "",
        restarts=restarts,
        owner_uid=str(owner.get("uid", "")),
        claims=tuple(str(item["resourceClaimName"]) for item in spec.get("resourceClaims") or [] if item.get("resourceClaimName")),
    )


def seconds(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def planned_node(spec: Mapping[str, Any]) -> str:
    """The node that the affinity of `manifests` names."""
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or []:
        for field in term.get("matchFields") or []:
            if field.get("key") == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return ""


def _devices(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        found = json.loads((metadata.get("annotations") or {}).get(DEVICES) or "[]")
    except ValueError:
        found = []
    return tuple(str(item) for item in found) if isinstance(found, list) else ()


def _named(items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((item for item in items if item.get("name") == CONTAINER), None)


def _conditions(status: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = status.get("conditions") or ()
    return found


def _unschedulable(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    judged = (c for c in _conditions(status) if c.get("type") == "PodScheduled" and c.get("status") == "False")
    return next((c for c in judged if c.get("reason") in {"Unschedulable", "SchedulerError"}), None)


def _container(status: Mapping[str, Any], spec: Mapping[str, Any]) -> tuple[bool, int, int]:
    """(runs, bytes that the kubelet allocated, restarts). Nothing is granted before it says so; a kubelet that cannot resize grants the spec."""
    found = _named(status.get("containerStatuses") or [])
    if found is None:
        return False, 0, 0
    running = "running" in (found.get("state") or {})
    allocated = found.get("allocatedResources")
    silent = memory_of(spec.get("resources")) if running else 0
    granted = silent if allocated is None else whole(allocated.get("memory"))
    return running, granted, int(found.get("restartCount") or 0)


def _port(container: Mapping[str, Any], name: str, default: int) -> int:
    return next((int(p["containerPort"]) for p in container.get("ports") or [] if p.get("name") == name), default)


def _trouble(status: Mapping[str, Any]) -> tuple[str, str]:
    """(failure, message) of a pod that does not run."""
    if status.get("phase") in {"Failed", "Succeeded"}:
        return reasons.FAILED, f"the pod is {status['phase']}: {status.get('reason', '')} {status.get('message', '')}".strip()
    found = _named(status.get("containerStatuses") or []) or {}
    waiting = (found.get("state") or {}).get("waiting") or {}
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if not reason or reason in {"ContainerCreating", "PodInitializing"}:
        return "", ""
    if missing_secret(message):
        return reasons.SECRET_NOT_FOUND, message
    return "", f"{reason}: {message}" if message else reason


def missing_secret(message: str) -> str:
    """The name of the secret that the kubelet does not find, empty when it is about something else."""
    found = re.search(r'secret "([^"]+)" not found', message)
    return found[1] if found else ""


async def start_failure(client: KubeClient, namespace: str, uid: str) -> tuple[str, str]:
    """(failure, message) from the events of a pod that is scheduled and does not run."""
    fields = f"involvedObject.uid={uid},type=Warning"
    events = (await client.list(EVENTS.path(namespace), {"fieldSelector": fields, "limit": "50"})).get("items") or []
    latest = sorted(events, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    for event in reversed(latest):
        message = str(event.get("message", ""))
        if missing_secret(message):
            return reasons.SECRET_NOT_FOUND, message
    if latest:
        return "", f"{latest[-1].get('reason', '')}: {latest[-1].get('message', '')}"
    return "", ""


class PodSink(Protocol):
    """As much of a `Sink` as pods need."""

    def put_pod(self, pod: PodRecord) -> None: ...

    def remove_pod(self, namespace: str, name: str, uid: str) -> None: ...

    def synced(self, source: str) -> None: ...


class ServerPods:
    """Feeds the sink with the server pods of all namespaces."""

    def __init__(self, client: KubeClient, sink: PodSink, *, patience: float = START_PATIENCE) -> None:
        self._client = client
        self._sink = sink
        self._patience = patience
        self._waiting: dict[str, PodRecord] = {}
        self.reflector = Reflector(
            client, PODS.path(), Target(self._put, self._remove, lambda: sink.synced("pods")), labels=SERVER_SELECTOR, trim=trim
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.reflector.run())
            group.create_task(self._look_after_starts())

    def _put(self, obj: Object) -> None:
        pod = record(obj)
        if pod.scheduled and not pod.running and not pod.deleting:
            before = self._waiting.get(pod.uid)
            if before is not None and not pod.failure and before.failure:
                pod = dataclasses.replace(pod, failure=before.failure, message=before.message)
            self._waiting[pod.uid] = pod
        else:
            self._waiting.pop(pod.uid, None)
        self._sink.put_pod(pod)

    def _remove(self, namespace: str, name: str, uid: str) -> None:
        self._waiting.pop(uid, None)
        self._sink.remove_pod(namespace, name, uid)

    async def _look_after_starts(self) -> None:
        looked: set[str] = set()
        while True:
            await asyncio.sleep(self._patience)
            # A pod is looked at from the second round on: most run by then.
            for uid in [uid for uid in self._waiting if uid in looked]:
                pod = self._waiting.get(uid)
                if pod is None or pod.failure:
                    continue
                try:
                    failure, message = await start_failure(self._client, pod.namespace, uid)
                except (Unavailable, Refused, Gone) as error:
                    log.warning("the events of pod %s/%s cannot be read: %s", pod.namespace, pod.name, error)
                    break
                current = self._waiting.get(uid)
                if current is not None and message and (failure, message) != (current.failure, current.message):
                    self._waiting[uid] = dataclasses.replace(current, failure=failure, message=message)
                    self._sink.put_pod(self._waiting[uid])
            looked = set(self._waiting)
