"""One event costs what it touches, whatever there is beside it."""

import pytest
from tests.support.fake_world import MI, QUICK

from corral.control.projection import SLICE
from corral.control.rounds import SLICES, SMALLEST, Rounds
from corral.control.store import Store
from corral.domain.model import Device, DeviceKey, DeviceKind, Node
from corral.kube.ports import PodRecord

MODELS = 120


def model(number: int, generation: int = 1) -> dict:
    meta = {"namespace": "m", "name": f"m{number}", "uid": f"u{number}", "generation": generation, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": meta, "spec": {"model": {"source": f"https://x.test/{number}.gguf"}}}


def pod(number: int, version: int = 1) -> PodRecord:
    return PodRecord(
        namespace="m", name=f"m{number}-r-0", uid=f"p{number}", model=f"m/m{number}", revision="r", pool="default", node="n1", devices=("host",),
        owner_uid=f"u{number}", resource_version=str(version),
    )  # fmt: skip


@pytest.fixture
async def store() -> Store:
    found = Store(QUICK, lambda: 1000.0)
    found.put_pool({"metadata": {"name": "default", "uid": "p"}, "spec": {}})
    found.put_node(Node("n1", "default"), [Device(DeviceKey("n1", "host"), "default", DeviceKind.HOST, 1000 * MI, 0)])
    for number in range(MODELS):
        found.put_model(model(number))
        found.put_pod(pod(number))
    found.projection.refresh(1000.0)
    found.take_dirty_statuses()
    return found


def looked_at(store: Store, monkeypatch) -> list[str]:
    """Keys of whatever is translated from now on."""
    keys: list[str] = []
    put_model, put_replica = store.state.put_model, store.state.put_replica
    monkeypatch.setattr(type(store.state), "put_model", lambda _state, it: (keys.append(it.key), put_model(it)))
    monkeypatch.setattr(type(store.state), "put_replica", lambda _state, it: (keys.append(it.id), put_replica(it)))
    return keys


async def test_news_of_one_pod_translate_one_pod(store, monkeypatch):
    keys = looked_at(store, monkeypatch)
    store.put_pod(pod(7, version=2))
    store.projection.refresh(1000.0)
    assert keys == ["m/m7-r-0"]
    assert store.take_dirty_statuses() == {"m/m7"}


async def test_a_changed_spec_translates_its_model_and_its_pods(store, monkeypatch):
    keys = looked_at(store, monkeypatch)
    store.put_model(model(7, generation=2))
    store.projection.refresh(1000.0)
    assert sorted(keys) == ["m/m7", "m/m7-r-0"]
    assert store.take_dirty_statuses() == {"m/m7"}


async def test_a_report_and_a_node_translate_no_model(store, monkeypatch):
    keys = looked_at(store, monkeypatch)
    entry = {"name": "m/m9", "waiting": 1, "oldestWaitSeconds": 0}
    store.put_report({"metadata": {"namespace": "c", "name": "gw", "uid": "g"}, "spec": {"sequence": 1, "models": [entry]}})
    store.put_node(Node("n1", "default"), [Device(DeviceKey("n1", "host"), "default", DeviceKind.HOST, 999 * MI, 0)])
    store.projection.refresh(1000.0)
    assert keys == []
    assert store.take_dirty_statuses() == {"m/m9"}


async def test_nothing_new_translates_nothing(store, monkeypatch):
    keys = looked_at(store, monkeypatch)
    assert store.projection.refresh(1000.0) == set()
    assert keys == []


def test_a_round_takes_everything_once_in_slices_within_its_period():
    keys = [f"k{number}" for number in range(SLICES * SMALLEST + 10)]
    rounds, now, seen, begins = Rounds(30.0, lambda: keys, 0.0), 30.0, [], []
    assert rounds.at == 30.0
    while len(seen) < len(keys):
        taken, begun = rounds.take(now)
        assert len(taken) <= len(keys) // SLICES + 1
        seen += taken
        begins.append(begun)
        now = rounds.at
    assert seen == keys
    assert begins == [True] + [False] * (len(begins) - 1)
    assert now <= 61.0
    assert rounds.take(now)[1] is True


def test_a_small_fleet_is_looked_at_in_one_go():
    rounds = Rounds(30.0, lambda: ["a", "b"], 0.0)
    assert rounds.take(30.0) == (["a", "b"], True)
    assert rounds.at == 60.0
    assert Rounds(30.0, list, 0.0).take(30.0) == ([], True)


async def test_a_deletion_that_nobody_sees_is_not_believed_for_ever(store):
    store.expect_gone("m/m3-r-0", "p3", 1030.0)
    store.projection.refresh(1000.0)
    assert store.state.replicas["m/m3-r-0"].deleting
    assert store.projection.next_time(1000.0) == 1030.0
    assert store.projection.refresh(1030.0) == {"m/m3-r-0"}
    assert not store.state.replicas["m/m3-r-0"].deleting
    assert store.projection.next_time(1030.0) is None


async def test_an_order_to_delete_says_nothing_of_a_namesake(store):
    store.expect_gone("m/m3-r-0", "another", 1030.0)
    store.projection.refresh(1000.0)
    assert not store.state.replicas["m/m3-r-0"].deleting


async def test_a_burst_of_models_is_taken_in_in_slices(store, monkeypatch):
    keys = looked_at(store, monkeypatch)
    for number in range(MODELS):
        store.put_model(model(number, generation=2))
    steps = store.projection.slices(1000.0)
    for _ in range(2):
        next(steps)
    assert len(keys) == SLICE, "the names of all come first"
    store.put_model(model(3, generation=3))  # one that has been taken in
    store.put_model(model(119, generation=3))  # one that has not
    assert list(steps) == []
    assert len(keys) == MODELS
    assert store.dirty.models == {"m/m3", "m/m119"}
    store.projection.refresh(1000.0)
    assert store.state.models["m/m3"].generation == 3
    assert store.state.models["m/m119"].generation == 3


async def test_a_model_that_cannot_be_taken_in_loses_no_other(store, monkeypatch):
    for number in range(MODELS):
        store.put_model(model(number, generation=2))
    put_model = store.state.put_model
    seen: list[str] = []

    def stumble(_state: object, it) -> None:
        seen.append(it.key)
        if len(seen) == 5:
            raise RuntimeError(it.key)
        put_model(it)

    monkeypatch.setattr(type(store.state), "put_model", stumble)
    with pytest.raises(RuntimeError):
        list(store.projection.slices(1000.0))
    assert len(store.dirty.models) == MODELS - 5
    assert not store.dirty.models & set(seen)
