"""The highest epoch that any commitment carries: below it no leader may start, or supervisors refuse it for good. Reads only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from corral.kube.client import PAGE, PODS
from corral.kube.pods import SERVER_SELECTOR
from corral.kube.ports import COMMIT


class Lists(Protocol):
    """As much of `KubeClient` as is needed here."""

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]: ...


async def highest_epoch(client: Lists) -> int:
    """0 when no server pod carries a commitment."""
    highest, following = 0, ""
    while True:
        params = {"labelSelector": SERVER_SELECTOR, "limit": str(PAGE)} | ({"continue": following} if following else {})
        page = await client.list(PODS.path(), params)
        for pod in page.get("items") or ():
            highest = max(highest, epoch_of((pod["metadata"].get("annotations") or {}).get(COMMIT)))
        following = (page.get("metadata") or {}).get("continue") or ""
        if not following:
            return highest


def epoch_of(commitment: str | None) -> int:
    try:
        epoch = json.loads(commitment or "{}").get("epoch")
    except (ValueError, AttributeError):
        return 0
    return epoch if isinstance(epoch, int) else 0
