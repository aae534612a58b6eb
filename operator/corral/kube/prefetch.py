"""`corral prefetch` on a cluster: one Job that fetches a model's file into the cache of a node and reads it into memory, and what came of it.

It acts with the rights of whoever calls it, and asks the installed operator's Deployment for what all server pods have in common. It decides
nothing: a node is named by the caller, or chosen by the scheduler.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from kubernetes.aio.config.config_exception import ConfigException

from corral.api import ModelPool, effective
from corral.control.translate import Deployment, read_deployment
from corral.kube.client import JOBS, MODEL_DEPLOYMENTS, MODEL_POOLS, PODS, KubeClient, Resource
from corral.kube.manifests import ServerSettings, prefetch_job
from corral.kube.ports import Gone, Refused, Unavailable

DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
OPERATORS = "app.kubernetes.io/part-of=corral,app.kubernetes.io/component=operator"
POLL = 1.0


class PrefetchError(RuntimeError):
    """Nothing was fetched; the message says why."""


async def prefetch(namespace: str, name: str, node: str, kubeconfig: str, timeout: float, say: Callable[[str], None]) -> Mapping[str, Any]:  # noqa: ASYNC109
    """What the Job answered."""
    try:
        client = await KubeClient.connect(user_agent="corral-cli", kubeconfig=kubeconfig)
    except (ConfigException, OSError) as error:
        raise PrefetchError(f"kubeconfig: {error}") from error
    try:
        return await _prefetch(client, namespace, name, node, timeout, say)
    except (Gone, Refused, Unavailable, OSError) as error:
        raise PrefetchError(str(error)) from error
    finally:
        await client.close()


async def _prefetch(client: KubeClient, namespace: str, name: str, node: str, limit: float, say: Callable[[str], None]) -> Mapping[str, Any]:
    raw = await client.get(MODEL_DEPLOYMENTS.path(namespace, name))
    found = read_deployment(raw)
    if not isinstance(found, Deployment):
        raise PrefetchError(found.message)
    deployment = found.parsed
    try:
        pool: ModelPool | None = ModelPool.parse(await client.get(MODEL_POOLS.path("", deployment.spec.pool)))
    except Gone:
        pool = None
    cache = effective(deployment, pool).cache
    if cache.type != "HostPath" and not cache.claim_name:
        raise PrefetchError(
            f"pool {deployment.spec.pool}: spec.cache.type is {cache.type}: a file fetched now would be gone with its pod. "
            "It has to be HostPath, or PersistentVolumeClaim with a claimName"
        )
    selector = {**(pool.spec.node_selector if pool else {}), **deployment.spec.placement.node_selector}
    job = prefetch_job(deployment, found.server_spec, cache.dump(), node, selector, await _settings(client), limit)
    made = await client.create(JOBS.path(namespace), job)
    job_name = made["metadata"]["name"]
    say(f"job {namespace}/{job_name} fetches {deployment.spec.model.source}")
    try:
        async with asyncio.timeout(limit):
            return await _answer(client, namespace, job_name, say)
    except TimeoutError:
        raise PrefetchError(f"no answer within {limit:.0f} s; --timeout gives it longer") from None
    finally:
        await client.delete(JOBS.path(namespace, job_name))


async def _settings(client: KubeClient) -> ServerSettings:
    """What the installation says about server pods, by the environment of its operator."""
    found = (await client.list(DEPLOYMENTS.path(), {"labelSelector": OPERATORS})).get("items") or []
    if not found:
        raise PrefetchError("no operator is installed there: no Deployment has the labels " + OPERATORS)
    container = found[0]["spec"]["template"]["spec"]["containers"][0]
    env = {item["name"]: item.get("value", "") for item in container.get("env") or []}
    return ServerSettings(
        image=env["CORRAL_SERVER_IMAGE"],
        pull_policy=env.get("CORRAL_SERVER_PULL_POLICY") or "IfNotPresent",
        pull_secrets=tuple(name for name in env.get("CORRAL_SERVER_PULL_SECRETS", "").split(",") if name),
        hf_endpoint=env.get("CORRAL_HF_ENDPOINT", ""),
        allow_local_sources=env.get("CORRAL_ALLOW_LOCAL_SOURCES", "") in {"1", "true"},
    )


async def _answer(client: KubeClient, namespace: str, job: str, say: Callable[[str], None]) -> Mapping[str, Any]:
    told = ""
    while True:
        for pod in (await client.list(PODS.path(namespace), {"labelSelector": f"job-name={job}"})).get("items") or []:
            status = pod.get("status") or {}
            for container in status.get("containerStatuses") or []:
                ended = (container.get("state") or {}).get("terminated")
                if ended is not None:
                    return _read(ended, pod["spec"].get("nodeName", ""))
            waits = next(
                (c.get("message", "") for c in status.get("conditions") or [] if c.get("type") == "PodScheduled" and c["status"] == "False"), ""
            )
            text = waits or f"its pod is {status.get('phase', 'Pending')} on {pod['spec'].get('nodeName') or 'no node yet'}"
            if text != told:
                say(text)
                told = text
        await asyncio.sleep(POLL)


def _read(ended: Mapping[str, Any], node: str) -> Mapping[str, Any]:
    text = str(ended.get("message") or "").strip()
    try:
        answer = json.loads(text.splitlines()[-1])
    except (ValueError, IndexError):
        raise PrefetchError(f"its process ended with {ended.get('exitCode')} on {node}: {text[-500:] or ended.get('reason', '')}") from None
    if not answer.get("ok"):
        raise PrefetchError(f"{answer.get('reason')} on {node}: {answer.get('message')}")
    return {**answer, "node": node}
