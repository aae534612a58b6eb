"""The objects of the current cluster, read once for the command line. It never writes and never watches."""

from __future__ import annotations

from typing import Any

from kubernetes.aio.config.config_exception import ConfigException

from corral.kube.client import MODEL_DEPLOYMENTS, MODEL_POOLS, PAGE, KubeClient, Resource
from corral.kube.ports import Gone, Refused, Unavailable


class ClusterUnreachableError(RuntimeError):
    """No kubeconfig, no answer, or no right to read."""


async def list_objects(kubeconfig: str = "") -> dict[str, Any]:
    """`models` and `pools`, by namespace and name."""
    try:
        client = await KubeClient.connect(user_agent="corral-cli", kubeconfig=kubeconfig)
    except (ConfigException, OSError) as error:
        raise ClusterUnreachableError(f"kubeconfig: {error}") from error
    try:
        return {"models": await _all(client, MODEL_DEPLOYMENTS), "pools": await _all(client, MODEL_POOLS)}
    except Gone as error:
        raise ClusterUnreachableError(f"Corral's custom resources are not installed there: {error}") from error
    except (Refused, Unavailable, OSError) as error:
        raise ClusterUnreachableError(str(error)) from error
    finally:
        await client.close()


async def _all(client: KubeClient, resource: Resource) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    params = {"limit": str(PAGE)}
    while True:
        page = await client.list(resource.path(), params)
        found.extend(page.get("items", []))
        following = page.get("metadata", {}).get("continue")
        if not following:
            return sorted(found, key=lambda obj: (obj["metadata"].get("namespace", ""), obj["metadata"]["name"]))
        params = {"limit": str(PAGE), "continue": following}
