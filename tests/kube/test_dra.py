"""Devices by dynamic resource allocation: what a node offers, what a pod is bound by, what was allocated, and who else holds a device."""

from __future__ import annotations

import pytest
from tests.kube.gpu_world import DRIVER, allocated, device, device_class, foreign_claim, our_claim, resource_slice
from tests.kube.test_foreign import foreign_pod
from tests.kube.world import GI, HandClock, RememberingSink, node, pool, replica_request

from corral.api.modelpool import ModelPool
from corral.domain import reasons
from corral.domain.model import DeviceKey, DeviceKind
from corral.domain.standing import VANISHED_GRACE
from corral.kube.bindings import Bindings
from corral.kube.claims import ClaimKeeper
from corral.kube.devices import Backends, Binding, HostMemory, NodeFacts, Static
from corral.kube.dra import Dra
from corral.kube.foreign import Use
from corral.kube.manifests import ServerSettings, server_pod
from corral.kube.membership import Pools
from corral.kube.nodes import NodeBook
from corral.kube.nodes import trim as trim_node
from corral.kube.pods import record, trim
from corral.kube.ports import Conflict, PodRecord

POOL = ModelPool.parse(pool(devices={"from": "Auto", "dra": {"deviceClassName": DRIVER}}, memoryMargin="1Gi"))
NODE = NodeFacts("node-1", memory=16 * GI)
KEY = DeviceKey("node-1", "GPU-0")


class World:
    def __init__(self) -> None:
        self.clock = HandClock()
        self.dra = Dra(clock=self.clock.time)
        self.dra.put_class(device_class())
        self.backends = Backends((self.dra, Static(), HostMemory()))

    def devices(self):
        return {each.key.id: each for each in self.backends.inventory(NODE, POOL, Use())}

    def bind(self, *keys: DeviceKey, namespace: str = "models") -> Binding:
        return self.backends.bind(namespace, keys or (KEY,), DeviceKind.GPU, POOL)


@pytest.fixture
def world() -> World:
    made = World()
    made.dra.slices.put(resource_slice(device(), device("gpu-1", uuid="GPU-1", memory="16Gi")))
    return made


def test_slices_come_before_host_memory(world):
    found = world.devices()
    assert set(found) == {"GPU-0", "GPU-1"}
    assert (found["GPU-0"].capacity, found["GPU-0"].margin, found["GPU-0"].kind) == (8 * GI, GI, DeviceKind.GPU)
    assert found["GPU-0"].namespaced
    assert found["GPU-1"].capacity == 16 * GI


def test_a_node_without_slices_offers_its_host_memory(world):
    assert [each.key.id for each in world.backends.inventory(NodeFacts("node-9", memory=GI), POOL, Use())] == ["host"]


def test_a_class_that_is_not_there_offers_nothing(world):
    world.dra.remove_class(DRIVER)
    assert set(world.devices()) == {"host"}


@pytest.mark.parametrize(
    ("effect", "closed", "moves"), [("NoSchedule", reasons.TAINTED, False), ("NoExecute", reasons.TAINTED, True), ("None", "", False)]
)
def test_taints_close_a_device_and_may_move_its_models(world, effect, closed, moves):
    world.dra.slices.put(resource_slice(device(taints=[{"key": "broken", "effect": effect}])))
    found = world.devices()["GPU-0"]
    assert (found.closed, found.no_execute) == (closed, moves)


def test_a_device_that_leaves_its_slice_is_absent_and_then_forgotten(world):
    world.devices()
    left = world.clock.time()
    world.dra.slices.remove("s1")
    assert world.devices()["GPU-0"].vanished_since == left
    with pytest.raises(Conflict, match="does not publish"):
        world.bind()
    world.clock.pass_by(VANISHED_GRACE - 1)
    assert world.devices()["GPU-0"].vanished_since == left
    world.dra.slices.put(resource_slice(device()))
    assert world.devices()["GPU-0"].vanished_since is None
    assert world.devices()["GPU-1"].vanished_since == left
    world.clock.pass_by(1)
    assert set(world.devices()) == {"GPU-0"}


def test_a_leader_that_finds_no_slice_knows_the_device_from_its_claims(world):
    world.devices()
    [claim] = world.bind().needs
    fresh = World()
    fresh.dra.claims.put(our_claim(claim, allocated("gpu-0")))
    found = fresh.devices()
    assert set(found) == {"GPU-0"}
    assert (found["GPU-0"].capacity, found["GPU-0"].vanished_since) == (8 * GI, fresh.clock.time())
    fresh.clock.pass_by(2 * VANISHED_GRACE)
    assert set(fresh.devices()) == {"GPU-0"}  # a pod still holds it


def test_foreign_claims_close_a_device_and_ours_do_not(world):
    world.dra.claims.put(foreign_claim(status=allocated("gpu-1")))
    world.dra.claims.put(foreign_claim("watcher", allocated("gpu-0", admin=True)))
    world.devices()
    world.dra.claims.put(our_claim(world.bind().needs[0], allocated("gpu-0")))
    assert {name: each.closed for name, each in world.devices().items()} == {"GPU-0": "", "GPU-1": reasons.FOREIGN_CLAIM}
    world.dra.claims.put(foreign_claim())  # deallocated
    assert world.devices()["GPU-1"].closed == ""


def test_a_pod_lists_one_claim_for_each_of_its_gpus_pinned_by_uuid(world):
    world.devices()
    binding = world.bind(DeviceKey("node-1", "GPU-1"), KEY)
    pod = server_pod(replica_request(devices=(DeviceKey("node-1", "GPU-1"), KEY), device_kind=DeviceKind.GPU), ServerSettings(image="i"), binding)
    assert [item["name"] for item in pod["spec"]["resourceClaims"]] == ["gpu-0", "gpu-1"]
    assert pod["spec"]["containers"][0]["resources"]["claims"] == [{"name": "gpu-0"}, {"name": "gpu-1"}]
    assert [item["metadata"]["name"] for item in binding.needs] == [item["resourceClaimName"] for item in pod["spec"]["resourceClaims"]]
    env = {item["name"]: item.get("value") for item in pod["spec"]["containers"][0]["env"]}
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-0"
    assert "NVIDIA_VISIBLE_DEVICES" not in env
    assert "nodeName" not in pod["spec"]
    [request] = binding.needs[0]["spec"]["devices"]["requests"]
    assert request["exactly"]["deviceClassName"] == DRIVER
    assert request["exactly"]["selectors"] == [{"cel": {"expression": f'device.attributes["{DRIVER}"].?uuid.orValue("") == "GPU-1"'}}]
    assert "ownerReferences" not in binding.needs[0]["metadata"]


def test_pods_of_a_namespace_share_a_claim_and_namespaces_have_their_own(world):
    world.devices()
    first, second = world.bind(), world.bind()
    other = world.bind(namespace="team")
    assert first.resource_claims == second.resource_claims == other.resource_claims
    assert {item["metadata"]["namespace"] for item in (*first.needs, *other.needs)} == {"models", "team"}


def test_all_of_a_device_that_others_could_join_is_asked_for(world):
    world.dra.slices.put(resource_slice(device(allowMultipleAllocations=True)))
    world.devices()
    [request] = world.bind().needs[0]["spec"]["devices"]["requests"]
    assert request["exactly"]["capacity"] == {"requests": {"memory": str(8 * GI)}}


def pod_record(world: World, *, scheduled: bool = True, **changes) -> PodRecord:
    manifest = server_pod(replica_request(devices=(KEY,), device_kind=DeviceKind.GPU), ServerSettings(image="i"), world.bind())
    manifest["metadata"]["uid"] = "pod-1"
    if scheduled:
        manifest["spec"]["nodeName"] = "node-1"
    return record(trim(manifest | changes))


def test_what_was_allocated_is_read_back(world):
    world.devices()
    pod = pod_record(world)
    assert world.dra.read_back(pod).gpu_uuids == ()
    world.dra.claims.put(our_claim(world.bind().needs[0], allocated("gpu-0")))
    found = world.dra.read_back(pod)
    assert (found.gpu_uuids, found.failure) == (("GPU-0",), "")


def test_a_leader_that_has_read_no_slice_yet_believes_the_claim(world):
    world.devices()
    pod, claim = pod_record(world), our_claim(world.bind().needs[0], allocated("gpu-0"))
    fresh = Dra()
    fresh.claims.put(claim)
    found = fresh.read_back(pod)
    assert (found.gpu_uuids, found.failure) == (("GPU-0",), "")
    fresh.claims.put(our_claim(world.bind().needs[0], allocated("gpu-7")))
    assert fresh.read_back(pod).failure == reasons.BINDING_DIFFERS


def test_another_allocation_than_the_one_decided_fails_the_pod(world):
    world.devices()
    world.dra.claims.put(our_claim(world.bind().needs[0], allocated("gpu-1")))
    found = world.dra.read_back(pod_record(world))
    assert found.failure == reasons.BINDING_DIFFERS
    assert "GPU-1" in found.message
    assert "GPU-0" in found.message


def test_a_record_tells_its_claims(world):
    world.devices()
    assert pod_record(world).claims == (world.bind().needs[0]["metadata"]["name"],)


def test_a_claim_that_is_gone_can_be_made_again_for_the_pod_that_waits(world):
    world.devices()
    pod = pod_record(world, scheduled=False)
    assert world.dra.missing_claim(pod, pod.claims[0]) == world.bind().needs[0]
    assert world.dra.missing_claim(pod, "unknown") is None


class Watched:
    """Node book, bindings and sink put together as the operator does."""

    def __init__(self) -> None:
        self.sink = RememberingSink()
        self.dra, pools = Dra(), Pools()
        pools.put_pool(pool(devices={"dra": {"deviceClassName": DRIVER}}))
        self.book = NodeBook(None, self.sink, Backends((self.dra, HostMemory())), pools, more=("slices", "classes", "claims"))
        self.bindings = Bindings(
            None, self.dra, ClaimKeeper(None, self.dra.claims), self.sink, look_again=self.book.look_again, arrived=self.book.arrived
        )

    def sync(self) -> None:
        for source in ("nodes", "pools", "foreign", "slices", "classes", "claims"):
            self.book.arrived(source)

    def devices(self):
        return {each.key.id: each for each in self.sink.nodes["node-1"][1]}


def test_nodes_are_told_once_slices_and_claims_are_listed_too():
    world = Watched()
    world.book._put(trim_node(node(taints=[{"key": "nvidia.com/gpu", "effect": "NoSchedule"}, {"key": "mine", "effect": "NoSchedule"}])))
    for source in ("nodes", "pools", "foreign", "slices", "classes"):
        world.book.arrived(source)
    assert world.sink.said == []
    world.bindings._put_class(device_class())
    world.bindings._put_slice(resource_slice(device()))
    world.book.arrived("claims")
    assert set(world.devices()) == {"GPU-0"}
    # The pods that we bind to a GPU tolerate the taint that keeps others away.
    assert [taint.key for taint in world.sink.nodes["node-1"][0].taints] == ["mine"]
    world.bindings._put_claim(foreign_claim(status=allocated("gpu-0")))
    assert world.devices()["GPU-0"].closed == reasons.FOREIGN_CLAIM
    world.bindings._remove_claim("other", "theirs", "")
    assert world.devices()["GPU-0"].closed == ""
    world.bindings._remove_slice("", "s1", "")
    assert world.devices()["GPU-0"].vanished_since is not None


def test_an_allocation_that_comes_after_the_pod_is_told_with_the_pod():
    world = Watched()
    world.book._put(trim_node(node()))
    world.sync()
    world.bindings._put_class(device_class())
    world.bindings._put_slice(resource_slice(device()))
    backends = Backends((world.dra,))
    backends.inventory(NODE, POOL, Use())
    binding = backends.bind("models", (KEY,), DeviceKind.GPU, POOL)
    manifest = server_pod(replica_request(devices=(KEY,), device_kind=DeviceKind.GPU), ServerSettings(image="i"), binding)
    manifest["metadata"]["uid"], manifest["spec"]["nodeName"] = "pod-1", "node-1"
    world.bindings.pods.put_pod(record(trim(manifest)))
    assert world.sink.pods["pod-1"].gpu_uuids == ()
    world.bindings._put_claim(our_claim(binding.needs[0], allocated("gpu-0")))
    assert world.sink.pods["pod-1"].gpu_uuids == ("GPU-0",)
    world.bindings.pods.remove_pod("models", "small-abc123-0", "pod-1")
    assert world.sink.pods == {}


def test_requests_for_gpus_of_foreign_pods_are_counted():
    book = Watched().book.foreign
    book.put(foreign_pod("a", "node-1", "1Gi") | {"gpus": 2})
    assert book.of("node-1").gpus == 2
    book.remove("other", "a", "")
    assert book.of("node-1") == Use()
