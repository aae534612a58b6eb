"""Nodes, pools and foreign use put together: what the sink is told of, and when."""

from __future__ import annotations

import pytest
from tests.kube.test_foreign import foreign_pod
from tests.kube.world import GI, MI, RememberingSink, node, pool

from corral.api.modelpool import ModelPool
from corral.domain.model import DeviceKey, DeviceKind
from corral.kube.devices import Backends
from corral.kube.membership import Pools, pool_of
from corral.kube.nodes import NodeBook, trim


class Cluster:
    def __init__(self) -> None:
        self.sink = RememberingSink()
        self.pools = Pools()
        self.book = NodeBook(None, self.sink, Backends(), self.pools)

    def node(self, *args, **kwargs) -> None:
        self.book._put(trim(node(*args, **kwargs)))

    def sync(self) -> None:
        for source in ("nodes", "pools", "foreign"):
            self.book._arrived(source)
        self.book.foreign._synced = True

    def device(self, name: str = "node-1"):
        [device] = self.sink.nodes[name][1]
        return device


def test_nothing_is_said_before_everything_is_listed():
    cluster = Cluster()
    cluster.node()
    cluster.book.foreign.put(foreign_pod("a", "node-1", "6Gi"))
    cluster.book._arrived("nodes")
    cluster.book.pools_synced()
    assert cluster.sink.said == []
    cluster.book._arrived("foreign")
    assert cluster.sink.said == [("node", "node-1"), ("synced", "nodes")]
    assert cluster.device().capacity == 10 * GI


def test_host_memory_is_what_foreign_pods_leave():
    cluster = Cluster()
    cluster.node()
    cluster.sync()
    device = cluster.device()
    assert (device.key, device.kind, device.capacity, device.margin) == (DeviceKey("node-1", "host"), DeviceKind.HOST, 16 * GI, GI)
    cluster.book.foreign.put(foreign_pod("a", "node-1", "20Gi"))
    assert cluster.device().capacity == 0
    assert cluster.sink.nodes["node-1"][0].pod_slots == 109


@pytest.mark.parametrize(("written", "expected"), [("4Gi", 4 * GI), ("100Gi", 16 * GI)])
def test_a_written_capacity_bounds_what_is_there(written, expected):
    cluster = Cluster()
    cluster.pools.put_pool(pool(devices={"hostMemory": {"capacity": written}}, memoryMargin="256Mi"))
    cluster.node()
    cluster.sync()
    assert (cluster.device().capacity, cluster.device().margin) == (expected, 256 * MI)


def test_a_heartbeat_says_nothing_and_a_change_does():
    cluster = Cluster()
    cluster.node()
    cluster.sync()
    cluster.sink.said.clear()
    cluster.node()
    assert cluster.sink.said == []
    cluster.node(ready="False")
    found, _ = cluster.sink.nodes["node-1"]
    assert (found.ready, found.not_ready_since) == (False, 1767225610.0)
    cluster.node(unschedulable=True, taints=[{"key": "a", "effect": "NoExecute"}])
    found, _ = cluster.sink.nodes["node-1"]
    assert (found.schedulable, found.taints[0].key, found.taints[0].effect, found.not_ready_since) == (False, "a", "NoExecute", None)


def test_static_devices_come_from_the_pool_and_go_with_it():
    cluster = Cluster()
    listed = [{"node": "node-1", "id": "GPU-1", "memory": "24Gi", "product": "L4"}, {"node": "node-2", "id": "0", "memory": "8Gi"}]
    cluster.pools.put_pool(pool(devices={"from": "Static", "static": listed}, memoryMargins=[{"product": "L4", "margin": "512Mi"}]))
    cluster.node()
    cluster.node("node-3")
    cluster.sync()
    assert (cluster.device().key.id, cluster.device().kind, cluster.device().margin) == ("GPU-1", DeviceKind.GPU, 512 * MI)
    assert cluster.sink.nodes["node-3"][1] == ()
    cluster.pools.remove_pool("default")
    assert cluster.device().kind == DeviceKind.HOST


def test_a_node_that_leaves():
    cluster = Cluster()
    cluster.node()
    cluster.sync()
    cluster.book._remove("", "node-1", "uid-node-1")
    assert cluster.sink.said[-1] == ("no node", "node-1")


def test_a_pool_that_changes_moves_its_nodes():
    cluster = Cluster()
    cluster.node(labels={"kind": "big"})
    cluster.sync()
    assert cluster.sink.nodes["node-1"][0].pool == "default"
    cluster.pools.put_pool(pool("big", nodeSelector={"kind": "big"}))
    assert cluster.sink.nodes["node-1"][0].pool == "big"
    cluster.pools.put_pool(pool("other", nodeSelector={"kind": "other"}))
    cluster.pools.remove_pool("big")
    assert cluster.sink.nodes["node-1"] == (cluster.sink.nodes["node-1"][0], ())
    assert cluster.sink.nodes["node-1"][0].pool == ""


def parsed(*objects):
    return [ModelPool.parse(item) for item in objects]


EMPTY_OLD = pool("a", "2026-01-01T00:00:00Z")
EMPTY_NEW = pool("b", "2026-01-02T00:00:00Z")
BIG_NEW = pool("c", "2026-01-03T00:00:00Z", nodeSelector={"kind": "big"})
BIG_OLD = pool("z", "2026-01-02T00:00:00Z", nodeSelector={"kind": "big"})
BIG_TWIN = pool("d", "2026-01-03T00:00:00Z", nodeSelector={"kind": "big"})


@pytest.mark.parametrize(
    ("pools", "labels", "winner", "losers"),
    [
        ([EMPTY_NEW, EMPTY_OLD], {}, "a", ("b",)),
        ([EMPTY_OLD, BIG_NEW], {"kind": "big"}, "c", ()),
        ([EMPTY_OLD, BIG_NEW], {"kind": "small"}, "a", ()),
        ([BIG_NEW, BIG_OLD], {"kind": "big"}, "z", ("c",)),
        ([BIG_TWIN, BIG_NEW], {"kind": "big"}, "c", ("d",)),
        ([BIG_NEW], {}, None, ()),
    ],
)
def test_a_node_belongs_to_one_pool(pools, labels, winner, losers):
    found, overlapping = pool_of(labels, parsed(*pools))
    assert (found.metadata.name if found else None, overlapping) == (winner, losers)


def test_the_sink_learns_which_pools_would_have_the_node_too():
    cluster = Cluster()
    for name, selector in (("gold", {"tier": "a"}), ("silver", {"tier": "a"}), ("rest", {})):
        cluster.pools.put_pool(pool(name, nodeSelector=selector))
    cluster.node(labels={"tier": "a"})
    cluster.sync()
    found = cluster.sink.nodes["node-1"][0]
    assert (found.pool, found.overlapping) == ("gold", ("silver",))
    cluster.pools.remove_pool("gold")
    found = cluster.sink.nodes["node-1"][0]
    assert (found.pool, found.overlapping) == ("silver", ())
