"""The memory is real: limits follow the footprint, requests follow the engine, and no event of the run breaks the sum."""

from __future__ import annotations

from e2e.support.ask import ask
from e2e.support.kubectl import until
from e2e.support.ledger import Witness, allocated, quantity
from e2e.support.world import MODELS, World, deployment


def test_a_sleeping_pod_gave_its_request_back_and_wakes_without_a_restart(world: World, witness: Witness):
    world.apply(*(deployment(name, world.sources[name]) for name in ("alpaca", "badger", "camel")))
    world.wait_ready("alpaca", "badger", "camel")
    ask(world, "alpaca")
    (awake,) = world.pods("alpaca")
    footprint = quantity(world.model("alpaca")["status"]["memory"]["estimated"]["total"]) - 1024 * 1024  # the status rounds up to whole Mi
    assert allocated(awake) >= footprint
    limit = quantity(awake["spec"]["containers"][0]["resources"]["limits"]["memory"])
    assert footprint < limit <= 2 * footprint + 512 * 1024 * 1024
    ask(world, "badger")
    ask(world, "camel")  # alpaca makes room
    asleep = until("alpaca's request is lowered", lambda: next((p for p in world.pods("alpaca") if allocated(p) < footprint), None), 20)
    assert asleep["metadata"]["uid"] == awake["metadata"]["uid"]
    ask(world, "badger")  # camel, on alpaca's node, is now the one that was not used for longest
    assert ask(world, "alpaca") == "I am alpaca."
    (again,) = world.pods("alpaca")
    assert again["metadata"]["uid"] == awake["metadata"]["uid"]
    assert again["status"]["containerStatuses"][0]["restartCount"] == 0
    assert allocated(again) >= footprint
    measured = quantity(world.model("alpaca")["status"]["memory"]["measured"]["total"])
    assert 0 < measured <= limit
    witness.assert_clean()
    world.remove_models()


def test_the_sums_held_at_every_event_so_far(witness: Witness):
    assert witness.events > 0
    witness.assert_clean()
    assert all(witness.highest[node] > 0 for node in witness.highest)


def test_deleting_a_model_leaves_nothing_behind(world: World):
    world.apply(deployment("badger", world.sources["badger"]))
    world.wait_ready("badger")
    ask(world, "badger")
    world.kubectl.delete("md", "badger", namespace=MODELS)

    def left() -> list[str]:
        text = world.kubectl.run("get", "pods,jobs,configmaps,resourceclaims,secrets,pvc", "-n", MODELS, "-o", "name", "--ignore-not-found")
        ours = ("configmap/kube-root-ca.crt", "persistentvolumeclaim/model-cache")
        return [name for name in text.split() if name not in ours and not name.startswith("secret/e2e-")]

    until("nothing is left", lambda: not left(), 60)
