"""ResourceSlices become whole pools, and devices that can be told from one another."""

from __future__ import annotations

import pytest
from tests.kube.gpu_world import DRIVER, device, device_class, resource_slice
from tests.kube.world import GI

from corral.kube.slices import SliceBook, Triple, class_facts, devices_of


def ids(book: SliceBook, node: str = "node-1") -> list[str]:
    return [each.id for each in book.of(node)]


def test_a_device_is_known_by_its_uuid_and_has_its_memory_and_product():
    [found] = devices_of(resource_slice(device(memory="24Gi", taints=[{"key": "broken", "effect": "NoSchedule"}])))
    assert (found.id, found.triple, found.memory, found.product) == ("GPU-0", Triple(DRIVER, "node-1", "gpu-0"), 24 * GI, "L4")
    assert found.taints == (("broken", "NoSchedule"),)
    assert found.selector() == f'device.attributes["{DRIVER}"].?uuid.orValue("") == "GPU-0"'


@pytest.mark.parametrize(
    ("attributes", "selector"),
    [
        (
            {"resource.kubernetes.io/pciBusID": {"string": "0000:3b:00.0"}},
            'device.attributes["resource.kubernetes.io"].?pciBusID.orValue("") == "0000:3b:00.0"',
        ),
        ({"pciAddr": {"string": "0000:3b:00.0"}}, f'device.attributes["{DRIVER}"].?pciAddr.orValue("") == "0000:3b:00.0"'),
        ({f"{DRIVER}/uuid": {"string": 'odd"one'}}, f'device.attributes["{DRIVER}"].?uuid.orValue("") == "odd\\"one"'),
    ],
)
def test_a_device_without_a_uuid_is_pinned_by_its_address(attributes, selector):
    [found] = devices_of(resource_slice(device(uuid=None, attributes=attributes)))
    assert found.selector() == selector
    assert found.id in {f"{DRIVER}/node-1/gpu-0", 'odd"one'}


def test_a_device_without_memory_is_none():
    assert devices_of(resource_slice({"name": "nic", "capacity": {}})) == ()


def test_a_pool_counts_when_all_its_slices_are_there():
    book = SliceBook()
    book.put(resource_slice(device("a", uuid="GPU-a"), name="s1", count=2))
    assert ids(book) == []
    assert book.put(resource_slice(device("b", uuid="GPU-b"), name="s2", count=2)) == {"node-1"}
    assert ids(book) == ["GPU-a", "GPU-b"]


def test_a_pool_that_is_half_published_anew_stays_what_it_was():
    book = SliceBook()
    book.put(resource_slice(device("a", uuid="GPU-a"), name="s1"))
    book.put(resource_slice(device("b", uuid="GPU-b"), name="s2", generation=2, count=2))
    assert ids(book) == ["GPU-a"]
    book.put(resource_slice(device("c", uuid="GPU-c"), name="s3", generation=2, count=2))
    assert ids(book) == ["GPU-b", "GPU-c"]
    book.remove("s1")
    assert ids(book) == ["GPU-b", "GPU-c"]


def test_a_pool_whose_last_slice_goes_is_gone():
    book = SliceBook()
    book.put(resource_slice(device()))
    assert book.remove("s1") == {"node-1"}
    assert ids(book) == []
    assert book.remove("s1") == set()


def test_pools_of_several_drivers_and_nodes_stay_apart():
    book = SliceBook()
    book.put(resource_slice(device(uuid="GPU-1"), name="s1"))
    book.put(resource_slice(device(uuid="GPU-2"), name="s2", node="node-2"))
    book.put(resource_slice(device(uuid="GPU-3"), name="s3", driver="other.example"))
    assert ids(book) == ["GPU-1", "GPU-3"]
    assert ids(book, "node-2") == ["GPU-2"]
    book.put(resource_slice(device(uuid="GPU-4"), name="s4", node="", pool="net"))
    assert book.nodes() == {"node-1", "node-2"}


@pytest.mark.parametrize(
    ("expression", "attributes", "takes"),
    [
        (f'device.driver == "{DRIVER}"', {}, True),
        ("device.driver == 'other.example'", {}, False),
        (f'device.driver == "{DRIVER}"', {"type": {"string": "mig"}}, False),
        (f'device.driver == "{DRIVER}" && device.attributes["{DRIVER}"].type == "mig"', {"type": {"string": "mig"}}, True),
        (f'device.driver == "{DRIVER}" && device.attributes["{DRIVER}"].type == "gpu"', {"type": {"string": "gpu"}}, True),
        (f'device.driver == "{DRIVER}" && device.attributes["{DRIVER}"].family == "ampere"', {"family": {"string": "ada"}}, False),
        ('device.driver == "x" || device.driver == "y"', {}, True),  # not understood: the scheduler has the last word
    ],
)
def test_a_class_takes_what_its_plain_comparisons_say(expression, attributes, takes):
    [found] = devices_of(resource_slice(device(attributes=attributes)))
    assert class_facts(device_class("c", expression)).takes(found) is takes
