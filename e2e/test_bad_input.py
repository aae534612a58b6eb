"""What users get wrong: each model ends Stalled with a reason that names the cause, others go on, and what can heal heals."""

from __future__ import annotations

import openai
import pytest
from e2e.support.ask import ask
from e2e.support.world import HUB_URL, MODELS, World, deployment


@pytest.fixture
def neighbour(world: World):
    world.apply(deployment("alpaca", world.sources["alpaca"]))
    world.wait_ready("alpaca")
    assert ask(world, "alpaca") == "I am alpaca."
    (pod,) = world.pods("alpaca")
    yield
    assert ask(world, "alpaca") == "I am alpaca."
    (same,) = world.pods("alpaca")
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    assert same["status"]["containerStatuses"][0]["restartCount"] == 0
    world.remove_models()


CASES = {
    "unreachable": (deployment("unreachable", "http://nowhere.hub.svc.cluster.local:8000/x.gguf"), {"SourceUnreachable"}, "nowhere.hub"),
    "missing": (deployment("missing", f"{HUB_URL}/files/missing.gguf"), {"SourceNotFound"}, "missing.gguf"),
    "not-a-gguf": (deployment("not-a-gguf", f"{HUB_URL}/faults/not-a-gguf"), {"NotAGGUF"}, "not-a-gguf"),
    "no-secret": (
        deployment("no-secret", f"{HUB_URL}/files/org/alpaca/alpaca.gguf", model={"secretRef": {"name": "absent"}}),
        {"SecretNotFound"},
        "absent",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_source_ends_stalled_with_its_cause_and_disturbs_nobody(world: World, neighbour, name: str):
    manifest, reasons, word = CASES[name]
    world.apply(manifest)
    stalled = world.wait_condition(name, "Stalled", "True", timeout=120)
    assert stalled["reason"] in reasons
    assert word in stalled["message"]
    assert world.condition(name, "Ready")["status"] == "False"
    with pytest.raises(openai.APIStatusError) as error:
        ask(world, name, max_retries=0)
    assert error.value.status_code == 503
    assert word in error.value.body["message"]


def test_a_wrong_checksum_ends_stalled_and_the_right_one_heals_it(world: World, neighbour):
    wrong = "0" * 64
    world.apply(deployment("checked", world.sources["badger"], model={"sha256": wrong}, scaling={"minReplicas": 1}))
    stalled = world.wait_condition("checked", "Stalled", "True", "ChecksumMismatch", timeout=120)
    assert wrong[:8] in stalled["message"]
    world.apply(deployment("checked", world.sources["badger"], scaling={"minReplicas": 1}))
    world.wait_condition("checked", "Ready", "True")
    assert ask(world, "checked") == "I am badger."


def test_a_source_that_comes_to_life_is_found_by_the_retry(world: World, neighbour):
    world.apply(deployment("later", f"http://later.{MODELS}.svc.cluster.local:8000/files/org/badger/badger.gguf"))
    world.wait_condition("later", "Stalled", "True", "SourceUnreachable", timeout=120)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "later", "namespace": MODELS},
        "spec": {"type": "ExternalName", "externalName": "hub.hub.svc.cluster.local"},
    }
    try:
        world.apply(service)
        world.wait_condition("later", "Ready", "True", timeout=180)
        assert ask(world, "later") == "I am badger."
    finally:
        world.kubectl.delete("service", "later", namespace=MODELS)
