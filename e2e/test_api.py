"""The CRDs on a real API server: accepted, and judging every sample word by word.

Needs nothing of Corral but the CRDs: where there are none it applies them, and takes them away again. It is the first of the end-to-end tests, before
an operator is there to write into the same objects. What it creates lives in a namespace of its own.
"""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from e2e.support.kubectl import Kubectl, KubectlError, until
from tests.support.samples import ROOT, Sample, samples

from corral.api.schema import DEFINITIONS

NAMESPACE = f"corral-crds-{secrets.token_hex(3)}"
NOT_CHECKED = "some validation rules were not checked because the object was invalid"
KINDS = {definition.model.KIND: definition.model for definition in DEFINITIONS}

CRDS = [f"{model.PLURAL}.corral.dev" for model in KINDS.values()]


def create(kube: Kubectl, obj: dict[str, Any]) -> dict[str, Any]:
    """What the API server would store; raises with its words."""
    return json.loads(kube.run("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=yaml.safe_dump(obj)))


@pytest.fixture(scope="module")
def kube(kubectl: Kubectl) -> Iterator[Kubectl]:
    there = all(kubectl.get("crd", name) for name in CRDS)
    if not there:
        kubectl.run("apply", "--server-side", "-f", str(ROOT / "crds"))
    kubectl.run("wait", "--for=condition=Established", "--timeout=30s", *(f"crd/{name}" for name in CRDS))
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    whole = next(sample for sample in samples("valid") if sample.name == "everything")
    until("the CRDs are served", lambda: _taken(kubectl, whole.obj), timeout=30)
    yield kubectl
    kubectl.run("delete", "md,gatewayreports", "--all", "-n", NAMESPACE, "--wait=false")
    kubectl.delete("namespace", NAMESPACE, wait=False)
    if not there:
        kubectl.delete("crd", *CRDS, wait=False)
        until("the CRDs are gone", lambda: not any(kubectl.get("crd", name) for name in CRDS), timeout=120)


def _taken(kube: Kubectl, obj: dict[str, Any]) -> bool:
    try:
        return bool(create(kube, obj))
    except KubectlError:
        return False


def deployment(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "corral.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"model": {"source": "hf://org/repo/file.gguf"}, **spec},
    }


@pytest.mark.parametrize("sample", samples("valid"), ids=lambda sample: sample.name)
def test_valid_samples_are_taken_and_mean_the_same(kube: Kubectl, sample: Sample) -> None:
    model = KINDS[sample.obj["kind"]]
    assert model.parse(create(kube, sample.obj), strict=True).model_dump(include={"spec"}) == model.parse(sample.obj).model_dump(include={"spec"})


@pytest.mark.parametrize("sample", samples("invalid"), ids=lambda sample: sample.name)
def test_invalid_samples_are_refused_word_by_word(kube: Kubectl, sample: Sample) -> None:
    with pytest.raises(KubectlError) as refused:
        create(kube, sample.obj)
    text = str(refused.value)
    if "strict decoding error" in text:
        assert text.endswith(sample.messages[0])
        return
    head = f'The {sample.obj["kind"]} "{sample.obj["metadata"]["name"]}" is invalid: '
    told = text[text.index(head) + len(head) :]
    lines = [line.removeprefix("* ") for line in told.splitlines() if line.startswith("* ")] or [told.strip()]
    assert sorted(line for line in lines if NOT_CHECKED not in line) == sorted(sample.messages)


def test_get_shows_what_a_person_asks_for(kube: Kubectl) -> None:
    kube.apply(deployment("columns"))
    condition = {"status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z", "message": "loaded on gpu-1"}
    status = {
        "conditions": [{**condition, "type": "Ready", "reason": "Loaded"}, {**condition, "type": "Loaded", "reason": "Loaded"}],
        "replicas": 2,
        "loadedReplicas": 2,
        "placements": [{"replica": f"columns-5f3a-{index}", "node": f"gpu-{index}", "state": "Loaded"} for index in (1, 2)],
        "memory": {"required": "536Mi", "estimated": {"total": "536Mi"}},
        "lastUsed": "2026-01-02T03:04:05Z",
    }
    write_status(kube, deployment("columns"), status)
    head, row = kube.run("get", "md", "columns", "-n", NAMESPACE).splitlines()
    assert head.split() == ["NAME", "READY", "STATE", "REPLICAS", "LOADED", "NODE", "MEMORY", "LASTUSED", "AGE"]
    assert row.split()[:7] == ["columns", "True", "Loaded", "2", "2", "gpu-1", "536Mi"]
    wide = kube.run("get", "md", "columns", "-n", NAMESPACE, "-o", "wide")
    assert wide.splitlines()[0].split()[-3:] == ["POOL", "SOURCE", "MESSAGE"]
    assert "loaded on gpu-1" in wide
    kube.run("wait", "--for=condition=Ready", "md/columns", "-n", NAMESPACE, "--timeout=5s")
    assert "columns" in kube.run("get", "corral", "-n", NAMESPACE)
    assert kube.run("get", "md", "-n", NAMESPACE, "--field-selector", "spec.pool=other").strip() == ""


def write_status(kube: Kubectl, obj: dict[str, Any], status: dict[str, Any], manager: str = "corral-operator") -> dict[str, Any]:
    told = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": obj["metadata"], "status": status}
    arguments = ("apply", "--server-side", "--subresource=status", f"--field-manager={manager}", "-o", "json", "-f", "-")
    return json.loads(kube.run(*arguments, stdin=yaml.safe_dump(told)))


def test_a_status_written_twice_changes_nothing(kube: Kubectl) -> None:
    kube.apply(deployment("status"))
    refused = [{"model": "qwen", "reason": "InFlight", "until": "2026-01-02T03:05:05Z"}]
    status = {
        "observedGeneration": 1,
        "explanation": {
            "reason": "WaitingForMemory",
            "message": "needs 41Gi",
            "need": "41Gi",
            "candidates": [{"node": "gpu-1", "devices": ["a", "b"], "capacity": "48Gi", "free": "3.1Gi", "margin": "1Gi", "refused": refused}],
            "more": 3,
            "next": {"at": "2026-01-02T03:05:05Z", "what": "the turn of qwen ends"},
        },
        "backoff": [{"node": "gpu-1", "failures": 2, "until": "2026-01-02T03:05:05Z", "reason": "LoadFailed", "message": "m"}],
        "estimate": {"ok": True, "source": "hf://org/repo/file.gguf", "total": 560000000, "perLayer": [[30, 2600000, 12582912]]},
        "wish": {"id": 7, "action": "Load", "gateway": "corral-gateway-x"},
    }
    first = write_status(kube, deployment("status"), status)
    again = write_status(kube, deployment("status"), status)
    assert first["status"] == status
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert first["metadata"]["generation"] == 1
    less = write_status(kube, deployment("status"), {"observedGeneration": 1})
    assert less["status"] == {"observedGeneration": 1}


def test_conditions_of_several_writers_live_side_by_side(kube: Kubectl) -> None:
    kube.apply(deployment("writers"))
    condition = {"status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"}
    write_status(kube, deployment("writers"), {"conditions": [{**condition, "type": "Ready"}]})
    both = write_status(kube, deployment("writers"), {"conditions": [{**condition, "type": "Audited"}]}, manager="someone-else")
    assert sorted(found["type"] for found in both["status"]["conditions"]) == ["Audited", "Ready"]


def test_scale_sets_the_floor(kube: Kubectl) -> None:
    kube.apply(deployment("scaled", scaling={"maxReplicas": 3}))
    kube.run("scale", "md/scaled", "-n", NAMESPACE, "--replicas=2")
    assert kube.json("get", "md", "scaled", "-n", NAMESPACE)["spec"]["scaling"]["minReplicas"] == 2
    with pytest.raises(KubectlError, match="maxReplicas must be at least minReplicas"):
        kube.run("scale", "md/scaled", "-n", NAMESPACE, "--replicas=4")


def test_explain_tells_units_and_defaults(kube: Kubectl) -> None:
    told = " ".join(kube.run("explain", "md.spec.engine.kvTokens").split())
    assert "Tokens of KV cache that all slots share" in told
    assert "Default: contextLength times the smaller of slots and 2." in told
    assert "in Kubernetes" not in kube.run("explain", "mp.spec.hold.timeout")


def test_applying_again_changes_nothing(kube: Kubectl) -> None:
    whole = next(sample for sample in samples("valid") if sample.name == "everything").obj
    mine = {**whole, "metadata": {"name": "again", "namespace": NAMESPACE}}
    kube.apply(mine)
    before = kube.json("get", "md", "again", "-n", NAMESPACE)["metadata"]["resourceVersion"]
    assert kube.run("diff", "-f", "-", stdin=yaml.safe_dump(mine)) == ""
    kube.apply(mine)
    assert kube.json("get", "md", "again", "-n", NAMESPACE)["metadata"]["resourceVersion"] == before


def test_a_gateway_report_is_replaced_whole(kube: Kubectl) -> None:
    def report(sequence: int, *models: dict[str, Any]) -> dict[str, Any]:
        told = {
            "apiVersion": "corral.dev/v1alpha1",
            "kind": "GatewayReport",
            "metadata": {"name": "corral-gateway-x", "namespace": NAMESPACE},
            "spec": {"sequence": sequence, "models": list(models)},
        }
        arguments = ("apply", "--server-side", "--field-manager=corral-gateway", "-o", "json", "-f", "-")
        return json.loads(kube.run(*arguments, stdin=yaml.safe_dump(told)))["spec"]

    wish = {"action": "Load", "id": 7}
    first = report(1, {"name": "models/a", "waiting": 3, "oldestWaitSeconds": 2, "wish": wish}, {"name": "models/b", "inFlight": 1})
    assert [found["name"] for found in first["models"]] == ["models/a", "models/b"]
    assert [found["name"] for found in report(2, {"name": "models/c"})["models"]] == ["models/c"]
