"""GPU nodes known by labels or by a list: which devices they have, who closes them, how a pod is bound."""

from __future__ import annotations

import pytest
from tests.kube.world import GI, pool, replica_request

from corral.api.modelpool import ModelPool
from corral.domain import reasons
from corral.domain.model import DeviceKey, DeviceKind
from corral.kube.deviceplugin import DevicePlugin
from corral.kube.devices import Backends, HostMemory, NodeFacts, Static
from corral.kube.foreign import Use, gpu_requests
from corral.kube.manifests import ServerSettings, server_pod

ONE = {"nvidia.com/gpu.count": "1", "nvidia.com/gpu.memory": "23034", "nvidia.com/gpu.product": "NVIDIA-L4"}
LISTED = [{"node": "node-1", "id": f"GPU-{number}", "memory": "20Gi"} for number in range(2)]


def a_pool(**devices) -> ModelPool:
    return ModelPool.parse(pool(devices=devices, memoryMargins=[{"product": "NVIDIA-L4", "margin": "2Gi"}]))


def all_ways() -> Backends:
    return Backends((DevicePlugin(), Static(), HostMemory()))


def test_one_gpu_by_labels():
    [found] = all_ways().inventory(NodeFacts("node-1", labels=ONE, memory=GI), a_pool(), Use())
    assert (found.key.id, found.kind, found.capacity) == ("0", DeviceKind.GPU, 23034 << 20)
    assert (found.product, found.margin, found.closed, found.namespaced) == ("NVIDIA-L4", 2 * GI, "", False)


@pytest.mark.parametrize(
    ("changes", "devices", "expected"),
    [
        ({}, {}, ["0"]),
        ({"nvidia.com/gpu.count": "2"}, {}, ["host"]),  # which is which nobody says
        ({"nvidia.com/gpu.count": "2"}, {"static": LISTED}, ["GPU-0", "GPU-1"]),
        ({"nvidia.com/gpu.memory": "?"}, {}, ["host"]),
        ({"nvidia.com/mig.strategy": "mixed"}, {}, ["host"]),
        ({"nvidia.com/mig.strategy": "none"}, {}, ["0"]),
        ({"nvidia.com/gpu.count": "2"}, {"from": "DevicePlugin"}, []),
        ({}, {"from": "HostMemory"}, ["host"]),
        ({"nvidia.com/gpu.count": "0"}, {"static": LISTED}, ["GPU-0", "GPU-1"]),
    ],
)
def test_the_first_way_that_a_node_offers(changes, devices, expected):
    found = all_ways().inventory(NodeFacts("node-1", labels=ONE | changes, memory=GI), a_pool(**devices), Use())
    assert [each.key.id for each in found] == expected


def test_a_listed_gpu_has_no_more_than_the_labels_say():
    found = all_ways().inventory(
        NodeFacts("node-1", labels=ONE | {"nvidia.com/gpu.count": "2", "nvidia.com/gpu.memory": "8192"}), a_pool(static=LISTED), Use()
    )
    assert {each.capacity for each in found} == {8 * GI}


@pytest.mark.parametrize("labels", [ONE, {}])
def test_a_foreign_pod_with_a_gpu_closes_the_nodes_devices(labels):
    devices = {} if labels else {"static": LISTED}
    found = all_ways().inventory(NodeFacts("node-1", labels=labels), a_pool(**devices), Use(gpus=1))
    assert {each.closed for each in found} == {reasons.FOREIGN_CLAIM}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"nvidia.com/gpu": "2", "memory": "1Gi"}, 2),
        ({"nvidia.com/gpu.shared": 1}, 1),
        ({"nvidia.com/mig-1g.5gb": "1"}, 1),
        ({"amd.com/gpu": "1"}, 0),
    ],
)
def test_what_counts_as_asking_for_a_gpu(limits, expected):
    assert gpu_requests({"containers": [{"resources": {"limits": limits}}]}) == expected


def bound(backends: Backends, node: NodeFacts, pool_: ModelPool, device: str) -> dict:
    backends.inventory(node, pool_, Use())
    devices = (DeviceKey("node-1", device),)
    binding = backends.bind("models", devices, DeviceKind.GPU, pool_)
    return server_pod(replica_request(devices=devices, device_kind=DeviceKind.GPU), ServerSettings(image="i"), binding)["spec"]


def env_of(spec: dict) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in spec["containers"][0]["env"]}


def test_a_pod_is_shown_its_gpu_by_environment_and_the_pools_runtime_class():
    spec = bound(all_ways(), NodeFacts("node-1", labels=ONE), a_pool(runtimeClassName="nvidia"), "0")
    assert env_of(spec)["NVIDIA_VISIBLE_DEVICES"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in env_of(spec)  # inside, the number may mean another one
    assert spec["runtimeClassName"] == "nvidia"
    assert {item["key"] for item in spec["tolerations"]} >= {"nvidia.com/gpu"}
    assert "nvidia.com/gpu" not in spec["containers"][0]["resources"]["limits"]


def test_on_a_time_sliced_gpu_each_pod_asks_for_a_slice():
    node = NodeFacts(
        "node-1", labels=ONE | {"nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.product": "NVIDIA-L4-SHARED"}, gpus={"nvidia.com/gpu": 4}
    )
    backends = all_ways()
    assert backends.inventory(node, a_pool(), Use())[0].product == "NVIDIA-L4"
    spec = bound(backends, node, a_pool(), "0")
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "NVIDIA_VISIBLE_DEVICES" not in env_of(spec)
    renamed = NodeFacts("node-1", labels=node.labels, gpus={"nvidia.com/gpu.shared": 4, "nvidia.com/gpu": 0})
    assert "nvidia.com/gpu.shared" in bound(all_ways(), renamed, a_pool(), "0")["containers"][0]["resources"]["limits"]


def test_a_listed_gpu_is_bound_by_uuid():
    spec = bound(all_ways(), NodeFacts("node-1"), a_pool(static=LISTED), "GPU-1")
    assert env_of(spec)["NVIDIA_VISIBLE_DEVICES"] == env_of(spec)["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert "runtimeClassName" not in spec
