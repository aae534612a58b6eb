"""Pod objects as the kubelet and the scheduler write them, and the records that come of them."""

from __future__ import annotations

import pytest
from tests.kube.world import GI, MI

from corral.domain import reasons
from corral.kube.pods import missing_secret, record, trim


def pod(status: dict | None = None, **spec) -> dict:
    return {
        "metadata": {
            "name": "small-abc123-0",
            "namespace": "models",
            "uid": "p-1",
            "resourceVersion": "42",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"corral.dev/model": "small", "corral.dev/revision": "abc123", "corral.dev/pool": "default"},
            "annotations": {"corral.dev/devices": '["host"]', "corral.dev/commit": "{}"},
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {
            "containers": [
                {
                    "name": "server",
                    "env": [{"name": "CORRAL_SPEC", "value": "x" * 4000}],
                    "resources": {"requests": {"memory": "128Mi"}, "limits": {"memory": "1Gi"}},
                    "ports": [{"name": "inference", "containerPort": 9080}, {"name": "control", "containerPort": 9081}],
                }
            ]
        }
        | spec,
        "status": status or {"phase": "Pending"},
    }


def container(state: dict, **more) -> dict:
    return {"phase": "Running", "podIP": "10.0.0.7", "containerStatuses": [{"name": "server", "state": state, "restartCount": 2} | more]}


def read(status: dict | None = None, **spec):
    return record(trim(pod(status, **spec)))


def test_trimmed_objects_lose_what_is_large():
    trimmed = trim(pod())
    assert "managedFields" not in trimmed["metadata"]
    assert "env" not in trimmed["spec"]["containers"][0]


def test_a_running_pod():
    found = read(container({"running": {}}, allocatedResources={"cpu": "100m", "memory": "128Mi"}), nodeName="node-1")
    assert (found.node, found.scheduled, found.running, found.host) == ("node-1", True, True, "10.0.0.7")
    assert (found.inference_port, found.control_port, found.restarts) == (9080, 9081, 2)
    assert (found.memory_request, found.memory_wanted, found.resize_pending) == (128 * MI, 128 * MI, "")
    assert found.devices == ("host",)


@pytest.mark.parametrize(
    ("status", "granted"),
    [
        (None, 0),
        (container({"waiting": {"reason": "ContainerCreating"}}), 0),  # nothing is granted before the kubelet says so
        (container({"running": {}}), 128 * MI),  # a kubelet that knows no resize: what the spec says holds
        (container({"running": {}}, allocatedResources={"memory": "64Mi"}), 64 * MI),
        (container({"running": {}}, allocatedResources={"memory": "2Gi"}), 2 * GI),
        (container({"waiting": {"reason": "CrashLoopBackOff"}}, allocatedResources={"memory": "64Mi"}), 64 * MI),
        (container({"running": {}}, allocatedResources={"cpu": "1"}), 0),
    ],
)
def test_memory_counts_when_the_kubelet_says_so(status, granted):
    assert read(status, nodeName="node-1").memory_request == granted


@pytest.mark.parametrize("reason", ["Deferred", "Infeasible"])
def test_a_resize_that_waits(reason):
    status = container({"running": {}}) | {"conditions": [{"type": "PodResizePending", "status": "True", "reason": reason, "message": "no room"}]}
    assert read(status).resize_pending == f"{reason}: no room"


def test_a_pod_that_the_scheduler_does_not_place():
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/2 nodes are available: 2 Insufficient memory.",
        "lastTransitionTime": "2026-01-01T00:00:05Z",
    }
    found = read({"phase": "Pending", "conditions": [condition]})
    assert found.unschedulable_since == found.created + 5
    assert found.message == "0/2 nodes are available: 2 Insufficient memory."
    assert not found.scheduled


@pytest.mark.parametrize(
    ("status", "failure", "message"),
    [
        (
            container({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hf-token" not found'}}),
            reasons.SECRET_NOT_FOUND,
            'secret "hf-token" not found',
        ),
        (container({"waiting": {"reason": "ImagePullBackOff", "message": "back-off"}}), "", "ImagePullBackOff: back-off"),
        (container({"waiting": {"reason": "ContainerCreating"}}), "", ""),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, reasons.FAILED, "the pod is Failed: Evicted low on memory"),
    ],
)
def test_why_a_pod_does_not_run(status, failure, message):
    found = read(status, nodeName="node-1")
    assert (found.failure, found.message) == (failure, message)


def test_the_kubelets_words_for_a_missing_secret():
    assert missing_secret('MountVolume.SetUp failed for volume "source-secret" : secret "hf-token" not found') == "hf-token"
    assert missing_secret('configmap "x" not found') == ""


def test_an_annotation_that_is_not_ours_is_borne():
    broken = pod()
    broken["metadata"]["annotations"]["corral.dev/devices"] = "{"
    assert record(trim(broken)).devices == ()
