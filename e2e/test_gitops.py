"""What GitOps tools look at: nothing moves at rest, a second apply changes nothing, and Ready tells about validity, not about traffic."""

from __future__ import annotations

import time

import yaml
from e2e.support.ask import ask
from e2e.support.kubectl import conditions, until
from e2e.support.world import MODELS, SYSTEM, World, deployment

EVERYTHING = "md,mp,gwr,pods,jobs,services,endpointslices,configmaps,secrets,deployments,replicasets,resourceclaims,pvc,pv,events"


def versions(world: World) -> dict[str, str]:
    found = {}
    for namespace in (MODELS, SYSTEM):
        for item in world.kubectl.json("get", EVERYTHING, "-n", namespace)["items"]:
            meta = item["metadata"]
            found[f"{item['kind']}/{meta.get('namespace', '')}/{meta['name']}"] = meta["resourceVersion"]
    return found


def test_a_second_apply_changes_nothing_and_nothing_moves_at_rest(world: World):
    manifests = [deployment("alpaca", world.sources["alpaca"]), deployment("badger", world.sources["badger"])]
    world.apply(*manifests)
    world.wait_ready("alpaca", "badger")
    ask(world, "alpaca")
    until("alpaca is loaded in its status", lambda: world.loaded() == {"alpaca"}, 20)
    text = yaml.safe_dump_all(manifests)
    assert world.kubectl.run("diff", "-f", "-", stdin=text) == ""
    time.sleep(15)  # the last writes that the traffic caused (last used, reports) settle
    before = versions(world)
    assert "unchanged" in world.kubectl.run("apply", "-f", "-", stdin=text)
    time.sleep(30)
    after = versions(world)
    assert {k: (before.get(k), v) for k, v in after.items() if before.get(k) != v} == {}
    assert set(before) == set(after)
    world.remove_models()


def test_ready_does_not_change_when_a_request_wakes_a_model(world: World):
    world.apply(deployment("alpaca", world.sources["alpaca"]))
    world.wait_ready("alpaca")
    before = conditions(world.model("alpaca"))["Ready"]
    ask(world, "alpaca")
    until("it is loaded", lambda: world.loaded() == {"alpaca"}, 20)
    after = conditions(world.model("alpaca"))
    assert after["Ready"] == before
    assert after["Reconciling"]["status"] == "False"
    assert after["Stalled"]["status"] == "False"
    world.remove_models()


def test_status_belongs_to_the_operator_and_spec_to_the_user(world: World):
    world.apply(deployment("alpaca", world.sources["alpaca"]))
    world.wait_ready("alpaca")
    ask(world, "alpaca")
    managers = {
        entry["manager"]: entry
        for entry in world.kubectl.json("get", "md", "alpaca", "-n", MODELS, "--show-managed-fields")["metadata"]["managedFields"]
    }
    for name, entry in managers.items():
        if name.startswith("corral"):
            assert entry.get("subresource") == "status", f"{name} wrote more than the status"
            assert "f:spec" not in entry["fieldsV1"]
            assert "f:metadata" not in entry["fieldsV1"]
    world.remove_models()
