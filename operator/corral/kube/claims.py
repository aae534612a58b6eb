"""ResourceClaims: the one that Corral makes per GPU and namespace, and what all claims of the cluster hold.

A claim of ours is shared by every pod of its namespace on that GPU, is owned by no ModelDeployment, and goes when no pod uses it. The scheduler
allocates it; nothing here writes a claim's status. `ClaimBook` owns the trimmed claims; `ClaimKeeper` alone makes and deletes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corral.kube.client import AlreadyExists, KubeClient, Resource
from corral.kube.pods import COMPONENT, MANAGED_BY
from corral.kube.ports import Conflict, Gone, NotLeader, PodRecord, Refused, Unavailable
from corral.kube.slices import GpuDevice, Triple
from corral.kube.watch import Object

log = logging.getLogger(__name__)

RESOURCE_CLAIMS = Resource("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim")
NODE_LABEL = "corral.dev/node"
DEVICE = "corral.dev/device"  # annotation: what the claim is pinned to, for a leader that finds no slice of it
REQUEST = "gpu"
UNUSED_FOR = 30.0
"""Seconds that a claim of ours stays without a pod: a pod that is just being made has none yet."""
ROUND = 5.0

Key = tuple[str, str]  # namespace, name


def claim_name(device: GpuDevice, device_class: str) -> str:
    """A claim cannot be edited, so everything that it says is in its name."""
    told = json.dumps([device.triple, device.pin, device_class, device.shared])
    return f"corral-gpu-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def claim(device: GpuDevice, namespace: str, device_class: str) -> dict[str, Any]:
    exactly: dict[str, Any] = {"deviceClassName": device_class, "selectors": [{"cel": {"expression": device.selector()}}]}
    if device.shared:
        # Where others could join, all of it has to be asked for.
        exactly["capacity"] = {"requests": {"memory": str(device.memory)}}
    facts = {
        "driver": device.triple.driver,
        "pool": device.triple.pool,
        "device": device.triple.device,
        "node": device.node,
        "memory": device.memory,
        "product": device.product,
        "pin": list(device.pin),
        "shared": device.shared,
    }
    return {
        "apiVersion": RESOURCE_CLAIMS.api_version,
        "kind": RESOURCE_CLAIMS.kind,
        "metadata": {
            "name": claim_name(device, device_class),
            "namespace": namespace,
            "labels": {MANAGED_BY: "corral", COMPONENT: "gpu-claim"} | ({NODE_LABEL: device.node} if len(device.node) <= 63 else {}),
            "annotations": {DEVICE: json.dumps(facts, sort_keys=True)},
        },
        "spec": {"devices": {"requests": [{"name": REQUEST, "exactly": exactly}]}},
    }


def pinned_device(annotations: Mapping[str, str]) -> GpuDevice | None:
    """The device that a claim of ours was made for."""
    try:
        told = json.loads(annotations[DEVICE])
        return GpuDevice(
            triple=Triple(str(told["driver"]), str(told["pool"]), str(told["device"])),
            node=str(told["node"]),
            memory=int(told["memory"]),
            product=str(told.get("product", "")),
            pin=(str(told["pin"][0]), str(told["pin"][1])),
            shared=bool(told.get("shared")),
        )
    except (KeyError, ValueError, TypeError, IndexError):
        return None


@dataclass(frozen=True, slots=True)
class ClaimFacts:
    """A claim, trimmed. `holds`: the devices that are allocated to it; one with administrator's access holds none."""

    namespace: str
    name: str
    uid: str
    ours: bool
    deleting: bool
    reserved: int
    holds: tuple[Triple, ...]
    device: GpuDevice | None = None

    @property
    def key(self) -> Key:
        return self.namespace, self.name


def trim_claim(obj: Object) -> Object:
    metadata, status = obj["metadata"], obj.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    kept = {key: metadata.get(key) for key in ("name", "namespace", "uid", "deletionTimestamp")}
    kept |= {"labels": {MANAGED_BY: labels.get(MANAGED_BY, "")}, "annotations": {DEVICE: annotations[DEVICE]} if DEVICE in annotations else {}}
    results = ((status.get("allocation") or {}).get("devices") or {}).get("results") or []
    return {"metadata": kept, "results": results, "reserved": len(status.get("reservedFor") or [])}


def claim_facts(obj: Mapping[str, Any]) -> ClaimFacts:
    metadata = obj["metadata"]
    ours = (metadata.get("labels") or {}).get(MANAGED_BY) == "corral" and DEVICE in (metadata.get("annotations") or {})
    return ClaimFacts(
        namespace=str(metadata["namespace"]),
        name=str(metadata["name"]),
        uid=str(metadata.get("uid") or ""),
        ours=ours,
        deleting=bool(metadata.get("deletionTimestamp")),
        reserved=int(obj.get("reserved") or 0),
        holds=tuple(
            Triple(str(item["driver"]), str(item["pool"]), str(item["device"])) for item in obj.get("results") or [] if not item.get("adminAccess")
        ),
        device=pinned_device(metadata.get("annotations") or {}) if ours else None,
    )


class ClaimBook:
    """All claims of the cluster. `put` and `remove` give back the devices that it touched."""

    def __init__(self) -> None:
        self._claims: dict[Key, ClaimFacts] = {}
        self._holders: dict[Triple, set[Key]] = {}
        self._ours: dict[str, set[Key]] = {}  # by node

    def get(self, namespace: str, name: str) -> ClaimFacts | None:
        return self._claims.get((namespace, name))

    def ours(self) -> Iterable[ClaimFacts]:
        return [self._claims[key] for keys in self._ours.values() for key in keys]

    def ours_on(self, node: str) -> Sequence[ClaimFacts]:
        return [self._claims[key] for key in sorted(self._ours.get(node, ()))]

    def foreign(self, triple: Triple) -> tuple[str, ...]:
        """Who else's claims hold this device."""
        return tuple("/".join(key) for key in sorted(self._holders.get(triple, ())) if not self._claims[key].ours)

    def put(self, obj: Mapping[str, Any]) -> set[Triple]:
        facts = claim_facts(obj)
        touched = self.remove(*facts.key)
        self._claims[facts.key] = facts
        for triple in facts.holds:
            self._holders.setdefault(triple, set()).add(facts.key)
        if facts.device is not None:
            self._ours.setdefault(facts.device.node, set()).add(facts.key)
        return touched | set(facts.holds)

    def remove(self, namespace: str, name: str) -> set[Triple]:
        old = self._claims.pop((namespace, name), None)
        if old is None:
            return set()
        for triple in old.holds:
            self._holders[triple].discard(old.key)
            if not self._holders[triple]:
                del self._holders[triple]
        if old.device is not None:
            self._ours[old.device.node].discard(old.key)
            if not self._ours[old.device.node]:
                del self._ours[old.device.node]
        return set(old.holds)


class ClaimKeeper:
    """Makes a claim before the first pod that lists it, and deletes it some time after the last. Writes go through the leader's gate."""

    def __init__(self, client: KubeClient, book: ClaimBook, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._book = book
        self._clock = clock
        self._users: dict[Key, set[str]] = {}  # claim -> uids of pods
        self._pods: dict[str, PodRecord] = {}
        self._used: dict[Key, float] = {}  # when it was last seen in use, or asked for

    def put_pod(self, pod: PodRecord) -> None:
        self.remove_pod(pod.uid)
        if pod.claims:
            self._pods[pod.uid] = pod
        for name in pod.claims:
            self._users.setdefault((pod.namespace, name), set()).add(pod.uid)

    def remove_pod(self, uid: str) -> None:
        old = self._pods.pop(uid, None)
        for name in old.claims if old is not None else ():
            key = (old.namespace, name) if old is not None else ("", "")
            self._users[key].discard(uid)
            if not self._users[key]:
                del self._users[key]
            self._used[key] = self._clock()

    async def ensure(self, manifest: Mapping[str, Any]) -> None:
        """The claim is there, for a pod that is about to be made. Conflict while one of that name is going away."""
        namespace, name = str(manifest["metadata"]["namespace"]), str(manifest["metadata"]["name"])
        self._used[namespace, name] = self._clock()
        known = self._book.get(namespace, name)
        if known is not None and not known.deleting:
            return
        try:
            await self._client.create(RESOURCE_CLAIMS.path(namespace), manifest)
        except AlreadyExists:
            found = await self._client.get(RESOURCE_CLAIMS.path(namespace, name))
            if found["metadata"].get("deletionTimestamp"):
                raise Conflict(f"ResourceClaim {namespace}/{name} is being deleted; a pod that named it now would never start") from None

    async def run(self, missing: Callable[[PodRecord, str], Mapping[str, Any] | None]) -> None:
        """For ever: delete claims that nobody uses, make again those that a pod waits for. `missing` gives the manifest of a pod's claim."""
        while True:
            await asyncio.sleep(ROUND)
            try:
                await self.sweep()
                await self._mend(missing)
            except NotLeader:
                log.debug("claims are left alone: the lease is lost or about to expire")
            except (Unavailable, Refused, Conflict, Gone) as error:
                log.warning("claims: %s", error)

    async def sweep(self) -> list[str]:
        """Delete what has been unused for long enough; their names."""
        gone, now = [], self._clock()
        self._used = {key: at for key, at in self._used.items() if now - at < UNUSED_FOR or self._book.get(*key) is not None}
        for facts in self._book.ours():
            if facts.deleting:
                continue
            if self._users.get(facts.key) or facts.reserved:
                self._used[facts.key] = now
                continue
            if now - self._used.setdefault(facts.key, now) < UNUSED_FOR:
                continue
            try:
                await self._client.delete(RESOURCE_CLAIMS.path(*facts.key), uid=facts.uid)
            except (Gone, Conflict):
                continue
            gone.append("/".join(facts.key))
            log.info("ResourceClaim %s/%s is used by no pod: deleted", *facts.key)
        return gone

    async def _mend(self, missing: Callable[[PodRecord, str], Mapping[str, Any] | None]) -> None:
        for pod in list(self._pods.values()):
            for name in pod.claims:
                if pod.deleting or pod.scheduled or self._book.get(pod.namespace, name) is not None:
                    continue
                manifest = missing(pod, name)
                if manifest is not None:
                    log.warning("pod %s/%s waits for ResourceClaim %s, which is gone: it is made again", pod.namespace, pod.name, name)
                    await self.ensure(manifest)
