"""What a foreign pod takes of a node, as the scheduler counts it, and the sums per node."""

from __future__ import annotations

import pytest
from tests.kube.world import GI, MI

from corral.kube.foreign import ForeignUse, Use, memory_request, trim


def wants(memory: str | None, **more) -> dict:
    return {"name": more.pop("name", "c"), "resources": {"requests": {"memory": memory}} if memory else {}} | more


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"containers": [wants("1Gi"), wants("512Mi", name="d")]}, 1536 * MI),
        ({"containers": [wants(None)]}, 0),
        ({"containers": [wants("1Gi")], "initContainers": [wants("3Gi", name="i")]}, 3 * GI),
        ({"containers": [wants("1Gi")], "initContainers": [wants("1Gi", name="s", restartPolicy="Always")]}, 2 * GI),
        (
            {
                "containers": [wants("1Gi")],
                "initContainers": [wants("1Gi", name="s", restartPolicy="Always"), wants("2Gi", name="i")],
            },
            3 * GI,
        ),
        ({"containers": [wants("1Gi")], "overhead": {"memory": "100Mi"}}, 1124 * MI),
        ({"containers": [wants("1Gi")], "resources": {"requests": {"memory": "4Gi"}}}, 4 * GI),
        ({"containers": [wants("1e9")]}, 10**9),
        ({"containers": [wants("1500m")]}, 2),
    ],
)
def test_requests(spec, expected):
    assert memory_request(spec) == expected


def test_a_resize_counts_at_its_larger_side():
    lowering = {"containerStatuses": [{"name": "c", "allocatedResources": {"memory": "2Gi"}}]}
    assert memory_request({"containers": [wants("1Gi")]}, lowering) == 2 * GI
    assert memory_request({"containers": [wants("3Gi")]}, lowering) == 3 * GI


def foreign_pod(name: str, node: str, memory: str) -> dict:
    return trim({"metadata": {"name": name, "namespace": "other", "uid": name}, "spec": {"nodeName": node, "containers": [wants(memory)]}})


class Book:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.use = ForeignUse(None, self.told.append, lambda: self.told.append("synced"))


def test_sums_follow_pods_that_come_change_and_go():
    book = Book()
    book.use.put(foreign_pod("a", "node-1", "1Gi"))
    book.use.put(foreign_pod("b", "node-1", "2Gi"))
    assert book.told == []  # nothing is said of a list that is not complete
    book.use._first_list()
    assert book.use.of("node-1") == Use(3 * GI, 2)
    book.use.put(foreign_pod("b", "node-1", "2Gi"))
    assert book.told == ["synced"]
    book.use.put(foreign_pod("b", "node-1", "1Gi"))
    assert book.use.of("node-1") == Use(2 * GI, 2)
    book.use.remove("other", "a", "a")
    book.use.remove("other", "a", "a")
    assert book.use.of("node-1") == Use(1 * GI, 1)
    book.use.remove("other", "b", "b")
    assert book.use.of("node-1") == Use()
    assert book.told == ["synced", "node-1", "node-1", "node-1"]
