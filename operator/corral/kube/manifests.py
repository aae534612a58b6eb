"""The manifests of server pods and estimate Jobs. Pure: requests and settings in, plain objects out.

Every pod passes Pod Security `restricted`, except with a cache of type HostPath, which its pool has chosen. A pod names its node by affinity, never
by `nodeName`: the scheduler confirms what the operator decided. Memory is requested for what the pod takes asleep and raised in place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from corral.api.modeldeployment import ModelDeployment, server_variables
from corral.api.modelpool import Cache
from corral.domain.model import HOST_ID
from corral.kube.client import JOBS, MODEL_DEPLOYMENTS, PODS
from corral.kube.devices import GPU_TAINTS, Binding
from corral.kube.pods import COMPONENT, CONTAINER, CONTROL_PORT, INFERENCE_PORT, MANAGED_BY
from corral.kube.ports import DEVICES, MODEL_LABEL, POOL_LABEL, REVISION_LABEL, EstimateRequest, ReplicaRequest

USER = 65532
CACHE_DIR = "/cache"
SECRET_DIR = "/etc/corral/source"  # noqa: S105 - a folder
CLAIMS_DIR = "/claims"
TERMINATION_MESSAGE = "/dev/termination-log"
RESPONSES = 80 << 20
"""Bytes of the responses that a server keeps beside its model files (64 MiB at most), and of what small files cost a disk."""
KILL_AFTER = 10
"""Seconds between the end of the server's own grace and the kill."""
ESTIMATE_MEMORY = {"request": "64Mi", "limit": "1Gi"}
PYTHON = ["python", "-m", "corral_server"]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the installation says about all server pods."""

    image: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    public_keys: tuple[str, ...] = ()
    hf_endpoint: str = ""
    allow_local_sources: bool = False
    grace_seconds: int = 30
    inference_port: int = 8080
    control_port: int = 8081
    estimate_deadline: int = 600

    def digest(self) -> str:
        """Changes when a pod that is made now differs from one made before; part of every revision."""
        told = json.dumps([getattr(self, name) for name in self.__slots__ if name != "estimate_deadline"])
        return hashlib.sha256(told.encode()).hexdigest()


def server_pod(request: ReplicaRequest, settings: ServerSettings, binding: Binding) -> dict[str, Any]:
    deployment = ModelDeployment.parse(request.model_object)
    extra = deployment.spec.pod
    volumes, mounts = _volumes(deployment, request.cache)
    requests, limits = {"cpu": extra.cpu.request, "memory": str(request.memory_request)}, dict(binding.limits)
    if request.memory_limit:
        limits["memory"] = str(request.memory_limit)
    if extra.cpu.limit:
        limits["cpu"] = extra.cpu.limit
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "command": [*PYTHON, "serve"],
        "env": _env(request.server_spec, settings, deployment)
        + cache_env(request.cache)
        + [{"name": "CORRAL_INFERENCE_PORT", "value": str(settings.inference_port)}]
        + [{"name": "CORRAL_CONTROL_PORT", "value": str(settings.control_port)}]
        + [{"name": "CORRAL_GRACE_SECONDS", "value": str(settings.grace_seconds)}]
        + [{"name": name, "value": value} for name, value in binding.env]
        + [{"name": item.name, "value": item.value} for item in extra.env],
        "ports": [
            {"name": INFERENCE_PORT, "containerPort": settings.inference_port},
            {"name": CONTROL_PORT, "containerPort": settings.control_port},
        ],
        "resources": {"requests": requests, "limits": limits} | ({"claims": [dict(c) for c in binding.claims]} if binding.claims else {}),
        # A sleeping replica gives its memory back, and takes it again, without a restart.
        "resizePolicy": [{"resourceName": name, "restartPolicy": "NotRequired"} for name in ("cpu", "memory")],
        "securityContext": _container_security(),
        "volumeMounts": mounts,
        # Neither operator nor gateway waits for it; a supervisor takes a moment to listen, and each refusal would be an event.
        "readinessProbe": _probe("/readyz", period=5, failures=2) | {"initialDelaySeconds": 3},
        # A busy machine answers late; only a supervisor that is stuck for a minute is started anew.
        "livenessProbe": _probe("/healthz", period=10, failures=6) | {"initialDelaySeconds": 10},
    }
    spec = _pod_spec(deployment, settings, container, volumes)
    spec |= {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": settings.grace_seconds + KILL_AFTER,
        "affinity": _on_node(request.devices[0].node),
    }
    spec["tolerations"] += [dict(item) for item in binding.tolerations]
    if binding.resource_claims:
        spec["resourceClaims"] = [dict(claim) for claim in binding.resource_claims]
    if binding.runtime_class:
        spec["runtimeClassName"] = binding.runtime_class
    labels = {**extra.labels, **_labels(deployment, request.pool, "server"), REVISION_LABEL: request.revision}
    metadata = {
        "name": request.name,
        "namespace": request.namespace,
        "labels": labels,
        "annotations": {**extra.annotations, DEVICES: json.dumps([key.id for key in request.devices])},
        "ownerReferences": _owner(deployment, request.owner_uid),
    }
    return {"apiVersion": PODS.api_version, "kind": PODS.kind, "metadata": metadata, "spec": spec}


def estimate_name(request: EstimateRequest) -> str:
    """The same question has the same name, so that two leaders cannot ask it twice at once."""
    told = json.dumps(request.server_spec, sort_keys=True)
    return f"{request.name}-estimate-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def estimate_job(request: EstimateRequest, settings: ServerSettings) -> dict[str, Any]:
    """A Job that reads a header that nobody trusts yet, and tells its answer in the termination message."""
    deployment = ModelDeployment.parse(request.model_object)
    # The cache is not mounted: an estimate reads a header by range, and a claim could hold it to another node.
    volumes, mounts = _volumes(deployment, {"type": "EmptyDir", "size": "1Gi"})
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "command": [*PYTHON, "estimate", "--termination-message", TERMINATION_MESSAGE],
        "env": _env(request.server_spec, settings, deployment),
        "resources": {
            "requests": {"cpu": "50m", "memory": ESTIMATE_MEMORY["request"]},
            "limits": {"memory": ESTIMATE_MEMORY["limit"]},
        },
        "securityContext": _container_security(),
        "volumeMounts": mounts,
        "terminationMessagePath": TERMINATION_MESSAGE,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    pod = _pod_spec(deployment, settings, container, volumes) | {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5}
    if request.node_selector:
        pod["nodeSelector"] = dict(request.node_selector)
    labels = _labels(deployment, request.pool, "estimate")
    metadata = {
        "name": estimate_name(request),
        "namespace": request.namespace,
        "labels": labels,
        "ownerReferences": _owner(deployment, request.owner_uid),
    }
    spec = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": settings.estimate_deadline,
        "ttlSecondsAfterFinished": 300,  # should nobody be left to delete it
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return {"apiVersion": JOBS.api_version, "kind": JOBS.kind, "metadata": metadata, "spec": spec}


def prefetch_job(
    deployment: ModelDeployment,
    server_spec: Mapping[str, Any],
    cache: Mapping[str, Any],
    node: str,
    node_selector: Mapping[str, str],
    settings: ServerSettings,
    limit: float,
) -> dict[str, Any]:
    """A Job that fetches a model's file into a shared cache; on `node`, or wherever the selector leads."""
    volumes, mounts = _volumes(deployment, cache)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "command": [*PYTHON, "prefetch", "--termination-message", TERMINATION_MESSAGE],
        "env": _env(server_spec, settings, deployment) + cache_env(cache),
        "resources": {"requests": {"cpu": "50m", "memory": ESTIMATE_MEMORY["request"]}, "limits": {"memory": ESTIMATE_MEMORY["limit"]}},
        "securityContext": _container_security(),
        "volumeMounts": mounts,
        "terminationMessagePath": TERMINATION_MESSAGE,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    pod = _pod_spec(deployment, settings, container, volumes) | {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5}
    pod["tolerations"] += [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in GPU_TAINTS]
    pod |= {"affinity": _on_node(node)} if node else {"nodeSelector": dict(node_selector)}
    labels = _labels(deployment, deployment.spec.pool, "prefetch")
    name, namespace = deployment.metadata.name, deployment.metadata.namespace
    metadata = {
        "generateName": f"{name[:40]}-prefetch-",
        "namespace": namespace,
        "labels": labels,
        "ownerReferences": _owner(deployment, deployment.metadata.uid),
    }
    spec = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": int(limit),
        "ttlSecondsAfterFinished": 300,  # should nobody be left to delete it
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return {"apiVersion": JOBS.api_version, "kind": JOBS.kind, "metadata": metadata, "spec": spec}


def on_host_memory(device_ids: Iterable[str]) -> bool:
    return all(item == HOST_ID for item in device_ids)


def _pod_spec(deployment: ModelDeployment, settings: ServerSettings, container: dict[str, Any], volumes: list[dict[str, Any]]) -> dict[str, Any]:
    extra = deployment.spec.pod
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [item.dump() for item in deployment.spec.placement.tolerations],
        "containers": [container],
        "volumes": volumes,
    }
    if extra.service_account_name:
        spec["serviceAccountName"] = extra.service_account_name
    if extra.priority_class_name:
        spec["priorityClassName"] = extra.priority_class_name
    if settings.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    return spec


def _env(server_spec: Mapping[str, Any], settings: ServerSettings, deployment: ModelDeployment) -> list[dict[str, Any]]:
    env: list[dict[str, Any]] = [
        {"name": "CORRAL_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": "CORRAL_PUBLIC_KEYS", "value": ",".join(settings.public_keys)},
        *({"name": name, "value": value} for name, value in server_variables(server_spec).items()),
        {"name": "CORRAL_CACHE_DIR", "value": CACHE_DIR},
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the pod's own emptyDir; the root is read-only
    ]
    if deployment.spec.model.secret_ref is not None:
        env.append({"name": "CORRAL_SECRET_DIR", "value": SECRET_DIR})
    if settings.hf_endpoint:
        env.append({"name": "CORRAL_HF_ENDPOINT", "value": settings.hf_endpoint})
    if settings.allow_local_sources:
        env.append({"name": "CORRAL_ALLOW_LOCAL_SOURCES", "value": "1"})
    return env


def _volumes(deployment: ModelDeployment, cache: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "cache", **cache_volume(cache, deployment.spec.engine.prompt_cache.size)},
    ]
    mounts: list[dict[str, Any]] = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "cache", "mountPath": CACHE_DIR}]  # noqa: S108 - as above
    secret = deployment.spec.model.secret_ref
    if secret is not None:
        volumes.append({"name": "source-secret", "secret": {"secretName": secret.name, "defaultMode": 0o440}})
        mounts.append({"name": "source-secret", "mountPath": SECRET_DIR, "readOnly": True})
    for index, claim in enumerate(source_claims(deployment)):
        volumes.append({"name": f"claim-{index}", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
        mounts.append({"name": f"claim-{index}", "mountPath": f"{CLAIMS_DIR}/{claim}", "readOnly": True})
    return volumes, mounts


def source_claims(deployment: ModelDeployment) -> tuple[str, ...]:
    """The claims that `pvc://CLAIM/PATH` sources name, each once."""
    spec = deployment.spec
    sources = [spec.model.source, spec.model.projector, spec.engine.draft.source, *(adapter.source for adapter in spec.engine.adapters)]
    found = (source.removeprefix("pvc://").split("/", 1)[0] for source in sources if source.startswith("pvc://"))
    return tuple(dict.fromkeys(found))


def cache_volume(cache: Mapping[str, Any], states: int = 0) -> dict[str, Any]:
    """`states`: bytes of saved states that a server keeps beside its model files."""
    settings = Cache.model_validate(dict(cache))
    size = str(settings.size + states + RESPONSES)
    if settings.type == "HostPath":
        return {"hostPath": {"path": settings.path, "type": "DirectoryOrCreate"}}
    if settings.type == "PersistentVolumeClaim" and settings.claim_name:
        return {"persistentVolumeClaim": {"claimName": settings.claim_name}}
    if settings.type == "PersistentVolumeClaim":
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": settings.storage_class_name,
            "resources": {"requests": {"storage": size}},
        }
        return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    return {"emptyDir": {"sizeLimit": size}}


def cache_env(cache: Mapping[str, Any]) -> list[dict[str, Any]]:
    settings = Cache.model_validate(dict(cache))
    shared = [{"name": "CORRAL_CACHE_SHARED", "value": "1"}] if settings.type == "HostPath" else []
    return [{"name": "CORRAL_CACHE_LIMIT", "value": str(int(settings.size))}, *shared]


def _labels(deployment: ModelDeployment, pool: str, component: str) -> dict[str, str]:
    return {MANAGED_BY: "corral", COMPONENT: component, MODEL_LABEL: deployment.metadata.name, POOL_LABEL: pool}


def _owner(deployment: ModelDeployment, uid: str) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": MODEL_DEPLOYMENTS.api_version,
            "kind": MODEL_DEPLOYMENTS.kind,
            "name": deployment.metadata.name,
            "uid": uid,
            "controller": True,
            "blockOwnerDeletion": False,  # no finalizer of ours, and no right to set one
        }
    ]


def _on_node(node: str) -> dict[str, Any]:
    """By the node's name, which its hostname label need not be."""
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def _container_security() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def _probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": CONTROL_PORT}, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}
