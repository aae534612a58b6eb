"""What helm makes of the chart: names that fit together, limits above the hold's, and nothing that differs between two renderings."""

import re
import subprocess
from datetime import timedelta

import pytest
from tests.support.chart import CHART, NAMESPACE, env_of, helm, only, pod_of, render

from corral.api import DEFAULT_POOL, ModelPool
from corral.api.types import parse_duration
from corral.settings import gateway_settings, operator_settings

CRDS = {"modeldeployments.corral.dev", "modelpools.corral.dev", "gatewayreports.corral.dev"}


def test_two_renderings_are_the_same() -> None:
    arguments = ("template", "corral", str(CHART), "--namespace", NAMESPACE)
    assert helm(*arguments).stdout == helm(*arguments).stdout


def test_nothing_in_the_templates_depends_on_the_hour_or_on_chance() -> None:
    for file in CHART.glob("templates/**/*"):
        if file.is_file():
            code = " ".join(re.findall(r"\{\{(.*?)\}\}", file.read_text(), flags=re.DOTALL))
            assert not re.search(r"\b(rand\w+|now|lookup|gen\w*Cert|genPrivateKey|uuidv4)\b", code), file.name


def test_the_crds_are_kept_unless_told_otherwise() -> None:
    for obj in render():
        if obj["kind"] == "CustomResourceDefinition":
            assert obj["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert {obj["metadata"]["name"] for obj in render() if obj["kind"] == "CustomResourceDefinition"} == CRDS
    assert all("annotations" not in obj["metadata"] for obj in render("crds.keep=false") if obj["kind"] == "CustomResourceDefinition")
    assert not [obj for obj in render("crds.enabled=false") if obj["kind"] == "CustomResourceDefinition"]


def test_every_object_has_its_namespace_and_the_standard_labels() -> None:
    scopes = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding", "ModelPool", "Namespace"}
    for obj in render():
        metadata = obj["metadata"]
        assert ("namespace" in metadata) == (obj["kind"] not in scopes), f"{obj['kind']} {metadata['name']}"
        for label in ("name", "instance", "version", "part-of", "managed-by"):
            assert f"app.kubernetes.io/{label}" in metadata["labels"], f"{obj['kind']} {metadata['name']}"


@pytest.mark.parametrize("part", ["operator", "gateway"])
def test_selectors_meet_their_pods(part: str) -> None:
    objects = render()
    deployment = only(objects, "Deployment", f"corral-{part}")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    services = [obj for obj in objects if obj["kind"] == "Service" and obj["spec"]["selector"].items() <= labels]
    assert {obj["metadata"]["name"] for obj in services} == {"corral-metrics"} | ({"corral-gateway"} if part == "gateway" else set())
    ports = {port["name"] for port in pod_of(deployment)["containers"][0]["ports"]}
    for service in services:
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def environment(part: str, *settings: str) -> dict[str, str]:
    """What the process would see: the downward API's fields by their names."""
    return {name: value or f"from-{name}" for name, value in env_of(only(render(*settings), "Deployment", f"corral-{part}")).items()}


def test_the_operator_understands_its_environment() -> None:
    told = operator_settings(environment("operator", "server.hfEndpoint=http://hub", "server.allowLocalSources=true", "image.server.tag=v2"))
    assert (told.namespace, told.lease_name, told.key_secret) == ("from-CORRAL_NAMESPACE", "corral-operator", "corral-signing-key")
    assert (told.server_image, told.server_pull_policy, told.hf_endpoint) == ("corral-server:v2", "IfNotPresent", "http://hub")
    assert (told.allow_local_sources, told.grace_seconds, told.http_port) == (True, 30, 8081)


def test_the_gateway_understands_its_environment() -> None:
    told = gateway_settings(environment("gateway", "keys.namespace=corral-keys"))
    assert (told.port, told.admin_port, told.grace_seconds, told.settle_seconds) == (8080, 8081, 300, 5.0)
    assert (told.keys_namespace, told.key_file) == ("corral-keys", "/etc/corral/signing/ed25519.pem")
    assert told.pod_uid == "from-CORRAL_POD_UID"


@pytest.mark.parametrize("part", ["operator", "gateway"])
def test_every_variable_is_documented(part: str) -> None:
    page = (CHART / "README.md").read_text()
    for name in env_of(only(render(), "Deployment", f"corral-{part}")):
        assert f"`{name}`" in page


def test_a_stopping_gateway_has_the_time_that_it_was_promised() -> None:
    pod = pod_of(only(render("gateway.graceSeconds=60", "gateway.settleSeconds=7"), "Deployment", "corral-gateway"))
    assert pod["terminationGracePeriodSeconds"] > 60 + 7


def test_the_gateway_mounts_the_key_that_the_operator_makes() -> None:
    objects = render("signing.secretName=own-key")
    volumes = pod_of(only(objects, "Deployment", "corral-gateway"))["volumes"]
    assert [volume["secret"]["secretName"] for volume in volumes if "secret" in volume] == ["own-key"]
    assert env_of(only(objects, "Deployment", "corral-operator"))["CORRAL_KEY_SECRET"] == "own-key"
    assert "own-key" in str(only(objects, "Role", "corral-operator")["rules"])


def test_digests_win_over_tags() -> None:
    digest = "sha256:" + "0" * 64
    objects = render(f"image.corral.digest={digest}", "image.corral.tag=v1", f"image.server.digest={digest}", "image.server.repository=r/s")
    assert pod_of(only(objects, "Deployment", "corral-gateway"))["containers"][0]["image"] == f"corral@{digest}"
    assert env_of(only(objects, "Deployment", "corral-operator"))["CORRAL_SERVER_IMAGE"] == f"r/s@{digest}"


def test_one_operator_is_recreated_and_several_are_rolled() -> None:
    assert only(render(), "Deployment", "corral-operator")["spec"]["strategy"] == {"type": "Recreate"}
    assert only(render("operator.replicas=2"), "Deployment", "corral-operator")["spec"]["strategy"]["type"] == "RollingUpdate"


def test_the_ways_in_wait_longer_than_the_hold() -> None:
    objects = render("ingress.enabled=true", "httpRoute.enabled=true", "httpRoute.parentRefs[0].name=public")
    hold = DEFAULT_POOL.spec.hold.timeout
    annotations = only(objects, "Ingress")["metadata"]["annotations"]
    assert timedelta(seconds=int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"])) > hold
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    for limit in only(objects, "HTTPRoute")["spec"]["rules"][0]["timeouts"].values():
        assert parse_duration(limit) > hold


def test_annotations_of_the_user_win() -> None:
    own = r"ingress.annotations.nginx\.ingress\.kubernetes\.io/proxy-read-timeout=7200"
    rendered = helm("template", "corral", str(CHART), "--set", "ingress.enabled=true", "--set-string", own).stdout
    assert 'nginx.ingress.kubernetes.io/proxy-read-timeout: "7200"' in rendered


def test_the_pool_is_a_hook_only_while_the_kind_is_unknown() -> None:
    known = ("--api-versions", "corral.dev/v1alpha1/ModelPool")
    first = only(render(), "ModelPool")["metadata"]["annotations"]
    assert first["helm.sh/hook"] == "post-install"
    for later in (render(arguments=known), render("pool.hook=Never"), render(arguments=("--is-upgrade",))):
        assert "helm.sh/hook" not in only(later, "ModelPool")["metadata"]["annotations"]
    assert not [obj for obj in render("pool.create=false") if obj["kind"] == "ModelPool"]


def test_the_pools_spec_is_passed_on() -> None:
    pool = only(render("pool.name=gpus", "pool.spec.memoryMargin=512Mi", "pool.spec.hold.timeout=5m"), "ModelPool")
    assert ModelPool.parse(pool, strict=True).spec.memory_margin == 512 << 20
    assert pool["metadata"]["name"] == "gpus"


def test_the_keys_namespace_is_never_the_releases_own() -> None:
    done = helm("template", "corral", str(CHART), "--namespace", NAMESPACE, "--set", f"keys.namespace={NAMESPACE}", check=False)
    assert done.returncode != 0
    assert "keys.namespace must not be the release's own namespace" in done.stderr


def test_a_route_needs_a_gateway() -> None:
    done = helm("template", "corral", str(CHART), "--set", "httpRoute.enabled=true", check=False)
    assert "httpRoute.parentRefs names the Gateway" in done.stderr


def notes(*settings: str) -> str:
    given = [word for setting in settings for word in ("--set", setting)]
    done: subprocess.CompletedProcess[str] = helm("install", "corral", str(CHART), "--dry-run=client", "--namespace", NAMESPACE, *given)
    return done.stdout[done.stdout.index("NOTES:") :]


def test_the_notes_warn_while_there_are_no_keys() -> None:
    assert "WARNING: no API keys are configured" in notes()
    assert "WARNING" not in notes("keys.namespace=corral-keys")
    assert "deletes every ModelDeployment" in notes("crds.keep=false")


def test_the_notes_name_the_host_that_was_configured() -> None:
    assert "service/corral-gateway 8080:80" in notes()
    assert "http://ai.example.com/v1/chat/completions" in notes("ingress.enabled=true", "ingress.hosts={ai.example.com}")
