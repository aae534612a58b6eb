"""What this machine has to give, by flag, by pool and by measurement."""

import psutil
import pytest

from corral.api.modelpool import ModelPool
from corral.domain.model import DeviceKey, DeviceKind
from corral.local.devices import DeviceArgumentError, inventory, node_and_devices, parse_device

GI = 1 << 30


def pool(**spec):
    return ModelPool.parse({"metadata": {"name": "p"}, "spec": spec})


def test_named_devices_are_gpus_and_host_is_main_memory():
    found = inventory(["gpu0=8Gi", "host=16Gi"])
    assert [(arena.id, arena.kind, arena.capacity) for arena in found.arenas] == [
        ("gpu0", DeviceKind.GPU, 8 * GI),
        ("host", DeviceKind.HOST, 16 * GI),
    ]
    _, devices = node_and_devices(found, pool(memoryMargin="512Mi"), named=True)
    assert [(device.key, device.usable) for device in devices] == [
        (DeviceKey("local", "gpu0"), 8 * GI - GI // 2),
        (DeviceKey("local", "host"), 16 * GI - GI // 2),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [("gpu0", "NAME=SIZE, such as gpu0=8Gi"), ("gpu0=8Gb", "'8Gb' is not a quantity"), ("gpu0=0", "more than 0 bytes"), ("=8Gi", "NAME=SIZE")],
)
def test_a_bad_device_says_what_would_be_right(text, told):
    with pytest.raises(DeviceArgumentError, match=told):
        parse_device(text)


def test_a_device_is_named_once():
    with pytest.raises(DeviceArgumentError, match="gpu0 is given 2 times"):
        inventory(["gpu0=8Gi", "gpu0=9Gi"])


def test_without_a_gpu_main_memory_less_a_reserve_is_the_device():
    (arena,) = inventory([]).arenas
    if arena.kind is not DeviceKind.HOST:
        pytest.skip("this machine has a GPU")
    assert 0 < arena.capacity < psutil.virtual_memory().total


def test_a_pools_capacity_of_host_memory_counts_where_nothing_was_named():
    chosen = pool(devices={"from": "HostMemory", "hostMemory": {"capacity": "1Gi"}})
    assert node_and_devices(inventory(["host=2Gi"]), chosen, named=False)[1][0].capacity == GI
    assert node_and_devices(inventory(["host=2Gi"]), chosen, named=True)[1][0].capacity == 2 * GI
