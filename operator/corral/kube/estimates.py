"""Runs the estimate of a model as a Job, reads its answer from the termination message, and removes it.

It owns the Job from its creation to its deletion. It must never parse a model's header itself: that is why there is a Job.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from corral.domain import reasons
from corral.kube.client import JOBS, PODS, AlreadyExists, Expired, KubeClient
from corral.kube.manifests import ServerSettings, estimate_job, estimate_name
from corral.kube.pods import CONTAINER, START_PATIENCE, missing_secret, start_failure
from corral.kube.ports import Conflict, EstimateRequest, Gone, NotLeader, Refused, Unavailable

log = logging.getLogger(__name__)

Answer = Mapping[str, Any]

HOPELESS = frozenset({"ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
"""Waiting reasons that no waiting mends."""
UNPULLABLE = frozenset({"ErrImagePull", "ImagePullBackOff"})
ROUND = 10.0
"""Seconds that one watch may last; then the Job itself is looked at."""


def failed(reason: str, message: str, *, retry: bool) -> Answer:
    return {"ok": False, "reason": reason, "message": message, "retry": retry}


def answer_of(pod: Mapping[str, Any]) -> Answer | None:
    """What a Job's pod has to say, None while it has nothing."""
    status = pod.get("status") or {}
    found: Mapping[str, Any] = next((item for item in status.get("containerStatuses") or [] if item.get("name") == CONTAINER), {})
    state = found.get("state") or {}
    terminated = state.get("terminated")
    if terminated is not None:
        return _read(terminated)
    waiting = state.get("waiting") or {}
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if missing_secret(message):
        return failed(reasons.SECRET_NOT_FOUND, message, retry=True)
    if reason in HOPELESS or reason in UNPULLABLE:
        return failed(reasons.ESTIMATE_FAILED, f"the estimate's pod does not start: {reason}: {message}", retry=True)
    if status.get("phase") == "Failed":
        return failed(
            reasons.ESTIMATE_FAILED, f"the estimate's pod failed: {status.get('reason', '')} {status.get('message', '')}".strip(), retry=True
        )
    return None


def _read(terminated: Mapping[str, Any]) -> Answer:
    text = str(terminated.get("message", ""))
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("ok"), bool):
        return answer
    ended = f"{terminated.get('reason', '')}, exit code {terminated.get('exitCode', 'unknown')}"
    tail = text.strip()[-300:]
    return failed(reasons.ESTIMATE_FAILED, f"the estimate gave no answer ({ended}){': ' + tail if tail else ''}", retry=True)


class Estimates:
    """`run` gives the server's JSON, or one of the same shape that says why there is none. Raises what a client may raise."""

    def __init__(self, client: KubeClient, settings: ServerSettings, *, patience: float = START_PATIENCE) -> None:
        self._client = client
        self._settings = settings
        self._patience = patience

    async def run(self, request: EstimateRequest) -> Answer:
        job = await self._start(request)
        try:
            async with asyncio.timeout(self._settings.estimate_deadline + 30):
                return await self._answer(request, str(job["metadata"]["uid"]))
        except TimeoutError:
            return failed(reasons.ESTIMATE_FAILED, f"no answer within {self._settings.estimate_deadline} s", retry=True)
        finally:
            await self._remove(request)

    async def _start(self, request: EstimateRequest) -> dict[str, Any]:
        manifest = estimate_job(request, self._settings)
        try:
            return await self._client.create(JOBS.path(request.namespace), manifest)
        except AlreadyExists:
            # An earlier leader's. Its question was the same if its owner is; what it was told is not known, so it is asked anew.
            await self._remove(request)
            await self._gone(request)
            return await self._client.create(JOBS.path(request.namespace), manifest)

    async def _gone(self, request: EstimateRequest) -> None:
        with contextlib.suppress(Gone):
            for _ in range(20):
                await self._client.get(JOBS.path(request.namespace, estimate_name(request)))
                await asyncio.sleep(0.25)

    async def _remove(self, request: EstimateRequest) -> None:
        try:
            await self._client.delete(JOBS.path(request.namespace, estimate_name(request)), propagation="Background")
        except (Gone, Conflict):
            pass
        except (Unavailable, Refused, NotLeader) as error:
            log.warning("the estimate's Job %s/%s is left to its time to live: %s", request.namespace, estimate_name(request), error)

    async def _answer(self, request: EstimateRequest, uid: str) -> Answer:
        path = PODS.path(request.namespace)
        selector = {"labelSelector": f"batch.kubernetes.io/controller-uid={uid}"}
        while True:
            page = await self._client.list(path, selector)
            for pod in page.get("items") or []:
                if (answer := answer_of(pod)) is not None:
                    return answer
                if (pod.get("spec") or {}).get("nodeName") and (answer := await self._stuck(pod)) is not None:
                    return answer
            if not page.get("items") and (answer := await self._ended(request)) is not None:
                return answer
            # A pod that does not start changes nothing that a watch could tell; so look again after a while.
            wait = self._patience if not any(_runs(pod) for pod in page.get("items") or []) else ROUND
            version = str((page.get("metadata") or {}).get("resourceVersion") or "")
            answer = await self._follow(path, {**selector, "resourceVersion": version, "timeoutSeconds": str(max(1, round(wait)))}, wait)
            if answer is not None:
                return answer

    async def _follow(self, path: str, params: Mapping[str, str], wait: float) -> Answer | None:
        try:
            async with contextlib.aclosing(self._client.watch(path, params, idle=wait + 5)) as stream:
                async for event in stream:
                    if event["type"] != "BOOKMARK" and (answer := answer_of(event["object"])) is not None:
                        return answer
        except (Unavailable, Expired) as error:
            log.info("%s", error)
            await asyncio.sleep(0.5)
        return None

    async def _stuck(self, pod: Mapping[str, Any]) -> Answer | None:
        """A missing secret of a volume shows in an event only."""
        if _runs(pod):
            return None
        failure, message = await start_failure(self._client, pod["metadata"]["namespace"], pod["metadata"]["uid"])
        return failed(failure, message, retry=True) if failure else None

    async def _ended(self, request: EstimateRequest) -> Answer | None:
        """The Job's own word, when it has no pod: it ran out of time, or may not make one."""
        try:
            job = await self._client.get(JOBS.path(request.namespace, estimate_name(request)))
        except Gone:
            return failed(reasons.ESTIMATE_FAILED, "somebody deleted the estimate's Job", retry=True)
        for condition in (job.get("status") or {}).get("conditions") or []:
            if condition.get("type") == "Failed" and condition.get("status") == "True":
                return failed(reasons.ESTIMATE_FAILED, f"{condition.get('reason', '')}: {condition.get('message', '')}", retry=True)
        return None


def _runs(pod: Mapping[str, Any]) -> bool:
    return any("running" in (item.get("state") or {}) for item in (pod.get("status") or {}).get("containerStatuses") or [])
