"""Server processes as pods: implements `Workloads` over process groups of this machine, and keeps each one running as a kubelet would.

What a pod object holds on a cluster (annotations, requests, restarts) is held here in memory; what must not outlive a killed instance, the
processes, is noted in the run directory. It must never decide what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from corral.api import server_variables
from corral.api.modelpool import Cache
from corral.domain import reasons
from corral.domain.model import HOST_ID, DeviceKind
from corral.kube.ports import DEVICES, Conflict, EstimateRequest, Gone, Leadership, NotLeader, PodRecord, ReplicaRequest
from corral.local.estimates import Estimates
from corral.local.processes import Group, Warden, server_command, server_environment
from corral.local.rundir import RunDir

log = logging.getLogger(__name__)

RESTART_DELAYS = (0.0, 1.0, 5.0, 20.0, 60.0)
SECRET_CHECK = 1.0
HEALTHY_AFTER = 60.0
"""A process that lived this long starts again with the shortest delay."""

Watcher = Callable[[PodRecord, bool], None]
"""Told of each change of a record, and with True of its end."""


@dataclass
class Pod:
    request: ReplicaRequest
    record: PodRecord
    group: Group | None = None
    keeper: asyncio.Task[None] | None = None
    deleted: asyncio.Event = field(default_factory=asyncio.Event)
    grace: float = 30.0


@dataclass(frozen=True, slots=True)
class PodSettings:
    run_dir: RunDir
    files: Path
    """Where downloaded model files are kept."""
    public_keys: str
    gpu_variable: str = ""
    """The variable that narrows a process to its GPUs (`CUDA_VISIBLE_DEVICES`); empty: there are no real ones."""


class LocalPods:
    def __init__(self, settings: PodSettings, leadership: Leadership, warden: Warden, estimates: Estimates) -> None:
        self._settings = settings
        self._leadership = leadership
        self._warden = warden
        self._estimates = estimates
        self._pods: dict[str, Pod] = {}
        self._versions = itertools.count(1)
        self._watchers: list[Watcher] = []
        self._secrets: dict[tuple[str, str], Mapping[str, str]] = {}

    def subscribe(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)

    @property
    def records(self) -> Sequence[PodRecord]:
        return [pod.record for pod in self._pods.values()]

    def log_file(self, record: PodRecord) -> Path:
        return self._settings.run_dir.log_of(f"{record.namespace}/{record.name}")

    def pid_of(self, record: PodRecord) -> int | None:
        pod = self._pods.get(f"{record.namespace}/{record.name}")
        return pod.group.pid if pod is not None and pod.group is not None else None

    # --- Workloads

    async def create(self, request: ReplicaRequest) -> PodRecord:
        self._check()
        key = f"{request.namespace}/{request.name}"
        existing = self._pods.get(key)
        if existing is not None:
            if existing.record.owner_uid != request.owner_uid or existing.record.deleting:
                raise Conflict(f"{key} exists")
            return existing.record
        record = PodRecord(
            namespace=request.namespace,
            name=request.name,
            uid=str(uuid.uuid4()),
            model=request.model,
            revision=request.revision,
            pool=request.pool,
            node=request.devices[0].node,
            devices=tuple(device.id for device in request.devices),
            resource_version=self._version(),
            annotations={DEVICES: json.dumps([device.id for device in request.devices])},
            created=time.time(),
            scheduled=True,
            memory_request=request.memory_request,
            memory_wanted=request.memory_request,
            owner_uid=request.owner_uid,
        )
        pod = Pod(request, record)
        self._pods[key] = pod
        pod.keeper = asyncio.create_task(self._keep(pod), name=f"pod {key}")
        self._tell(pod)
        return record

    async def delete(self, pod: PodRecord, grace: float) -> None:
        self._check()
        found = self._pods.get(f"{pod.namespace}/{pod.name}")
        if found is not None and found.record.uid == pod.uid:
            self._end(found, grace)

    async def annotate(self, pod: PodRecord, annotations: Mapping[str, str | None], *, precondition: bool) -> PodRecord:
        self._check()
        found = self._found(pod)
        if precondition and found.record.resource_version != pod.resource_version:
            raise Conflict(f"{pod.namespace}/{pod.name} changed since version {pod.resource_version}")
        merged: dict[str, str | None] = {**found.record.annotations, **annotations}
        self._change(found, annotations={name: value for name, value in merged.items() if value is not None})
        return found.record

    async def resize(self, pod: PodRecord, memory_request: int, memory_limit: int = 0) -> PodRecord:  # noqa: ARG002 - processes have no limit
        self._check()
        found = self._found(pod)
        # No kubelet has a say on one machine: what is asked for is granted.
        self._change(found, memory_wanted=memory_request, memory_request=memory_request)
        return found.record

    async def estimate(self, request: EstimateRequest) -> Mapping[str, Any]:
        self._check()
        name = _secret_name(request.model_object)
        if name and (request.namespace, name) not in self._secrets:
            return {"ok": False, "reason": reasons.SECRET_NOT_FOUND, "message": _no_secret(request.namespace, name), "retry": True}
        return await self._estimates.estimate(request.server_spec, self._secret_dir(request.model_object, request.namespace))

    # --- the world's side

    def put_secret(self, namespace: str, name: str, values: Mapping[str, str] | None) -> None:
        """A Secret of the folder (None: it is gone): its values become files that only this user can read."""
        folder = self._settings.run_dir.secrets / namespace / name
        if folder.exists():
            for file in folder.iterdir():
                file.unlink()
        if values is None:
            self._secrets.pop((namespace, name), None)
            return
        self._secrets[namespace, name] = values
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for key, value in values.items():
            file = folder / Path(key).name
            file.touch(mode=0o600)
            file.write_text(value)

    def collect(self, owner_uid: str) -> None:
        """Its owner is gone: end what it owned, as the garbage collector of a cluster does."""
        for pod in self._pods.values():
            if pod.record.owner_uid == owner_uid:
                self._end(pod, 30.0)

    async def close(self, grace: float) -> None:
        """End every pod; those that take longer than `grace` are killed."""
        keepers = [pod.keeper for pod in self._pods.values() if pod.keeper is not None]
        for pod in self._pods.values():
            self._end(pod, grace)
        await asyncio.gather(*keepers, return_exceptions=True)

    # --- keeping one pod

    async def _keep(self, pod: Pod) -> None:
        failures = 0
        try:
            while not pod.deleted.is_set():
                if await self._secret_missing(pod):
                    continue
                started = time.monotonic()
                code = await self._run_once(pod)
                if pod.deleted.is_set():
                    return
                failures = 0 if time.monotonic() - started > HEALTHY_AFTER else failures + 1
                delay = RESTART_DELAYS[min(failures, len(RESTART_DELAYS)) - 1] if failures else 0.0
                log.warning("%s/%s: its process ended with %s; it starts again in %.0f s", pod.record.namespace, pod.record.name, _told(code), delay)
                message = f"its process ended with {_told(code)}; see {self.log_file(pod.record)}"
                self._change(pod, running=False, restarts=pod.record.restarts + 1, message=message)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(pod.deleted.wait(), delay)
        except Exception as error:
            log.exception("%s/%s cannot be kept running", pod.record.namespace, pod.record.name)
            self._change(pod, running=False, failure=reasons.FAILED, message=str(error))
            await pod.deleted.wait()
        finally:
            self._pods.pop(f"{pod.record.namespace}/{pod.record.name}", None)
            self._tell(pod, gone=True)

    async def _secret_missing(self, pod: Pod) -> bool:
        """Wait a moment for a secret that the model names and the folder does not have."""
        name = _secret_name(pod.request.model_object)
        if not name or (pod.request.namespace, name) in self._secrets:
            if pod.record.failure == reasons.SECRET_NOT_FOUND:
                self._change(pod, failure="", message="")
            return False
        if pod.record.failure != reasons.SECRET_NOT_FOUND:
            self._change(pod, failure=reasons.SECRET_NOT_FOUND, message=_no_secret(pod.request.namespace, name))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pod.deleted.wait(), SECRET_CHECK)
        return True

    async def _run_once(self, pod: Pod) -> int:
        ports_file = self._settings.run_dir.ports / f"{pod.record.uid}.json"
        ports_file.unlink(missing_ok=True)
        pod.group = await Group.start(
            server_command("serve"),
            self._environment(pod, ports_file),
            self.log_file(pod.record),
            uid=pod.record.uid,
            run_dir=self._settings.run_dir,
            warden=self._warden,
        )
        ended = asyncio.create_task(pod.group.wait())
        killer = asyncio.create_task(self._end_when_deleted(pod, pod.group))
        try:
            await self._announce_ports(pod, ports_file, ended)
            return await ended
        finally:
            killer.cancel()
            pod.group.kill()
            ports_file.unlink(missing_ok=True)

    async def _announce_ports(self, pod: Pod, ports_file: Path, ended: asyncio.Task[int]) -> None:
        while not ended.done():
            ports = _read_ports(ports_file)
            if ports is not None:
                found = {"inference_port": int(ports["inference"]), "control_port": int(ports["control"])}
                self._change(pod, running=True, message="", host="127.0.0.1", **found)
                return
            await asyncio.wait([ended], timeout=0.02)

    async def _end_when_deleted(self, pod: Pod, group: Group) -> None:
        await pod.deleted.wait()
        group.terminate()
        await asyncio.sleep(pod.grace)
        group.kill()

    def _end(self, pod: Pod, grace: float) -> None:
        pod.grace = min(grace, pod.grace) if pod.deleted.is_set() else grace
        if not pod.deleted.is_set():
            pod.deleted.set()
            self._change(pod, deleting=True)

    def _environment(self, pod: Pod, ports_file: Path) -> dict[str, str]:
        request = pod.request
        environment = server_environment()
        for variable in request.model_object.get("spec", {}).get("pod", {}).get("env", []):
            environment[variable["name"]] = variable.get("value", "")
        environment |= {
            "CORRAL_PUBLIC_KEYS": self._settings.public_keys,
            **server_variables(request.server_spec),
            "CORRAL_CACHE_DIR": str(self._settings.files),
            "CORRAL_CACHE_LIMIT": str(int(Cache.model_validate(dict(request.cache)).size)),
            "CORRAL_CACHE_SHARED": "1",
            "CORRAL_ALLOW_LOCAL_SOURCES": "1",
            "CORRAL_HOST": "127.0.0.1",
            "CORRAL_INFERENCE_PORT": "0",
            "CORRAL_CONTROL_PORT": "0",
            "CORRAL_PORTS_FILE": str(ports_file),
        }
        secret_dir = self._secret_dir(request.model_object, request.namespace)
        if secret_dir is not None:
            environment["CORRAL_SECRET_DIR"] = str(secret_dir)
        if self._settings.gpu_variable and request.device_kind is DeviceKind.GPU:
            environment[self._settings.gpu_variable] = ",".join(device.id for device in request.devices if device.id != HOST_ID)
        return environment

    def _secret_dir(self, model_object: Mapping[str, Any], namespace: str) -> Path | None:
        name = _secret_name(model_object)
        return self._settings.run_dir.secrets / namespace / name if name and (namespace, name) in self._secrets else None

    # --- records

    def _check(self) -> None:
        if not self._leadership.may_write():
            raise NotLeader("this instance is shutting down")

    def _found(self, pod: PodRecord) -> Pod:
        found = self._pods.get(f"{pod.namespace}/{pod.name}")
        if found is None or found.record.uid != pod.uid:
            raise Gone(f"{pod.namespace}/{pod.name} is gone")
        return found

    def _version(self) -> str:
        return str(next(self._versions))

    def _change(self, pod: Pod, **changes: Any) -> None:
        pod.record = replace(pod.record, resource_version=self._version(), **changes)
        self._tell(pod)

    def _tell(self, pod: Pod, *, gone: bool = False) -> None:
        for watcher in tuple(self._watchers):
            watcher(pod.record, gone)


def _secret_name(model_object: Mapping[str, Any]) -> str:
    return str((model_object.get("spec", {}).get("model", {}).get("secretRef") or {}).get("name") or "")


def _no_secret(namespace: str, name: str) -> str:
    return f"spec.model.secretRef names {name}; there is no Secret {namespace}/{name} in the folder. Add one, with the key token"


def _read_ports(path: Path) -> Mapping[str, Any] | None:
    try:
        ports = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return ports if isinstance(ports, dict) else None


def _told(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
