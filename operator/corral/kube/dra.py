"""Devices by dynamic resource allocation: learned from ResourceSlices, bound by one ResourceClaim per GPU and namespace.

The operator chooses the device and pins it in the claim; the scheduler allocates it, and what it allocated is read back and compared. A device that
leaves its slice is remembered as long as it may come back or a claim of ours is on it: a driver that restarts moves nobody.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from corral.api.modelpool import ModelPool
from corral.domain import reasons
from corral.domain.model import Device, DeviceKey, DeviceKind
from corral.domain.standing import VANISHED_GRACE
from corral.kube.claims import ClaimBook, claim, claim_name
from corral.kube.devices import GPU_TOLERATIONS, Binding, NodeFacts, device_of, is_uuid
from corral.kube.foreign import Use
from corral.kube.ports import Conflict, PodRecord
from corral.kube.slices import ClassFacts, GpuDevice, SliceBook, Triple, class_facts

log = logging.getLogger(__name__)


class Dra:
    """One backend and what it knows; whoever watches the cluster fills `slices`, `claims` and the classes."""

    name = "DRA"

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.slices = SliceBook()
        self.claims = ClaimBook()
        self._classes: dict[str, ClassFacts] = {}
        self._clock = clock
        self._known: dict[str, dict[str, tuple[GpuDevice, float | None]]] = {}  # node -> device id -> device, absent since
        self._keys: dict[Triple, DeviceKey] = {}

    def put_class(self, obj: Mapping[str, Any]) -> None:
        self._classes[str(obj["metadata"]["name"])] = class_facts(obj)

    def remove_class(self, name: str) -> None:
        self._classes.pop(name, None)

    def nodes_of(self, triples: Iterable[Triple]) -> set[str]:
        """The nodes of devices that are known."""
        return {self._keys[triple].node for triple in triples if triple in self._keys}

    def inventory(self, node: NodeFacts, pool: ModelPool, foreign: Use) -> Sequence[Device] | None:  # noqa: ARG002 - claims tell of foreign use
        known = self._remember(node.name, pool.spec.devices.dra.device_class_name)
        if not known:
            return None
        return tuple(self._device(node, pool, *known[name]) for name in sorted(known))

    def _remember(self, node: str, class_name: str) -> dict[str, tuple[GpuDevice, float | None]]:
        wanted = self._classes.get(class_name)
        present = [device for device in self.slices.of(node) if wanted is not None and wanted.takes(device) and device.pin[1]]
        known, now = self._known.setdefault(node, {}), self._clock()
        claimed = {facts.device.triple: facts.device for facts in self.claims.ours_on(node) if facts.device is not None}
        for device in claimed.values():
            known.setdefault(device.id, (device, now))
        here = {device.id for device in present}
        for name, (device, since) in list(known.items()):
            if name in here:
                continue
            if since is not None and now - since >= VANISHED_GRACE and device.triple not in claimed:
                del known[name]
                self._keys.pop(device.triple, None)
            else:
                known[name] = (device, since if since is not None else now)
        for device in present:
            known[device.id] = (device, None)
        for device, _ in known.values():
            self._keys[device.triple] = DeviceKey(node, device.id)
        if not known:
            del self._known[node]
        return known

    def _device(self, node: NodeFacts, pool: ModelPool, device: GpuDevice, since: float | None) -> Device:
        effects = {effect for _, effect in device.taints} if since is None else set()
        closed = reasons.TAINTED if effects & {"NoSchedule", "NoExecute"} else ""
        if not closed and self.claims.foreign(device.triple):
            closed = reasons.FOREIGN_CLAIM
        return device_of(
            node,
            pool,
            device.id,
            kind=DeviceKind.GPU,
            capacity=device.memory,
            product=device.product,
            closed=closed,
            no_execute="NoExecute" in effects,
            vanished_since=since,
            namespaced=True,
        )

    def bind(self, namespace: str, devices: Sequence[DeviceKey], pool: ModelPool) -> Binding:
        class_name = pool.spec.devices.dra.device_class_name
        found = [self._find(key) for key in devices]
        names = [claim_name(device, class_name) for device in found]
        ids = [device.id for device in found]
        # The driver shows the container its devices; the uuids only fix their order, which a split's shares follow.
        env = (("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("CUDA_VISIBLE_DEVICES", ",".join(ids))) if all(is_uuid(item) for item in ids) else ()
        return Binding(
            env=env,
            needs=tuple(claim(device, namespace, class_name) for device in found),
            resource_claims=tuple({"name": f"gpu-{index}", "resourceClaimName": name} for index, name in enumerate(names)),
            claims=tuple({"name": f"gpu-{index}"} for index in range(len(names))),
            tolerations=GPU_TOLERATIONS,
        )

    def _find(self, key: DeviceKey) -> GpuDevice:
        device, since = self._known.get(key.node, {}).get(key.id, (None, None))
        if device is None or since is not None:
            raise Conflict(f"{key}: its driver does not publish it (any more)")
        return device

    def missing_claim(self, pod: PodRecord, name: str) -> Mapping[str, Any] | None:
        """The manifest of a claim that a pod lists and that is gone; None when its device is not known any more."""
        for device, since in self._known.get(pod.node, {}).values():
            for class_name in self._classes:
                if since is None and claim_name(device, class_name) == name:
                    return claim(device, pod.namespace, class_name)
        return None

    def _id(self, triple: Triple, pinned: GpuDevice | None) -> str:
        """What a claim says of its own device is believed: its slice may not have been read yet, or not be there."""
        if pinned is not None and pinned.triple == triple:
            return pinned.id
        return self._keys[triple].id if triple in self._keys else str(triple)

    def read_back(self, pod: PodRecord) -> PodRecord:
        """The pod with what the scheduler allocated to it, and as failed when that is not what was decided."""
        if not pod.claims:
            return pod
        allocated: list[str] = []
        for name in pod.claims:
            facts = self.claims.get(pod.namespace, name)
            if facts is None or not facts.holds or (not pod.scheduled and not facts.reserved):
                return pod  # not allocated yet
            allocated += [self._id(triple, facts.device) for triple in facts.holds]
        pod = dataclasses.replace(pod, gpu_uuids=tuple(allocated))
        if tuple(allocated) == pod.devices or pod.failure:
            return pod
        message = f"the scheduler allocated {', '.join(allocated)} on {pod.node}, decided was {', '.join(pod.devices)}"
        return dataclasses.replace(pod, failure=reasons.BINDING_DIFFERS, message=message)
