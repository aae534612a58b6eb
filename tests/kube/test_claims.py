"""Who makes and deletes ResourceClaims: before the first pod, some time after the last, and never under a pod."""

from __future__ import annotations

import pytest
from tests.kube.gpu_world import allocated, device, our_claim, resource_slice
from tests.kube.world import HandClock

from corral.kube.claims import RESOURCE_CLAIMS, UNUSED_FOR, ClaimBook, ClaimKeeper, claim, claim_name, pinned_device
from corral.kube.client import AlreadyExists
from corral.kube.ports import Conflict, PodRecord
from corral.kube.slices import devices_of

[GPU] = devices_of(resource_slice(device()))
MANIFEST = claim(GPU, "models", "a-class")
NAME = MANIFEST["metadata"]["name"]
PATH = RESOURCE_CLAIMS.path("models", NAME)


class Api:
    """The four calls, on a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, dict] = {}
        self.calls: list[tuple[str, str]] = []

    async def create(self, path, body):
        name = f"{path}/{body['metadata']['name']}"
        self.calls.append(("create", name))
        if name in self.objects:
            raise AlreadyExists(name)
        self.objects[name] = body
        return body

    async def get(self, path, params=None):
        self.calls.append(("get", path))
        return self.objects[path]

    async def delete(self, path, *, uid=""):
        self.calls.append(("delete", path))
        self.objects.pop(path, None)


class World:
    def __init__(self) -> None:
        self.api, self.book, self.clock = Api(), ClaimBook(), HandClock()
        self.keeper = ClaimKeeper(self.api, self.book, clock=self.clock.monotonic)


def pod(uid: str = "p1", **changes) -> PodRecord:
    given = {
        "namespace": "models",
        "name": uid,
        "uid": uid,
        "model": "models/m",
        "revision": "r",
        "pool": "p",
        "node": "node-1",
        "devices": ("GPU-0",),
    }
    return PodRecord(**(given | {"claims": (NAME,)} | changes))


def test_everything_that_a_claim_says_is_in_its_name():
    [other] = devices_of(resource_slice(device(uuid="GPU-9")))
    [shared] = devices_of(resource_slice(device(allowMultipleAllocations=True)))
    [elsewhere] = devices_of(resource_slice(device(), node="node-2"))
    names = {claim_name(GPU, "a-class"), claim_name(GPU, "b-class"), *(claim_name(each, "a-class") for each in (other, shared, elsewhere))}
    assert len(names) == 5
    assert claim_name(GPU, "a-class") == NAME


def test_a_claim_tells_a_later_leader_its_device():
    found = pinned_device(MANIFEST["metadata"]["annotations"])
    assert found == GPU
    assert pinned_device({}) is None
    assert pinned_device({"corral.dev/device": "[]"}) is None


async def test_a_claim_is_made_once():
    world = World()
    await world.keeper.ensure(MANIFEST)
    world.book.put(our_claim(MANIFEST))
    await world.keeper.ensure(MANIFEST)
    assert world.api.calls == [("create", PATH)]


async def test_one_that_is_there_already_is_taken_unless_it_is_going():
    world = World()
    world.api.objects[PATH] = MANIFEST
    await world.keeper.ensure(MANIFEST)
    world.api.objects[PATH] = MANIFEST | {"metadata": MANIFEST["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    with pytest.raises(Conflict, match="being deleted"):
        await world.keeper.ensure(MANIFEST)


async def test_a_claim_goes_some_time_after_its_last_pod():
    world = World()
    world.book.put(our_claim(MANIFEST))
    world.keeper.put_pod(pod("p1"))
    world.keeper.put_pod(pod("p2"))
    world.clock.pass_by(1000)
    assert await world.keeper.sweep() == []
    world.keeper.remove_pod("p1")
    world.clock.pass_by(1000)
    assert await world.keeper.sweep() == []
    world.keeper.remove_pod("p2")
    world.clock.pass_by(UNUSED_FOR - 1)
    assert await world.keeper.sweep() == []
    world.clock.pass_by(1)
    assert await world.keeper.sweep() == [f"models/{NAME}"]


async def test_a_claim_that_was_just_asked_for_or_is_reserved_stays():
    world = World()
    world.book.put(our_claim(MANIFEST))
    assert await world.keeper.sweep() == []  # a new leader does not know yet how long it is unused
    world.clock.pass_by(UNUSED_FOR - 1)
    await world.keeper.ensure(MANIFEST)
    world.clock.pass_by(UNUSED_FOR - 1)
    assert await world.keeper.sweep() == []
    world.book.put(our_claim(MANIFEST, allocated("gpu-0")))
    world.clock.pass_by(1000)
    assert await world.keeper.sweep() == []
    world.book.put(our_claim(MANIFEST, deletionTimestamp="2026-01-01T00:00:00Z"))
    world.clock.pass_by(1000)
    assert await world.keeper.sweep() == []
    assert world.api.calls == []


async def test_foreign_claims_are_never_deleted():
    world = World()
    foreign = MANIFEST | {"metadata": MANIFEST["metadata"] | {"labels": {}}}
    world.book.put({"metadata": foreign["metadata"] | {"uid": "u"}, "results": [], "reserved": 0})
    for _ in range(3):
        world.clock.pass_by(1000)
        assert await world.keeper.sweep() == []


async def test_a_claim_that_a_pod_waits_for_is_made_again():
    world = World()
    world.keeper.put_pod(pod())
    await world.keeper._mend(lambda _pod, name: MANIFEST if name == NAME else None)
    assert world.api.calls == [("create", PATH)]
    world.keeper.put_pod(pod(scheduled=True))
    await world.keeper._mend(lambda _pod, _name: MANIFEST)
    assert world.api.calls == [("create", PATH)]
