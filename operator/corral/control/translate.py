"""From custom resources to the values of the decision. Pure: an object and what is known of it go in, a value comes out."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from corral.api import Effective, InvalidObjectError, ModelDeployment, ModelPool, effective, estimated_engine, server_spec
from corral.api.mdstatus import ModelDeploymentStatus
from corral.control.facts import Facts
from corral.control.packing import Packed, Shared
from corral.control.settings import ControlSettings
from corral.domain import reasons
from corral.domain.model import Blocked, Model, Pool, Toleration

log = logging.getLogger(__name__)

SHARED = Shared()
NO_STATUS = ModelDeploymentStatus()

SEEN_ANYWAY = frozenset({"placements", "explanation", "selector", "replicas", "loadedReplicas", "sleepingReplicas"})
"""Parts of a status that a new leader sees for itself: reading thousands of statuses is most of what it does before its first decision."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A ModelDeployment that can be read, with what is derived from its spec alone."""

    packed: Packed
    parsed: ModelDeployment
    estimate_key: str  # what the estimate depends on

    @property
    def key(self) -> str:
        return self.parsed.key

    @property
    def uid(self) -> str:
        return self.parsed.metadata.uid

    @property
    def server_spec(self) -> Mapping[str, Any]:
        """`CORRAL_SPEC`."""
        return _server_spec(self.parsed)

    @property
    def file_key(self) -> str:
        """What its file is called in a cache (docs/contracts.md); empty: it is used where it is."""
        source = self.parsed.spec.model.source
        if source.startswith(("file://", "pvc://")):
            return ""
        return hashlib.sha256(f"{_cache_key(self.parsed)}\n{source}".encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A ModelDeployment that the API would have refused."""

    packed: Packed
    key: str
    uid: str
    generation: int
    message: str


def read_deployment(raw: Mapping[str, Any]) -> Deployment | Unreadable:
    packed = Packed.of(raw)
    try:
        # Its status is read once, when a leader takes over (`status_of`): thousands of them are not kept in a second form.
        parsed = ModelDeployment.parse({**raw, "status": NO_STATUS})
    except InvalidObjectError as error:
        metadata = raw.get("metadata") or {}
        return Unreadable(packed, key_of(raw), str(metadata.get("uid") or ""), int(metadata.get("generation") or 0), str(error))
    parsed = parsed.model_copy(update={"spec": SHARED.parts(parsed.spec)})
    told, secret = _server_spec(parsed), parsed.spec.model.secret_ref
    return Deployment(packed, parsed, digest([told["model"], estimated_engine(told["engine"]), secret.name if secret else ""], 16))


def _server_spec(parsed: ModelDeployment) -> dict[str, Any]:
    return server_spec(parsed, cache_key=_cache_key(parsed))


def _cache_key(parsed: ModelDeployment) -> str:
    """A private source's file is shared only among those who may use the same secret."""
    secret = parsed.spec.model.secret_ref
    return digest([parsed.metadata.namespace, secret.name], 16) if secret else ""


def status_of(deployment: Deployment) -> ModelDeploymentStatus:
    """What a former leader wrote and nothing else tells; a status that cannot be read says nothing."""
    told = deployment.packed.status
    try:
        told["conditions"] = [it for it in told.get("conditions") or () if it.get("type") == "Stalled"]
        told["memory"] = {"measured": measured} if (measured := (told.get("memory") or {}).get("measured")) else None
        return ModelDeploymentStatus.model_validate({name: value for name, value in told.items() if name not in SEEN_ANYWAY})
    except (ValidationError, AttributeError) as error:
        log.warning("%s: its status cannot be read and counts as empty: %s", deployment.key, error)
        return ModelDeploymentStatus()


def key_of(raw: Mapping[str, Any]) -> str:
    metadata = raw.get("metadata") or {}
    return f"{metadata.get('namespace', '')}/{metadata.get('name', '')}"


def digest(value: Any, length: int) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()[:length]


def revision_of(deployment: Deployment, pool: ModelPool | None, settings: ControlSettings) -> str:
    """Six hex digits of everything that a rendered pod depends on."""
    spec, policy = deployment.parsed.spec, effective(deployment.parsed, pool)
    placement = spec.placement.dump()
    placement.pop("maxDevices", None)
    secret = spec.model.secret_ref.name if spec.model.secret_ref else ""
    cache = policy.cache.dump()
    cache.pop("warm", None)  # the operator's own business
    return digest([deployment.server_spec, secret, spec.pod.dump(), placement, spec.pool, cache, settings.template], 6)


def pool_of(parsed: ModelPool) -> Pool:
    spec = parsed.spec
    return Pool(
        name=parsed.metadata.name,
        max_models_per_device=spec.max_models_per_device,
        policy=spec.eviction.policy,
        min_residency=spec.eviction.min_residency.total_seconds(),
        drain_timeout=spec.eviction.drain_timeout.total_seconds(),
        max_wait=spec.fairness.max_wait.total_seconds(),
        turn=spec.fairness.turn.total_seconds(),
        hold_timeout=spec.hold.timeout.total_seconds(),
        allowed_namespaces=tuple(spec.allowed.namespaces),
        max_priority=spec.allowed.max_priority,
        pinned_allowed=spec.allowed.pinned,
    )


def refused_by_pool(deployment: Deployment, pool: ModelPool | None, *, any_pool: bool) -> Blocked | None:
    """Why the pool's rules leave this model out. Without any pool in the cluster the default one holds."""
    name = deployment.parsed.spec.pool
    if pool is None and (any_pool or name != "default"):
        return Blocked(reasons.POOL_NOT_FOUND, f"spec.pool is {name}; there is no ModelPool of this name")
    refusals = effective(deployment.parsed, pool).refusals
    return Blocked(reasons.POOL_NOT_ALLOWED, "; ".join(refusals)) if refusals else None


def model_of(
    deployment: Deployment,
    policy: Effective,
    facts: Facts,
    *,
    revision: str,
    refused: Blocked | None,
    settings: ControlSettings,
) -> Model:
    spec, metadata = deployment.parsed.spec, deployment.parsed.metadata
    footprint = facts.footprint(settings)
    return Model(
        key=deployment.key,
        namespace=metadata.namespace,
        uid=metadata.uid,
        generation=metadata.generation,
        revision=revision,
        pool=spec.pool,
        priority=spec.priority,
        pinned=spec.pinned,
        min_replicas=spec.scaling.min_replicas,
        max_replicas=spec.scaling.max_replicas,
        target_in_flight=spec.scaling.target_in_flight,
        sleep_after=policy.sleep_after.total_seconds(),
        stop_after=policy.stop_after.total_seconds(),
        max_devices=spec.placement.max_devices,
        node_selector=spec.placement.node_selector,
        tolerations=tuple(Toleration(it.key, it.operator, it.value, it.effect) for it in spec.placement.tolerations),
        footprint=replace(footprint, digest=deployment.file_key) if footprint else None,
        residue=max(facts.residue, settings.residue),
        created=created_of(deployment),
        deleting=metadata.deletion_timestamp is not None,
        blocked=refused or facts.domain_block(),
        backoff=facts.backoff(),
        queue_since=facts.queue_since,
        queue_until=facts.queue_until,
        load_seconds=facts.last_load.again if facts.last_load else 0.0,
        estimating=facts.estimating,
    )


def created_of(deployment: Deployment) -> float:
    created = deployment.parsed.metadata.creation_timestamp
    return created.timestamp() if created else 0.0


def blocked_model(key: str, generation: int, blocked: Blocked) -> Model:
    """What cannot be read is no model to be placed; it only says why."""
    return Model(key=key, namespace=key.partition("/")[0], generation=generation, blocked=blocked)
