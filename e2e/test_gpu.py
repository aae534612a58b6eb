"""GPUs that are not there, on two real kubelets: which model goes where, who makes way, what the pods are really shown, and what moves nobody.

Two nodes with two GPUs of 8Gi each, 0.5Gi of which stays free. The engines run on the CPU; everything up to them is as with real GPUs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from e2e.support import gpus
from e2e.support.ask import ask
from e2e.support.gpus import GI, SIX, SIZES, STRANGERS, TEAM_A, TEAM_B, Placement, Witness, model, placements, pods, uuid
from e2e.support.kubectl import Kubectl, conditions, until
from e2e.support.world import World

PAUSE = "localhost/corral-pause:1"


@pytest.fixture
def world(gpu_fleet: World, gpu_witness: Witness, request: pytest.FixtureRequest) -> Iterator[World]:
    gpus.remove_all(gpu_fleet)
    until("all GPUs are open", lambda: len(status_devices(gpu_fleet)) == 4, 60)
    yield gpu_fleet
    if getattr(request.node, "outcome", None) is not None and request.node.outcome.failed:
        tell(gpu_fleet)
    looker_on_says(gpu_witness)


def looker_on_says(found: Witness) -> None:
    assert not found.violations, "\n".join(dict.fromkeys(found.violations))


def tell(world: World) -> None:
    kubectl = world.kubectl
    for space in (TEAM_A, TEAM_B):
        for md in kubectl.list("md", space):
            for kind, condition in conditions(md).items():
                print(f"   {md['metadata']['name']}: {kind}={condition['status']} {condition['reason']}: {condition.get('message', '')}")
    print(kubectl.run("get", "pods,resourceclaims", "-A", "-o", "wide", check=False))
    print(kubectl.run("get", "events", "-A", "--sort-by=.lastTimestamp", check=False)[-4000:])
    print(kubectl.logs("corral-system", "app.kubernetes.io/component=operator", 120)[-12000:])


def status_devices(world: World) -> dict[str, dict]:
    status = (world.kubectl.get("modelpool", gpus.POOL) or {}).get("status") or {}
    return {device["id"]: device for device in status.get("devices") or []}


def apply(world: World, *names: str, space: str = TEAM_A, **spec) -> None:
    """Models by name, known to the gateway and estimated."""
    world.apply(*(model(name, SIZES[name] * GI, space, **spec) for name in names))
    world.kubectl.run("wait", "md", *names, "-n", space, "--for=condition=Ready", "--timeout=120s", timeout=130)


def load(world: World, *names: str) -> dict[str, Placement]:
    for name in names:
        assert ask(world, name) == f"I am {name}."
    return placements(world)


def claims(world: World, space: str) -> list[dict]:
    return world.kubectl.list("resourceclaims", space, "app.kubernetes.io/managed-by=corral")


def test_six_models_fill_four_gpus_tightly_and_a_seventh_evicts_the_right_one(world: World):
    apply(world, *SIX)
    found = load(world, *SIX)
    assert set(found) == set(SIX)
    together = Counter(it.devices for it in found.values())
    assert len(together) == 4
    assert found["dog"].devices == found["cat"].devices
    assert found["fox"].devices == found["bee"].devices
    assert found["dog"].claims == found["cat"].claims
    assert found["dog"].uid != found["cat"].uid
    in_use = {name for it in found.values() for name in it.claims}
    assert len(in_use) == 4
    for claim in claims(world, TEAM_A):
        if claim["metadata"]["name"] in in_use:
            assert len(claim["status"]["allocation"]["devices"]["results"]) == 1
    # The least recently used that makes enough room is bee: ant has been asked again since.
    load(world, "ant")
    apply(world, "gnu")
    after = load(world, "gnu")
    assert set(after) == set(SIX) - {"bee"} | {"gnu"}
    assert after["gnu"].devices == found["bee"].devices
    for name in set(SIX) - {"bee"}:
        assert (after[name].uid, after[name].devices) == (found[name].uid, found[name].devices)


def test_a_model_that_no_gpu_holds_is_split_over_two_and_one_that_no_node_holds_is_refused(world: World):
    def large(name: str) -> dict:
        found = model(name, 1 * GI, engine={"contextLength": 512, "kvTokens": 512, "microBatch": 64}, placement={"maxDevices": 2})
        found["spec"]["model"]["source"] = f"pvc://large/{name}.gguf"
        return found

    world.apply(large("elephant"), large("mammoth"))
    message = until("mammoth does not fit", lambda: stalled(world, "mammoth"), 120)
    assert "19.9Gi" in message or "20Gi" in message
    assert "margin" in message
    with pytest.raises(openai.APIStatusError) as error:
        ask(world, "mammoth")
    assert error.value.body["code"] == "does_not_fit"
    assert ask(world, "elephant") == "I am elephant."
    found = placements(world)["elephant"]
    assert len(found.devices) == 2
    assert len(found.claims) == 2
    assert sum(found.split) == 25  # 24 layers, and the output as one more
    assert abs(found.split[0] - found.split[1]) <= 1
    assert all(size <= gpus.CAPACITY - gpus.MARGIN for size in found.committed.values())
    # Each layer is on one of the two, and both carry the compute buffers and a context of their own.
    weights = 11.4 * GI
    assert weights < sum(found.committed.values()) < weights + 2.5 * GI


def stalled(world: World, name: str) -> str:
    condition = conditions(world.kubectl.get("md", name, TEAM_A)).get("Stalled", {})
    return condition.get("message", "") if condition.get("status") == "True" and condition["reason"] == "DoesNotFit" else ""


def stranger(name: str, device: str) -> list[dict]:
    """A claim that is none of ours on one GPU, and a pod that holds it."""
    expression = f'device.attributes["{gpus.CLASS}"].?uuid.orValue("") == "{device}"'
    request = {"name": "gpu", "exactly": {"deviceClassName": gpus.CLASS, "selectors": [{"cel": {"expression": expression}}]}}
    claim = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": STRANGERS},
        "spec": {"devices": {"requests": [request]}},
    }
    return [claim, pause(name, resources={"claims": [{"name": "gpu"}]}, claims=[{"name": "gpu", "resourceClaimName": name}])]


def pause(name: str, *, resources: dict, claims: list[dict] | None = None, node: str = "") -> dict:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "pause", "image": PAUSE, "imagePullPolicy": "Never", "resources": resources, "securityContext": security}
    spec: dict = {
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    if claims:
        spec["resourceClaims"] = claims
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": STRANGERS}, "spec": spec}


def wait_running(kubectl: Kubectl, *names: str) -> None:
    kubectl.run("wait", "pod", *names, "-n", STRANGERS, "--for=condition=Ready", "--timeout=60s", timeout=70)


def test_a_gpu_that_others_claimed_is_left_alone(world: World):
    taken = [uuid(1, 0), uuid(1, 1), uuid(2, 0)]
    world.apply(*(obj for number, device in enumerate(taken) for obj in stranger(f"stranger-{number}", device)))
    wait_running(world.kubectl, *(f"stranger-{number}" for number in range(3)))
    try:
        apply(world, "pig", "ram")
        assert load(world, "pig")["pig"].devices == (uuid(2, 1),)
        # The only GPU that is left is pig's, so pig has to go.
        after = load(world, "ram")
        assert set(after) == {"ram"}
        assert after["ram"].devices == (uuid(2, 1),)
    finally:
        world.kubectl.delete("pod", *(f"stranger-{number}" for number in range(3)), namespace=STRANGERS)
        world.kubectl.delete("resourceclaim", *(f"stranger-{number}" for number in range(3)), namespace=STRANGERS)


def test_a_driver_that_restarts_moves_nobody_and_gets_nothing_new_meanwhile(world: World):
    apply(world, "pig", "ram", "rat", "hen")
    before = load(world, "pig", "ram", "rat")
    alive = pods(world)
    gpus.control("stop", "node-1")
    try:
        until("the slice of node-1 is gone", lambda: slices(world) == {"node-2"}, 90)
        for name in before:
            assert ask(world, name) == f"I am {name}."
        after = load(world, "hen")
        assert after["hen"].node == "node-2"
    finally:
        gpus.control("start", "node-1")
    until("the slice of node-1 is back", lambda: slices(world) == {"node-1", "node-2"}, 60)
    for name in before:
        assert ask(world, name) == f"I am {name}."
    assert {uid: name for uid, name in pods(world).items() if not name.startswith("hen")} == alive
    assert {name: it.devices for name, it in placements(world).items() if name != "hen"} == {name: it.devices for name, it in before.items()}


def slices(world: World) -> set[str]:
    return {it["spec"]["nodeName"] for it in world.kubectl.json("get", "resourceslices")["items"] if it["spec"]["driver"] == gpus.CLASS}


def test_a_no_execute_taint_on_a_gpu_moves_its_models_and_no_others(world: World, cluster: dict[str, str]):
    apply(world, "pig", "ram")
    before = load(world, "pig", "ram")
    node, [device] = before["pig"].node, before["pig"].devices
    file = Path(cluster["CORRAL_E2E_STATE"]) / "gpus" / f"{node}.json"
    original = file.read_text()
    tainted = json.loads(original)
    for each in tainted:
        if each["uuid"] == device:
            each["taints"] = [{"key": "corral.test/broken", "effect": "NoExecute"}]
    try:
        rewrite(file, json.dumps(tainted))
        until("pig's pod is gone", lambda: before["pig"].uid not in pods(world), 60)
        after = load(world, "pig")
        assert after["pig"].devices != (device,)
        assert after["ram"].uid == before["ram"].uid
    finally:
        rewrite(file, original)


def rewrite(file: Path, text: str) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


def test_a_second_namespace_gets_a_gpu_that_the_first_ones_sleeping_pods_held(world: World):
    try:
        names = ["pig", "ram", "rat", "yak"]
        apply(world, *names)
        before = load(world, *names)
        assert len({it.devices for it in before.values()}) == 4
        world.apply(gpus.pool(idle={"sleepAfter": "3s", "stopAfter": "2h"}))
        until("all sleep", lambda: not placements(world), 90)
        alive = pods(world, TEAM_A)
        assert len(alive) == 4
        apply(world, "hen", space=TEAM_B)
        found = load(world, "hen")["hen"]
        [freed] = [name for name, it in before.items() if it.devices == found.devices]
        assert set(pods(world, TEAM_A)) == set(alive) - {before[freed].uid}
        [claim] = claims(world, TEAM_B)
        assert claim["metadata"]["name"] == found.claims[0]
        assert "ownerReferences" not in claim["metadata"]
        until("the first namespace's claim on it is deleted", lambda: len(claims(world, TEAM_A)) == 3, 90)
        # And back again: the claim changes hands by the deletion of the pod that holds it.
        assert ask(world, freed) == f"I am {freed}."
    finally:
        world.apply(gpus.pool())


def test_an_operator_that_restarts_changes_nothing(world: World):
    apply(world, "pig", "ram", "rat")
    before = load(world, "pig", "ram")
    kubectl = world.kubectl
    operators = [it["metadata"]["name"] for it in kubectl.list("pods", "corral-system", "app.kubernetes.io/component=operator")]
    kubectl.delete("pod", *operators, namespace="corral-system", wait=False)
    after = load(world, "rat", "pig", "ram")
    assert {name: it.uid for name, it in after.items() if name in before} == {name: it.uid for name, it in before.items()}
    assert len({it.devices for it in after.values()}) == 3
    gpus.remove_all(world)
    until("no claim of ours is left", lambda: not claims(world, TEAM_A), 90)


# --- without DRA


@pytest.fixture
def no_dra(gpu_fleet: World) -> Iterator[World]:
    gpus.remove_all(gpu_fleet)
    gpus.control("down")
    until("no slices", lambda: not slices(gpu_fleet), 60)
    yield gpu_fleet
    gpus.remove_all(gpu_fleet)
    gpu_fleet.kubectl.apply(gpus.pool())
    gpus.control("up")


def environment(world: World, name: str) -> dict[str, str]:
    return Witness._environment(placements(world)[name].uid)


def test_a_node_with_one_gpu_is_used_by_its_labels(no_dra: World):
    world, kubectl = no_dra, no_dra.kubectl
    labels = {"nvidia.com/gpu.count": "1", "nvidia.com/gpu.memory": "8192", "nvidia.com/gpu.product": "Fake-8G"}
    for node in world.nodes:
        kubectl.run("label", "node", node, *(f"{key}={value}" for key, value in labels.items()), "--overwrite")
        kubectl.run("patch", "node", node, "--subresource=status", "--type=merge", "-p", '{"status":{"capacity":{"nvidia.com/gpu":"1"}}}')
    kubectl.apply(gpus.pool(devices={"from": "DevicePlugin"}))
    try:
        until("both GPUs are known", lambda: set(status_devices(world)) == {"0"} and pool_devices(world) == 2, 60)
        apply(world, "pig", "ram", "hen")
        found = load(world, "pig", "ram")
        assert {it.node for it in found.values()} == set(world.nodes)
        assert environment(world, "pig")["NVIDIA_VISIBLE_DEVICES"] == "0"
        gpus.remove_all(world)
        apply(world, "hen", "ram")
        # A foreign pod was given the only GPU of node-1: it is not ours to use.
        kubectl.apply(pause("stranger", resources={"limits": {"nvidia.com/gpu": "1"}}, node="node-1"))
        wait_running(kubectl, "stranger")
        assert {it.node for it in load(world, "hen", "ram").values()} == {"node-2"}
    finally:
        kubectl.delete("pod", "stranger", namespace=STRANGERS)
        gpus.remove_all(world)
        for node in world.nodes:
            kubectl.run("label", "node", node, *(f"{key}-" for key in labels))
            kubectl.run("patch", "node", node, "--subresource=status", "--type=merge", "-p", '{"status":{"capacity":{"nvidia.com/gpu":null}}}')


def pool_devices(world: World) -> int:
    return int(((world.kubectl.get("modelpool", gpus.POOL) or {}).get("status") or {}).get("deviceCount") or 0)


def test_gpus_that_the_pool_lists_are_used_by_uuid(no_dra: World):
    world = no_dra
    listed = [{"node": f"node-{node}", "id": uuid(node, number), "memory": "8Gi"} for node in (1, 2) for number in (0, 1)]
    world.kubectl.apply(gpus.pool(devices={"from": "Static", "static": listed}))
    until("all GPUs are known", lambda: set(status_devices(world)) == {it["id"] for it in listed}, 60)
    names = ["cat", "dog", "pig", "ram"]
    apply(world, *names)
    found = load(world, *names)
    assert found["dog"].devices == found["cat"].devices
    assert len({it.devices for it in found.values()}) == 3
    for name in names:
        shown = environment(world, name)
        assert shown["NVIDIA_VISIBLE_DEVICES"] == shown["CUDA_VISIBLE_DEVICES"] == ",".join(found[name].devices)
        assert found[name].claims == ()
