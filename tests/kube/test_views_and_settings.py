"""What the gateway sees of objects, and what the environment may say."""

from __future__ import annotations

import pytest

from corral.gateway.directory import MemoryDirectory
from corral.gateway.ports import Hold
from corral.kube.directory import KubeDirectory
from corral.kube.ports import PodRecord
from corral.settings import SettingError, gateway_settings, operator_settings
from corral.views import model_view, replica_view

STATUS = {
    "servedNames": ["models/small", "small"],
    "conditions": [
        {"type": "Ready", "status": "False", "reason": "DoesNotFit", "message": "needs 96Gi"},
        {"type": "Stalled", "status": "True", "reason": "DoesNotFit", "message": "needs 96Gi on one node"},
        {"type": "Loaded", "status": "False", "reason": "WaitingForMemory", "message": "x"},
    ],
    "explanation": {"reason": "DoesNotFit", "message": "m"},
    "estimate": {"ok": True, "contextLength": 4096},
    "wish": {"id": 9, "action": "Load"},
}
MODEL = {
    "metadata": {"name": "small", "namespace": "models", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
    "spec": {"aliases": ["tiny"], "engine": {"adapters": [{"name": "sql", "source": "x"}], "contextLength": 8192}, "scaling": {"maxReplicas": 3}},
}


def test_a_model_with_a_status():
    view = model_view(MODEL | {"status": STATUS}, {"spec": {"hold": {"timeout": "1m30s", "perModel": 7, "total": 8, "heartbeat": "2s"}}})
    assert view.key == "models/small"
    assert view.served_names == ("models/small", "small")
    assert (view.adapters, view.aliases, view.max_replicas, view.context_length) == (("sql",), ("tiny",), 3, 4096)
    assert (view.state, view.ready, view.reason, view.message) == ("WaitingForMemory", False, "DoesNotFit", "needs 96Gi")
    assert (view.stalled, view.stalled_reason, view.stalled_message) == (True, "DoesNotFit", "needs 96Gi on one node")
    assert view.hold == Hold(90.0, 7, 8, 2.0)
    assert (view.acknowledged_wish, view.created) == (9, 1767225600)


def test_presets_follow_the_colon_as_adapters_do():
    engine = {"adapters": [{"name": "sql", "source": "x"}], "presets": [{"name": "precise", "adapter": "sql"}, {"name": "brief"}]}
    assert model_view(MODEL | {"spec": {"engine": engine}}).adapters == ("sql", "precise", "brief")
    assert model_view(MODEL | {"spec": {"engine": {"presets": [{"name": "brief"}]}}}).adapters == ("brief",)


def test_a_model_that_nobody_has_looked_at():
    view = model_view(MODEL)
    assert (view.served_names, view.state, view.ready, view.stalled) == (("models/small",), "Idle", None, False)
    assert view.hold == Hold()
    assert view.context_length == 8192


@pytest.mark.parametrize("odd", [{}, {"spec": None, "status": None}, {"metadata": {}, "spec": {"engine": 3}}, {"status": {"conditions": None}}])
def test_odd_objects_are_borne(odd):
    assert model_view(odd, {"spec": {"hold": {"timeout": "soon"}}}).hold == Hold()


def test_a_replica():
    pod = PodRecord("models", "small-a-0", "u", "models/small", "a", "default", "node-1", ("host",), host="10.0.0.7", deleting=True)
    view = replica_view(pod)
    assert (view.model, view.pod, view.uid, view.host, view.deleting, view.node) == ("models/small", "small-a-0", "u", "10.0.0.7", True, "node-1")


def test_the_directory_follows_pools_models_and_pods():
    memory = MemoryDirectory()
    directory = KubeDirectory(None, memory, "corral")
    directory._put_model(MODEL | {"status": STATUS})
    assert memory.models["models/small"].hold == Hold()
    directory._put_pool({"metadata": {"name": "default"}, "spec": {"hold": {"timeout": "10s"}}})
    assert memory.models["models/small"].hold.timeout == 10
    directory._remove_pool("", "default", "")
    assert memory.models["models/small"].hold == Hold()
    pod = {
        "metadata": {"name": "p", "namespace": "models", "uid": "u-p", "labels": {"corral.dev/model": "small"}},
        "spec": {"nodeName": "n", "containers": []},
        "status": {"phase": "Pending"},
    }
    directory._put_pod(pod)
    assert not memory.replicas
    directory._put_pod(pod | {"status": {"phase": "Running", "podIP": "10.0.0.7"}})
    assert memory.replicas["u-p"].model == "models/small"
    for source in ("models", "pools"):
        directory._arrived(source)
    assert not memory.synced
    directory._arrived("pods")
    assert memory.synced
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    for uid in ("g-1", "g-2"):
        directory._put_gateway({"metadata": {"uid": uid}} | ready)
    assert memory.live_gateways == 2
    directory._remove_gateway("", "", "g-1")
    directory._remove_gateway("", "", "g-2")
    assert memory.live_gateways == 1
    directory._remove_pod("", "", "u-p")
    directory._remove_model("models", "small", "")
    assert not memory.replicas
    assert not memory.models


@pytest.mark.parametrize("first", ["the model", "the pod"])
def test_what_a_status_says_of_a_replica_is_known_whichever_comes_first(first: str):
    """Without it a gateway that has one open replica would never send anything to another that was loaded later."""
    memory = MemoryDirectory()
    directory = KubeDirectory(None, memory, "corral")
    pod = {
        "metadata": {"name": "small-1", "namespace": "models", "uid": "u-1", "labels": {"corral.dev/model": "small"}},
        "spec": {"nodeName": "n", "containers": []},
        "status": {"phase": "Running", "podIP": "10.0.0.7"},
    }

    def told(state: str) -> None:
        placements = [{"replica": "small-0", "state": "Sleeping"}, *([{"replica": "small-1", "state": state}] if state else [])]
        directory._put_model(MODEL | {"status": STATUS | {"placements": placements}})

    if first == "the model":
        told("Loading")
        directory._put_pod(pod)
    else:
        directory._put_pod(pod)
        assert memory.replicas["u-1"].state == ""
        told("Loading")
    assert memory.replicas["u-1"].state == "Loading"
    told("Loaded")
    assert memory.replicas["u-1"].state == "Loaded"
    directory._put_pod(pod | {"status": {"phase": "Running", "podIP": "10.0.0.8"}})
    assert (memory.replicas["u-1"].state, memory.replicas["u-1"].host) == ("Loaded", "10.0.0.8")
    told("")
    assert memory.replicas["u-1"].state == ""
    directory._remove_pod("", "", "u-1")
    told("Loaded")
    assert not memory.replicas


NEEDED = {"CORRAL_NAMESPACE": "corral", "CORRAL_SERVER_IMAGE": "server:1", "CORRAL_POD_NAME": "op"}


def test_defaults():
    found = operator_settings(NEEDED)
    assert (found.lease_name, found.server_pull_policy, found.grace_seconds, found.allow_local_sources) == (
        "corral-operator",
        "IfNotPresent",
        30,
        False,
    )
    assert found.identity != operator_settings(NEEDED).identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"CORRAL_NAMESPACE": ""}, "CORRAL_NAMESPACE is not set"),
        ({"CORRAL_SERVER_PULL_POLICY": "Sometimes"}, "one of Always, IfNotPresent, Never"),
        ({"CORRAL_GRACE_SECONDS": "long"}, "CORRAL_GRACE_SECONDS is 'long'; it has to be a number"),
        ({"CORRAL_ALLOW_LOCAL_SOURCES": "maybe"}, "it has to be 1 or 0"),
        ({"CORRAL_LOG_LEVEL": "LOUD"}, "CORRAL_LOG_LEVEL is 'LOUD'"),
    ],
)
def test_wrong_settings_say_what_would_be_right(change, message):
    with pytest.raises(SettingError, match=message):
        operator_settings(NEEDED | change)


def test_the_gateway_needs_its_namespace_only():
    found = gateway_settings({"CORRAL_NAMESPACE": "corral"})
    assert (found.key_secret, found.key_file, found.port, found.admin_port) == ("corral-signing-key", "", 8080, 8081)
