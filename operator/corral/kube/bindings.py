"""Follows what dynamic resource allocation publishes and allocates: devices are told to the nodes' book, allocations with the pods.

It stands between the watch of the pods and the sink, so that every record of a pod says what was allocated to it. It decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from corral.kube.claims import RESOURCE_CLAIMS, ClaimKeeper, trim_claim
from corral.kube.client import KubeClient
from corral.kube.dra import Dra
from corral.kube.ports import Gone, PodRecord, Sink
from corral.kube.slices import DEVICE_CLASSES, RESOURCE_SLICES, Triple, trim_slice
from corral.kube.watch import Object, Reflector, Target, without_managed_fields

SOURCES = ("slices", "classes", "claims")


async def served(client: KubeClient) -> bool:
    """Whether the API server has the v1 of dynamic resource allocation (Kubernetes 1.34 on)."""
    try:
        found = await client.get("/apis/resource.k8s.io/v1")
    except Gone:
        return False
    names = {item.get("name") for item in found.get("resources") or []}
    return {"resourceslices", "resourceclaims", "deviceclasses"} <= names


class Bindings:
    """Owns the watches. `look_again` and `arrived` belong to the nodes' book; `pods` is the sink for the watch of the pods."""

    def __init__(
        self,
        client: KubeClient,
        dra: Dra,
        keeper: ClaimKeeper,
        sink: Sink,
        *,
        look_again: Callable[[Iterable[str]], None],
        arrived: Callable[[str], None],
    ) -> None:
        self._dra = dra
        self._keeper = keeper
        self._look_again = look_again
        self.pods = BoundPods(dra, keeper, sink)
        self.reflectors = (
            Reflector(client, RESOURCE_SLICES.path(), Target(self._put_slice, self._remove_slice, lambda: arrived("slices")), trim=trim_slice),
            Reflector(
                client,
                DEVICE_CLASSES.path(),
                Target(self._put_class, self._remove_class, lambda: arrived("classes")),
                trim=without_managed_fields,
            ),
            Reflector(client, RESOURCE_CLAIMS.path(), Target(self._put_claim, self._remove_claim, lambda: arrived("claims")), trim=trim_claim),
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for reflector in self.reflectors:
                group.create_task(reflector.run())
            group.create_task(self._keeper.run(self._dra.missing_claim))

    def _put_slice(self, obj: Object) -> None:
        self._look_again(self._dra.slices.put(obj))

    def _remove_slice(self, _namespace: str, name: str, _uid: str) -> None:
        self._look_again(self._dra.slices.remove(name))

    def _put_class(self, obj: Object) -> None:
        self._dra.put_class(obj)
        self._look_again(self._dra.slices.nodes())

    def _remove_class(self, _namespace: str, name: str, _uid: str) -> None:
        self._dra.remove_class(name)
        self._look_again(self._dra.slices.nodes())

    def _put_claim(self, obj: Object) -> None:
        self._claim_changed(self._dra.claims.put(obj), obj)

    def _remove_claim(self, namespace: str, name: str, _uid: str) -> None:
        self._claim_changed(self._dra.claims.remove(namespace, name), {"metadata": {"namespace": namespace, "name": name}})

    def _claim_changed(self, held: set[Triple], obj: Mapping[str, Any]) -> None:
        self._look_again(self._dra.nodes_of(held))
        self.pods.claim_changed(str(obj["metadata"]["namespace"]), str(obj["metadata"]["name"]))


class BoundPods:
    """The part of a sink that the watch of the pods needs: passes pods on with what was allocated to them."""

    def __init__(self, dra: Dra, keeper: ClaimKeeper, sink: Sink) -> None:
        self._dra = dra
        self._keeper = keeper
        self._sink = sink
        self._records: dict[str, PodRecord] = {}  # by uid, those with claims
        self._of_claim: dict[tuple[str, str], set[str]] = {}

    def put_pod(self, pod: PodRecord) -> None:
        self._keeper.put_pod(pod)
        if pod.claims:
            self._records[pod.uid] = pod
            for name in pod.claims:
                self._of_claim.setdefault((pod.namespace, name), set()).add(pod.uid)
        self._sink.put_pod(self._dra.read_back(pod))

    def remove_pod(self, namespace: str, name: str, uid: str) -> None:
        self._keeper.remove_pod(uid)
        old = self._records.pop(uid, None)
        for claim in old.claims if old is not None else ():
            users = self._of_claim.get((namespace, claim), set())
            users.discard(uid)
            if not users:
                self._of_claim.pop((namespace, claim), None)
        self._sink.remove_pod(namespace, name, uid)

    def synced(self, source: str) -> None:
        self._sink.synced(source)

    def claim_changed(self, namespace: str, name: str) -> None:
        for uid in self._of_claim.get((namespace, name), ()):
            self._sink.put_pod(self._dra.read_back(self._records[uid]))
