"""What the store makes of stale, early and repeated news, and what a new leader reads back."""

from dataclasses import replace

import pytest
from tests.support.fake_world import MI, QUICK

from corral.api.mdstatus import ModelDeploymentStatus
from corral.control.facts import NEVER, Facts
from corral.control.observation import SupervisorStatus
from corral.control.pods import Order
from corral.control.settings import ControlSettings
from corral.control.store import Store
from corral.domain import reasons
from corral.domain.backoff import delay
from corral.domain.model import DeviceKey, ReplicaState
from corral.kube.ports import COMMIT, PodRecord

HOST = DeviceKey("n1", "host")


def pod(version: int, **more) -> PodRecord:
    values = {"revision": "r1", "pool": "default", "node": "n1", "devices": ("host",), "owner_uid": "md-a", "memory_request": 10 * MI}
    return PodRecord(namespace="m", name="a-r1-0", uid="pod-1", model="m/a", resource_version=str(version), **(values | more))


@pytest.fixture
async def store() -> Store:
    return Store(QUICK, lambda: 1000.0)


async def test_an_older_version_from_the_watch_does_not_take_a_commitment_back(store):
    store.put_pod(pod(5))
    store.put_pod(pod(9, annotations={COMMIT: '{"epoch": 1, "devices": {"host": 104857600}}'}))
    store.put_pod(pod(7))
    store.projection.refresh(1000.0)
    assert store.state.used == {HOST: 100 * MI}


async def test_an_order_counts_before_the_world_has_answered(store):
    store.put_pod(pod(5))
    store.order("m/a-r1-0", Order("Load", "Requested", 1000.0, {HOST: 100 * MI}))
    store.projection.refresh(1000.0)
    assert store.state.used == {HOST: 100 * MI}
    store.order("m/a-r1-0", None)
    store.projection.refresh(1000.0)
    assert store.state.used == {HOST: 10 * MI}


async def test_the_removal_of_a_namesake_removes_nobody_else(store):
    store.put_pod(pod(5))
    store.remove_pod("m", "a-r1-0", "pod-0")
    assert "m/a-r1-0" in store.pods
    store.remove_pod("m", "a-r1-0", "pod-1")
    store.projection.refresh(1000.0)
    assert store.state.replicas == {}
    assert store.state.used == {}


async def test_a_supervisor_that_answers_again_as_before_is_reachable_again(store):
    """Else its model waits for ever: nothing else about a sleeping pod changes."""
    says = SupervisorStatus(version=3, state=ReplicaState.SLEEPING, epoch=1)

    def reachable() -> bool:
        store.projection.refresh(1000.0)
        return store.state.replicas["m/a-r1-0"].reachable

    store.put_pod(pod(5, host="10.0.0.1"))
    store.put_supervisor("m/a-r1-0", "pod-1", says)
    assert reachable()
    store.lost_supervisor("m/a-r1-0", "pod-1")
    assert not reachable()
    store.wake.clear()
    store.put_supervisor("m/a-r1-0", "pod-1", says)
    assert reachable()
    assert store.wake.is_set()


async def test_a_status_that_comes_back_wakes_nobody(store):
    model = {"metadata": {"namespace": "m", "name": "a", "uid": "1", "generation": 1}, "spec": {"model": {"source": "https://x.test/a.gguf"}}}
    store.put_model(model)
    store.wake.clear()
    store.put_model({**model, "status": {"replicas": 1}})
    assert not store.wake.is_set()
    assert store.deployments["m/a"].packed.status == {"replicas": 1}
    store.put_model({**model, "metadata": {**model["metadata"], "generation": 2}})
    assert store.wake.is_set()


async def test_an_unknown_source_is_refused(store):
    with pytest.raises(ValueError, match="there is no source 'secrets'"):
        store.synced("secrets")


async def test_a_commitment_that_cannot_be_read_is_still_there_to_be_cleared(store):
    store.put_pod(pod(5, annotations={COMMIT: "{broken"}))
    assert store.pods["m/a-r1-0"].commitment is not None
    store.put_pod(replace(pod(6), annotations={}))
    assert store.pods["m/a-r1-0"].commitment is None


def restored(generation: int = 3, key: str = "k", **status) -> Facts:
    return Facts.restore("uid", generation, key, ModelDeploymentStatus.model_validate({"observedGeneration": 3, **status}))


def test_a_new_leader_reads_back_what_must_outlive_the_old_one():
    facts = restored(
        servedNames=["m/a", "a"],
        evictions=4,
        queueSince="2026-01-01T00:00:01.500Z",
        queueUntil="2026-01-01T00:01:00Z",
        backoff=[{"node": "n1", "failures": 2, "until": "2026-01-01T00:00:10Z", "reason": "LoadFailed", "message": "x"}],
        estimate={"ok": True, "settings": "k", "weights": 100, "kvCache": 20, "compute": 3, "overhead": 0, "perLayer": [[2, 50, 10]]},
        memory={"measured": {"total": "1Mi", "residue": "2Mi"}},
    )
    assert (facts.served_names, facts.evictions) == (("m/a", "a"), 4)
    assert (facts.queue_since, facts.queue_until) == (1_767_225_601.5, 1_767_225_660.0)
    assert (facts.failures["n1"].failures, facts.failures["n1"].until) == (2, 1_767_225_610.0)
    footprint = facts.footprint(QUICK)
    assert footprint is not None
    assert (footprint.estimated, footprint.measured, footprint.layers) == (123, MI, ((2, 50, 10),))
    assert facts.residue == 2 * MI


def test_an_estimate_of_another_file_or_setting_is_not_taken_over():
    assert restored(key="other", estimate={"ok": True, "settings": "k", "weights": 100}).footprint(QUICK) is None


def test_failures_of_an_older_spec_are_forgotten():
    stalled = [{"type": "Stalled", "status": "True", "reason": "ChecksumMismatch", "message": "no", "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    kept = restored(conditions=stalled)
    assert kept.blocked is not None
    assert (kept.blocked.reason, kept.blocked.until) == ("ChecksumMismatch", NEVER)
    assert restored(generation=4, conditions=stalled).blocked is None
    kept.respecified(4, "k")
    assert kept.blocked is None


def test_the_pause_after_a_failure_grows_and_a_success_ends_it():
    facts = Facts("uid")
    for count in (1, 2, 3):
        facts.failed_on("n1", reasons.LOAD_FAILED, "x", 100.0, QUICK)
        assert facts.failures["n1"].until == pytest.approx(100.0 + QUICK.failure_backoff * 2 ** (count - 1))
    facts.failed_on("n2", reasons.OUT_OF_MEMORY, "x", 100.0, QUICK)
    assert facts.failures["n2"].until == 100.0, "tried again at once, with more room"


def test_a_load_that_succeeds_elsewhere_makes_the_model_well_and_the_node_is_left_alone_for_its_time():
    facts = Facts("uid")
    facts.failed_on("n1", reasons.LOAD_FAILED, "x", 100.0, QUICK)
    until = facts.failures["n1"].until
    facts.loaded_on("n2", SupervisorStatus(version=1, state=ReplicaState.LOADED), until - 0.01)
    facts.forget_healed(until - 0.01)
    assert [entry.node for entry in facts.backoff()] == ["n1"]
    facts.forget_healed(until)
    assert facts.backoff() == ()


def test_what_is_over_but_not_healed_stays_known():
    facts = Facts("uid")
    facts.failed_on("n1", reasons.LOAD_FAILED, "x", 100.0, QUICK)
    facts.forget_healed(10_000.0)
    assert [entry.node for entry in facts.backoff()] == ["n1"], "the last load failed"
    facts.loaded_on("n2", SupervisorStatus(version=1, state=ReplicaState.LOADED), 10_000.0)
    assert facts.backoff() == ()


def test_the_pauses_are_those_of_the_decision():
    facts, settings = Facts("uid"), ControlSettings()
    for count in (1, 2, 3):
        facts.failed_on("n1", reasons.LOAD_FAILED, "x", 100.0, settings)
        assert facts.failures["n1"].until == 100.0 + delay(count)
    facts.block(reasons.SOURCE_UNREACHABLE, "x", 100.0, settings, retry=True)
    assert facts.blocked is not None
    assert facts.blocked.until == 100.0 + delay(1)


async def test_a_status_that_nobody_can_read_stands_in_no_models_way(world, lead):
    """A leader that takes over finds it; the model is served, and its status is written anew."""
    world.node("n1", 150 * MI)
    a = world.model("a", 100 * MI)
    world.models[a]["status"] = {"observedGeneration": "seven"}
    lead()
    assert await world.answered(a)
    await world.until(lambda: world.status(a).get("observedGeneration") == 1)
