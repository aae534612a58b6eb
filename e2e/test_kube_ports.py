"""The operator's ports against a real API server, scheduler and kubelet: lease, watch, server-side apply, resize, Job, kopf.

Everything is made in a namespace of its own that enforces Pod Security `restricted`. An operator that is installed rests meanwhile: it would take
these pods and models for its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import secrets
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml
from tests.kube.world import MI, RememberingSink, deployment, estimate_request, replica_request

from corral.control.handlers import watch_resources
from corral.domain import reasons
from corral.domain.model import DeviceKey
from corral.gateway.ports import ModelDemand, Report
from corral.kube.client import (
    EVENTS,
    GATEWAY_REPORTS,
    JOBS,
    LEASES,
    MODEL_DEPLOYMENTS,
    MODEL_POOLS,
    NODES,
    PODS,
    SECRETS,
    KubeClient,
    Resource,
)
from corral.kube.devices import Backends
from corral.kube.estimates import Estimates
from corral.kube.keys import ensure_key
from corral.kube.lease import Elector, LeaseTimes
from corral.kube.manifests import ServerSettings
from corral.kube.membership import Pools
from corral.kube.nodes import NodeBook
from corral.kube.objects import gates_of, read
from corral.kube.pods import ServerPods, record, trim
from corral.kube.ports import COMMIT, Conflict, Gone, Refused, Unavailable
from corral.kube.reports import KubeReports
from corral.kube.statuses import KubeStatuses
from corral.kube.workloads import KubeWorkloads

PAUSE = os.environ.get("CORRAL_E2E_PAUSE_IMAGE", "localhost/corral-pause:1")
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)

OPERATOR = "app.kubernetes.io/part-of=corral,app.kubernetes.io/component=operator"


@pytest.fixture(scope="module")
def kubeconfig(cluster) -> str:
    return cluster["KUBECONFIG"]


@pytest.fixture
async def client(kubeconfig):
    connected = await KubeClient.connect(user_agent="corral-e2e", kubeconfig=kubeconfig)
    yield connected
    await connected.close()


async def _is_served(client, resource) -> bool:
    try:
        await client.list(resource.path())
    except (Gone, Unavailable):
        # A kind that was made a moment ago is not there yet, and then "storage is (re)initializing".
        return False
    return True


@contextlib.asynccontextmanager
async def _client(kubeconfig: str):
    client = await KubeClient.connect(user_agent="corral-e2e", kubeconfig=kubeconfig)
    try:
        yield client
    finally:
        await client.close()


async def _prepare(kubeconfig: str) -> tuple[list[str], dict[str, int]]:
    """The CRDs that were missing, and the operators that were put to rest with their number of replicas."""
    made, resting = [], {}
    async with _client(kubeconfig) as client:
        for file in sorted((Path(__file__).parents[1] / "crds").glob("*.yaml")):
            crd = yaml.safe_load(file.read_text())
            with contextlib.suppress(Conflict):
                await client.create(CRDS.path(), crd)
                made.append(crd["metadata"]["name"])
        for resource in (MODEL_DEPLOYMENTS, MODEL_POOLS, GATEWAY_REPORTS):
            await until(f"{resource.plural} are served", lambda resource=resource: _is_served(client, resource))
        for item in (await client.list(DEPLOYMENTS.path(), {"labelSelector": OPERATOR}))["items"]:
            path = DEPLOYMENTS.path(item["metadata"]["namespace"], item["metadata"]["name"], "scale")
            resting[path] = item["spec"]["replicas"]
            await client.patch(path, {"spec": {"replicas": 0}})

        async def gone() -> bool:
            return not (await client.list(PODS.path(), {"labelSelector": OPERATOR}))["items"]

        await until("no operator runs", gone, 60)
    return made, resting


async def _put_back(kubeconfig: str, crds: list[str], resting: dict[str, int]) -> None:
    async with _client(kubeconfig) as client:
        for path, replicas in resting.items():
            await client.patch(path, {"spec": {"replicas": replicas}})
        for name in crds:
            await client.delete(CRDS.path(name=name))


@pytest.fixture(scope="module")
def alone(kubeconfig):
    """A cluster that knows the kinds and where no operator runs; afterwards it is as before."""
    crds, resting = asyncio.run(_prepare(kubeconfig))
    yield
    asyncio.run(_put_back(kubeconfig, crds, resting))


@pytest.fixture
async def namespace(client, alone):
    name = f"kube-ports-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await client.create(NAMESPACES.path(), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    await client.delete(NAMESPACES.path(name=name))


@pytest.fixture
async def model(client, namespace):
    body = deployment(model={"source": "https://models.invalid/small.gguf"})
    body["metadata"] = {"name": "small", "namespace": namespace}
    return await client.create(MODEL_DEPLOYMENTS.path(namespace), body)


async def until(what: str, probe, seconds: float = 30.0):
    end = time.monotonic() + seconds
    last = None
    while time.monotonic() < end:
        last = probe()
        if asyncio.iscoroutine(last):
            last = await last
        if last:
            return last
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what} (last: {last!r})")


@contextlib.asynccontextmanager
async def running(*coroutines):
    tasks = [asyncio.create_task(item) for item in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_leaders_follow_each_other_with_growing_epochs(client, namespace):
    times = LeaseTimes(duration=3, retry=0.5, write=1, slack=0.1)
    one, two, three = (Elector(client, namespace, "op", f"id-{n}", times=times) for n in range(3))
    first = await one.acquire()
    assert not await two.try_acquire()
    async with running(one.hold()):
        await asyncio.sleep(5)  # longer than the lease lasts unless it is renewed
        assert one.may_write()
        assert not await two.try_acquire()
    await one.release()
    assert not one.may_write()
    assert await two.acquire() == first + 1
    # The second goes without a word: the third waits for the expiry.
    assert await three.acquire() == first + 2
    assert not two.leads
    lease = await client.get(LEASES.path(namespace, "op"))
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("id-2", first + 2)


WRITER = """
    import asyncio, sys
    from corral.kube.client import SECRETS, KubeClient
    from corral.kube.lease import Elector, LeaseTimes
    from corral.kube.ports import NotLeader, Unavailable

    async def main(kubeconfig, namespace):
        client = await KubeClient.connect(user_agent="writer", kubeconfig=kubeconfig, request_timeout=1.0)
        elector = Elector(client, namespace, "op", "writer", times=LeaseTimes(duration=4, retry=0.5, write=1, slack=0.1))
        await elector.acquire()
        holding = asyncio.create_task(elector.hold())
        gated = client.gated(elector.may_write)
        print("leading", flush=True)
        count = 0
        while not holding.done():
            try:
                count += 1
                await gated.patch(SECRETS.path(namespace, "written"), {"metadata": {"annotations": {"count": str(count)}}})
                print("wrote", flush=True)
                await asyncio.sleep(0.2)
            except NotLeader:
                print("refused", flush=True)
                break
            except Unavailable:
                pass  # what was under way when it was stopped
        else:
            print("lost", flush=True)
        holding.cancel()
        await client.close()

    asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_leader_that_was_stopped_past_its_lease_changes_nothing(client, namespace, kubeconfig):
    await client.create(SECRETS.path(namespace), {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "written"}})
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "operator")}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), kubeconfig, namespace], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert await asyncio.to_thread(process.stdout.readline) == "leading\n"
        # Between two writes: bytes that were being handed to the kernel when it was stopped would arrive late, and nothing but a precondition of the
        # write itself (which every write to a pod has) could keep them from counting.
        for _ in range(3):
            assert await asyncio.to_thread(process.stdout.readline) == "wrote\n"
        process.send_signal(signal.SIGSTOP)
        successor = Elector(client, namespace, "op", "successor", times=LeaseTimes(duration=4, retry=0.5))
        await successor.acquire()
        before = await client.get(SECRETS.path(namespace, "written"))
        process.send_signal(signal.SIGCONT)
        rest = await asyncio.to_thread(process.stdout.read)
        assert rest in {"refused\n", "lost\n"}, "nothing more was written"
        assert await asyncio.to_thread(process.wait, 20) == 0
        after = await client.get(SECRETS.path(namespace, "written"))
        assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
        assert (await client.get(LEASES.path(namespace, "op")))["spec"]["holderIdentity"] == "successor"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def make_workloads(client, image=PAUSE, **settings) -> KubeWorkloads:
    return KubeWorkloads(client, ServerSettings(image=image, pull_policy="Never", public_keys=("k",), **settings), Backends(), Pools())


async def a_node(client) -> str:
    nodes = (await client.list(NODES.path()))["items"]
    return min(item["metadata"]["name"] for item in nodes)


async def request_for(client, namespace, model, **changes):
    given = {
        "namespace": namespace,
        "owner_uid": model["metadata"]["uid"],
        "model": f"{namespace}/small",
        "devices": (DeviceKey(await a_node(client), "host"),),
        "memory_request": 32 * MI,
        "memory_limit": 256 * MI,
    }
    return replica_request(model, **(given | changes))


async def test_a_server_pod_is_admitted_created_once_and_deleted_by_uid(client, namespace, model):
    workloads = make_workloads(client)
    request = await request_for(client, namespace, model)
    made = await workloads.create(request)
    assert (made.model, made.owner_uid, made.devices) == (f"{namespace}/small", model["metadata"]["uid"], ("host",))
    assert (await workloads.create(request)).uid == made.uid
    with pytest.raises(Conflict):
        await workloads.create(await request_for(client, namespace, model, owner_uid="somebody-else"))
    # The pod runs where the operator wants it, by the scheduler's own decision.
    seen = await until("it is scheduled", lambda: _placed(client, namespace, made.name))
    assert seen.node == request.devices[0].node
    await workloads.delete(seen, 1)
    await workloads.delete(seen, 1)
    await until("it is gone", lambda: _is_gone(client, PODS.path(namespace, made.name)))


async def _placed(client, namespace, name):
    pod = record(trim(await client.get(PODS.path(namespace, name))))
    return pod if pod.scheduled else None


async def _is_gone(client, path):
    try:
        await client.get(path)
    except Gone:
        return True
    return False


async def test_a_commitment_needs_the_version_that_was_read(client, namespace, model):
    workloads = make_workloads(client)
    made = await workloads.create(await request_for(client, namespace, model))
    seen = await until("it is scheduled", lambda: _placed(client, namespace, made.name))
    with pytest.raises(Conflict):
        await workloads.annotate(made, {COMMIT: "{}"}, precondition=True)
    seen = record(trim(await client.get(PODS.path(namespace, made.name))))
    try:
        committed = await workloads.annotate(seen, {COMMIT: '{"epoch": 1}'}, precondition=True)
    except Conflict:  # the kubelet wrote in between, as it may
        seen = record(trim(await client.get(PODS.path(namespace, made.name))))
        committed = await workloads.annotate(seen, {COMMIT: '{"epoch": 1}'}, precondition=True)
    assert committed.annotations[COMMIT] == '{"epoch": 1}'
    cleared = await workloads.annotate(committed, {COMMIT: None}, precondition=False)
    assert COMMIT not in cleared.annotations


def sleeper(namespace: str, node: str) -> dict:
    """A pod that runs and does nothing, in the form of a server pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "sleeper",
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "corral", "app.kubernetes.io/component": "server", "corral.dev/model": "small"},
        },
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "server",
                    "image": PAUSE,
                    "imagePullPolicy": "Never",
                    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "512Mi"}},
                    "resizePolicy": [{"resourceName": "memory", "restartPolicy": "NotRequired"}],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }


async def test_memory_is_raised_and_given_back_in_place_as_the_watch_sees_it(client, namespace):
    sink = RememberingSink()
    pods = ServerPods(client, sink)
    workloads = make_workloads(client)
    made = await client.create(PODS.path(namespace), sleeper(namespace, await a_node(client)))
    uid = made["metadata"]["uid"]

    def granted(size: int):
        pod = sink.pods.get(uid)
        return pod if pod is not None and pod.running and pod.memory_request == size else None

    async with running(pods.run()):
        pod = await until("it runs", lambda: granted(32 * MI))
        assert ("synced", "pods") in sink.said
        raised = await workloads.resize(pod, 300 * MI)
        assert raised.memory_wanted == 300 * MI
        pod = await until("the kubelet grants it", lambda: granted(300 * MI))
        await workloads.resize(pod, 32 * MI)
        pod = await until("the kubelet takes it back", lambda: granted(32 * MI))
        assert pod.restarts == 0
        with pytest.raises(Refused):
            await workloads.resize(pod, 600 * MI)  # above its limit
        await workloads.delete(pod, 1)
        await until("the watch tells that it went", lambda: uid not in sink.pods)


async def test_a_missing_secret_of_a_server_pod_is_named(client, namespace, model):
    sink = RememberingSink()
    private = model | {"spec": model["spec"] | {"model": {"source": "https://models.invalid/x.gguf", "secretRef": {"name": "hf-token"}}}}
    made = await make_workloads(client).create(await request_for(client, namespace, private))
    async with running(ServerPods(client, sink, patience=1.0).run()):
        pod = await until("its failure is told", lambda: sink.pods.get(made.uid) if sink.pods.get(made.uid, made).failure else None, 60)
    assert pod.failure == reasons.SECRET_NOT_FOUND
    assert 'secret "hf-token" not found' in pod.message


async def test_estimates_that_cannot_run_say_why_and_leave_nothing(client, namespace, model):
    estimates = Estimates(client, ServerSettings(image="localhost/no-such-image:1", pull_policy="Never"), patience=1.0)
    owner = {"namespace": namespace, "owner_uid": model["metadata"]["uid"]}
    answer = await estimates.run(estimate_request(model, **owner))
    assert (answer["ok"], answer["reason"], answer["retry"]) == (False, reasons.ESTIMATE_FAILED, True)
    assert "ErrImageNeverPull" in answer["message"]
    private = model | {"spec": model["spec"] | {"model": {"source": "https://models.invalid/x.gguf", "secretRef": {"name": "hf-token"}}}}
    answer = await estimates.run(estimate_request(private, **owner))
    assert (answer["ok"], answer["reason"]) == (False, reasons.SECRET_NOT_FOUND)
    await until("no Job and no pod is left", lambda: _nothing_left(client, namespace))


async def _nothing_left(client, namespace):
    jobs = (await client.list(JOBS.path(namespace)))["items"]
    pods = (await client.list(PODS.path(namespace)))["items"]
    return not jobs and not pods


async def test_a_status_that_is_applied_again_changes_nothing(client, namespace, model):
    statuses = KubeStatuses(client)
    condition = {"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    status = {"observedGeneration": 1, "conditions": [condition], "servedNames": [f"{namespace}/small"]}
    uid = model["metadata"]["uid"]
    await statuses.write_model(namespace, "small", uid, status)
    first = await client.get(MODEL_DEPLOYMENTS.path(namespace, "small"))
    assert first["status"]["conditions"] == [condition]
    assert first["metadata"]["generation"] == 1
    await statuses.write_model(namespace, "small", uid, status)
    assert (await client.get(MODEL_DEPLOYMENTS.path(namespace, "small")))["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    # What is no longer applied goes; another object of the same name is not written.
    await statuses.write_model(namespace, "small", uid, {"observedGeneration": 1})
    assert (await client.get(MODEL_DEPLOYMENTS.path(namespace, "small")))["status"] == {"observedGeneration": 1}
    with pytest.raises(Conflict):
        await statuses.write_model(namespace, "small", "00000000-0000-0000-0000-000000000000", status)
    with pytest.raises(Gone):
        await statuses.write_model(namespace, "nobody", uid, status)


async def test_events_are_counted_not_copied(client, namespace, model):
    now = [1_800_000_000.0]
    statuses = KubeStatuses(client, clock=lambda: now[0])
    regarding = {"apiVersion": MODEL_DEPLOYMENTS.api_version, "kind": "ModelDeployment", "metadata": model["metadata"]}
    for _ in range(3):
        await statuses.event(regarding, warning=True, reason="DoesNotFit", message="needs 96Gi")
        now[0] += 60
    await KubeStatuses(client, clock=lambda: now[0]).event(regarding, warning=True, reason="DoesNotFit", message="needs 96Gi")
    await statuses.event(regarding, warning=False, reason="Evicted", message="made room")
    events = {item["reason"]: item for item in (await client.list(EVENTS.path(namespace)))["items"] if item["involvedObject"]["name"] == "small"}
    assert (events["DoesNotFit"]["count"], events["DoesNotFit"]["type"]) == (4, "Warning")
    assert (events["Evicted"]["count"], events["Evicted"]["type"]) == (1, "Normal")


async def test_one_key_for_all_who_start_at_once(client, namespace):
    keys = await asyncio.gather(*(ensure_key(client, namespace, "signing") for _ in range(4)))
    assert len({key.private_bytes_raw() for key in keys}) == 1


async def test_a_gateways_report(client, namespace, model):
    pod = await client.create(PODS.path(namespace), sleeper(namespace, await a_node(client)))
    sink = KubeReports(client, namespace, pod["metadata"]["name"], pod["metadata"]["uid"])
    await sink.publish(Report(1, (ModelDemand(f"{namespace}/small", waiting=3), ModelDemand(f"{namespace}/other", in_flight=1))))
    await sink.publish(Report(2, (ModelDemand(f"{namespace}/small", waiting=1),)))
    report = await client.get(GATEWAY_REPORTS.path(namespace, "sleeper"))
    assert report["spec"]["sequence"] == 2
    assert [(item["name"], item["waiting"]) for item in report["spec"]["models"]] == [(f"{namespace}/small", 1)]
    await client.delete(PODS.path(namespace, "sleeper"), grace=0)
    await until("the report goes with its pod", lambda: _is_gone(client, GATEWAY_REPORTS.path(namespace, "sleeper")), 60)


async def test_nodes_with_their_memory_and_what_others_take(client, namespace):
    sink = RememberingSink()
    book = NodeBook(client, sink, Backends(), Pools())
    name = await a_node(client)
    async with running(book.reflector.run(), book.foreign.reflector.run()):
        await asyncio.sleep(0.5)
        assert not sink.nodes
        book.pools_synced()
        await until("nodes are told", lambda: ("synced", "nodes") in sink.said)
        before = sink.nodes[name][1][0].capacity
        foreign = sleeper(namespace, name)
        foreign["metadata"]["labels"] = {"app": "foreign"}
        foreign["spec"]["containers"][0]["resources"]["requests"]["memory"] = "128Mi"
        await client.create(PODS.path(namespace), foreign)
        await until("its request is taken off", lambda: sink.nodes[name][1][0].capacity == before - 128 * MI)
        await client.delete(PODS.path(namespace, "sleeper"), grace=1)
        await until("and given back", lambda: sink.nodes[name][1][0].capacity == before)


def _nobody() -> str:
    raise KeyError("getpwuid(): uid not found: 65532")


async def test_kopf_and_lists_tell_the_same(client, namespace, model, monkeypatch):
    monkeypatch.setattr(getpass, "getuser", _nobody)  # as in a container
    sink, pools = RememberingSink(), Pools()
    gates = gates_of(sink, pools)
    for gate in gates:
        await read(client, gate)
    listed = ("put", "small", model["metadata"]["resourceVersion"])
    assert sink.said.count(listed) == 1
    stop, ready = asyncio.Event(), asyncio.Event()
    watching = asyncio.create_task(watch_resources(gates, client.connection, stop, ready))
    try:
        await asyncio.wait_for(ready.wait(), 30)
        other = deployment(model={"source": "https://models.invalid/other.gguf"})
        other["metadata"] = {"name": "other", "namespace": namespace}
        created = await client.create(MODEL_DEPLOYMENTS.path(namespace), other)
        await until("its event is told", lambda: ("put", "other", created["metadata"]["resourceVersion"]) in sink.said)
        await client.delete(MODEL_DEPLOYMENTS.path(namespace, "other"))
        await until("its end is told", lambda: ("remove", namespace, "other") in sink.said)
        # kopf's own first list brought nothing new, and kopf wrote nothing.
        assert sink.said.count(listed) == 1
        seen = await client.get(MODEL_DEPLOYMENTS.path(namespace, "small"))
        assert seen["metadata"]["resourceVersion"] == model["metadata"]["resourceVersion"]
    finally:
        stop.set()
        await asyncio.wait_for(watching, 30)
