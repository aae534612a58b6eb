"""What the rendered pods and Jobs promise: Pod Security restricted, the node by affinity, Burstable, the environment of the contract."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.kube.world import MI, deployment, estimate_request, replica_request

from corral.api import ModelDeployment
from corral.domain.model import DeviceKey, DeviceKind
from corral.kube.devices import Binding, Static
from corral.kube.manifests import ServerSettings, estimate_job, estimate_name, prefetch_job, server_pod
from corral.kube.membership import Pools
from corral.kube.pods import planned_node, record, trim
from corral_server.settings import read_settings

SETTINGS = ServerSettings(image="corral-server:1", public_keys=("key-a", "key-b"), hf_endpoint="http://hub", allow_local_sources=True)

ALLOWED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations_of_restricted(spec: dict) -> list[str]:
    """The rules of Pod Security `restricted`, and our own two on top."""
    found = []
    security = spec.get("securityContext", {})
    if security.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        found.append("seccomp")
    if not security.get("runAsNonRoot") or security.get("runAsUser", 0) == 0:
        found.append("root")
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= ALLOWED_VOLUMES:
            found.append(f"volume {kinds}")
    found += [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False:
            found.append("escalation")
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
            found.append("capabilities")
        if not own.get("readOnlyRootFilesystem"):
            found.append("writable root")
    if spec.get("automountServiceAccountToken") is not False:
        found.append("token")
    return found


def env_of(manifest: dict) -> dict:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in manifest["spec"]["containers"][0]["env"]}


RICH = deployment(
    model={"source": "pvc://weights/a/model.gguf", "secretRef": {"name": "hf-token"}, "projector": "pvc://weights/p.gguf"},
    engine={"adapters": [{"name": "sql", "source": "pvc://adapters/sql.gguf"}], "presets": [{"name": "precise", "adapter": "sql"}]},
    placement={"tolerations": [{"key": "models", "operator": "Exists"}]},
    pod={
        "labels": {"team": "a"},
        "annotations": {"note": "x"},
        "env": [{"name": "LOG", "value": "1"}],
        "cpu": {"request": "250m", "limit": "2"},
        "serviceAccountName": "runner",
        "priorityClassName": "low",
    },
)


@pytest.mark.parametrize("model", [deployment(), RICH])
@pytest.mark.parametrize(
    "cache",
    [
        {"type": "EmptyDir", "size": "10Gi"},
        {"type": "PersistentVolumeClaim", "claimName": "models"},
        {"type": "PersistentVolumeClaim", "storageClassName": "local"},
    ],
)
def test_every_pod_is_restricted(model, cache):
    pod = server_pod(replica_request(model, cache=cache), SETTINGS, Binding())
    assert violations_of_restricted(pod["spec"]) == []
    job = estimate_job(estimate_request(model, cache=cache), SETTINGS)
    assert violations_of_restricted(job["spec"]["template"]["spec"]) == []


def test_the_cache_has_room_for_what_a_server_keeps_beside_its_model_files():
    """A kubelet ends the pod that is over its volume's limit; the server keeps its files, its states and its responses each within theirs."""
    cache = {"type": "EmptyDir", "size": "10Gi"}
    for engine, states in (({}, 256 * MI), ({"promptCache": {"size": "1Gi"}}, 1024 * MI), ({"promptCache": {"size": "0"}}, 0)):
        pod = server_pod(replica_request(deployment(engine=engine), cache=cache), SETTINGS, Binding())
        (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "cache"]
        assert int(volume["emptyDir"]["sizeLimit"]) >= 10 * 1024 * MI + states + 64 * MI
        assert env_of(pod)["CORRAL_CACHE_LIMIT"] == str(10 * 1024 * MI)


def test_a_host_path_cache_is_the_one_way_out_of_restricted():
    pod = server_pod(replica_request(cache={"type": "HostPath", "path": "/var/models"}), SETTINGS, Binding())
    assert violations_of_restricted(pod["spec"]) == ["volume {'hostPath'}"]


def test_the_node_is_named_by_affinity_and_read_back_from_there():
    pod = server_pod(replica_request(), SETTINGS, Binding())
    assert "nodeName" not in pod["spec"]
    assert "nodeSelector" not in pod["spec"]
    assert planned_node(pod["spec"]) == "node-1"


def test_a_pod_is_burstable_and_takes_memory_without_a_restart():
    [container] = server_pod(replica_request(RICH), SETTINGS, Binding())["spec"]["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "250m", "memory": str(128 * MI)},
        "limits": {"cpu": "2", "memory": str(1024 * MI)},
    }
    assert {"resourceName": "memory", "restartPolicy": "NotRequired"} in container["resizePolicy"]


def test_no_limit_where_none_is_known():
    [container] = server_pod(replica_request(memory_limit=0), SETTINGS, Binding())["spec"]["containers"]
    assert container["resources"]["limits"] == {}


def test_the_record_of_a_new_pod_says_what_was_asked_for():
    request = replica_request(RICH, devices=(DeviceKey("node-1", "GPU-1"), DeviceKey("node-1", "GPU-2")), device_kind=DeviceKind.GPU)
    made = server_pod(request, SETTINGS, Binding())
    made["metadata"] |= {"uid": "p-1", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}
    pod = record(trim(made))
    assert (pod.model, pod.revision, pod.pool, pod.node, pod.devices) == ("models/small", "abc123", "default", "node-1", ("GPU-1", "GPU-2"))
    assert (pod.owner_uid, pod.memory_wanted, pod.memory_request) == ("md-1", 128 * MI, 0)
    assert (pod.inference_port, pod.control_port, pod.scheduled, pod.running) == (8080, 8081, False, False)


def test_a_long_specification_takes_several_variables_and_no_dollar_sign():
    told = {"name": "small", "engine": {"chatTemplate": "$$ $(HOME) " + 30_000 * "\u7f8a"}}
    env = env_of(server_pod(replace(replica_request(), server_spec=told), SETTINGS, Binding()))
    pieces = [env[name] for name in ("CORRAL_SPEC", "CORRAL_SPEC_2")]
    assert "CORRAL_SPEC_3" not in env
    assert all(len(piece.encode()) < 128 * 1024 - 100 and "$" not in piece for piece in pieces)
    assert json.loads(read_settings(dict(zip(("CORRAL_SPEC", "CORRAL_SPEC_2"), pieces, strict=True))).spec) == told


def test_the_environment_is_the_contract():
    env = env_of(server_pod(replica_request(RICH), SETTINGS, Binding()))
    assert env["CORRAL_POD_UID"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
    assert env["CORRAL_PUBLIC_KEYS"] == "key-a,key-b"
    assert json.loads(env["CORRAL_SPEC"]) == {"name": "small", "namespace": "models"}
    assert "CORRAL_SPEC_2" not in env
    assert env["CORRAL_HF_ENDPOINT"] == "http://hub"
    assert env["CORRAL_ALLOW_LOCAL_SOURCES"] == "1"
    assert env["CORRAL_SECRET_DIR"] == "/etc/corral/source"
    assert env["CORRAL_GRACE_SECONDS"] == "30"
    assert env["LOG"] == "1"
    plain = env_of(server_pod(replica_request(), ServerSettings(image="x"), Binding()))
    assert not {"CORRAL_SECRET_DIR", "CORRAL_HF_ENDPOINT", "CORRAL_ALLOW_LOCAL_SOURCES"} & set(plain)


def test_claims_of_all_sources_are_mounted_read_only_once():
    spec = server_pod(replica_request(RICH), SETTINGS, Binding())["spec"]
    claims = {v["persistentVolumeClaim"]["claimName"]: v["name"] for v in spec["volumes"] if "persistentVolumeClaim" in v}
    assert set(claims) == {"weights", "adapters"}
    mounts = {m["name"]: m for m in spec["containers"][0]["volumeMounts"]}
    for claim, volume in claims.items():
        assert mounts[volume] == {"name": volume, "mountPath": f"/claims/{claim}", "readOnly": True}


def test_a_mounted_folder_that_is_written_is_a_volume():
    spec = server_pod(replica_request(), SETTINGS, Binding())["spec"]
    assert {m["mountPath"] for m in spec["containers"][0]["volumeMounts"] if not m.get("readOnly")} == {"/tmp", "/cache"}


def test_users_labels_never_replace_ours():
    model = deployment()
    model["spec"]["pod"] = {"labels": {"team": "a"}}
    labels = server_pod(replica_request(model), SETTINGS, Binding())["metadata"]["labels"]
    assert labels == {
        "team": "a",
        "app.kubernetes.io/managed-by": "corral",
        "app.kubernetes.io/component": "server",
        "corral.dev/model": "small",
        "corral.dev/revision": "abc123",
        "corral.dev/pool": "default",
    }


def test_the_grace_of_the_pod_is_longer_than_the_servers():
    pod = server_pod(replica_request(), SETTINGS, Binding())
    assert pod["spec"]["terminationGracePeriodSeconds"] > SETTINGS.grace_seconds
    assert "lifecycle" not in pod["spec"]["containers"][0]


@pytest.mark.parametrize(("ids", "ordered"), [(("GPU-b", "GPU-a"), "GPU-b,GPU-a"), (("1", "0"), None)])
def test_static_devices_are_bound_by_id_and_by_uuid_in_their_order(ids, ordered):
    devices = tuple(DeviceKey("node-1", item) for item in ids)
    binding = Static().bind("models", devices, Pools().get("default"))
    env = env_of(server_pod(replica_request(devices=devices, device_kind=DeviceKind.GPU), SETTINGS, binding))
    assert env["NVIDIA_VISIBLE_DEVICES"] == ",".join(ids)
    # An index that the node gives means another device inside the container, so only uuids are passed on.
    assert env.get("CUDA_VISIBLE_DEVICES") == ordered
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_an_estimate_ends_by_itself_and_belongs_to_its_model():
    job = estimate_job(estimate_request(RICH, node_selector={"zone": "a"}), SETTINGS)
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["activeDeadlineSeconds"] == SETTINGS.estimate_deadline
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert job["spec"]["template"]["spec"]["nodeSelector"] == {"zone": "a"}
    assert job["metadata"]["name"].startswith("small-estimate-")
    assert estimate_name(estimate_request()) == estimate_name(estimate_request()) != estimate_name(estimate_request(server_spec={}))
    [owner] = job["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == ("md-1", True)
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][-2:] == ["--termination-message", container["terminationMessagePath"]]
    assert "memory" in container["resources"]["limits"]


def test_what_changes_a_pod_changes_the_digest():
    base = ServerSettings(image="a")
    changed = [ServerSettings(image="b"), ServerSettings(image="a", public_keys=("k",)), ServerSettings(image="a", grace_seconds=5)]
    assert len({base.digest(), *(item.digest() for item in changed)}) == 4
    assert ServerSettings(image="a", estimate_deadline=7).digest() == base.digest()


def test_a_prefetch_mounts_the_pools_cache_on_the_node_that_was_named_or_on_one_of_the_pools():
    """Like a server pod it passes Pod Security, but for the folder of the node that the pool chose."""
    parsed = ModelDeployment.parse(deployment())
    cache = {"type": "HostPath", "path": "/var/lib/corral", "size": "10Gi"}
    for node in ("", "n1"):
        job = prefetch_job(parsed, {"model": {"source": "https://h/m.gguf"}}, cache, node, {"gpus": "yes"}, SETTINGS, 60)
        spec = job["spec"]["template"]["spec"]
        assert [*violations_of_restricted(spec)] == ["volume {'hostPath'}"]
        env = env_of({"spec": spec})
        assert (env["CORRAL_CACHE_LIMIT"], env["CORRAL_CACHE_SHARED"]) == (str(10 << 30), "1")
        assert spec.get("nodeSelector") == (None if node else {"gpus": "yes"})
        assert ("n1" in json.dumps(spec.get("affinity", {}))) == bool(node)
        assert job["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize(
    ("cache", "shared"), [({"type": "EmptyDir", "size": "1Gi"}, False), ({"type": "HostPath", "path": "/c", "size": "2Gi"}, True)]
)
def test_a_server_is_told_its_caches_limit_and_whether_others_use_it(cache, shared):
    manifest = server_pod(replica_request(cache=cache), SETTINGS, Binding())
    env = env_of(manifest)
    assert env["CORRAL_CACHE_LIMIT"] == str((2 if shared else 1) << 30)
    assert ("CORRAL_CACHE_SHARED" in env) == shared
