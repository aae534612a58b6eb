"""What holds for one model in the end: its own settings over its pool's. Pure: nothing but the two objects goes in."""

from dataclasses import dataclass
from datetime import timedelta

from corral.api.modeldeployment import ModelDeployment
from corral.api.modelpool import Cache, Hold, ModelPool

DEFAULT_POOL = ModelPool.parse({"metadata": {"name": "default"}})
"""A cluster without any pool behaves as if it had this one."""


@dataclass(frozen=True)
class Effective:
    """The settings of one model in its pool."""

    pool: str
    sleep_after: timedelta
    stop_after: timedelta
    min_residency: timedelta
    drain_timeout: timedelta
    max_wait: timedelta
    turn: timedelta
    eviction_policy: str
    hold: Hold
    cache: Cache
    max_models_per_device: int
    refusals: tuple[str, ...]
    """Why the pool does not take this model; empty: it does."""


def effective(deployment: ModelDeployment, pool: ModelPool | None = None) -> Effective:
    """`pool` is the one that the model names; None only where no pool exists at all."""
    policy = (pool or DEFAULT_POOL).spec
    scaling = deployment.spec.scaling
    sleep_after = policy.idle.sleep_after if scaling.sleep_after is None else scaling.sleep_after
    stop_after = policy.idle.stop_after if scaling.stop_after is None else scaling.stop_after
    return Effective(
        pool=deployment.spec.pool,
        sleep_after=sleep_after,
        # One may come from the model and the other from the pool: a replica still sleeps before it stops.
        stop_after=max(stop_after, sleep_after),
        min_residency=policy.eviction.min_residency,
        drain_timeout=policy.eviction.drain_timeout,
        max_wait=policy.fairness.max_wait,
        turn=policy.fairness.turn,
        eviction_policy=policy.eviction.policy,
        hold=policy.hold,
        cache=policy.cache,
        max_models_per_device=policy.max_models_per_device,
        refusals=refusals(deployment, pool or DEFAULT_POOL),
    )


def refusals(deployment: ModelDeployment, pool: ModelPool) -> tuple[str, ...]:
    """What `allowed` of the pool has against this model, each as a sentence that says what would be right."""
    allowed, name = pool.spec.allowed, pool.metadata.name
    found = []
    if "*" not in allowed.namespaces and deployment.metadata.namespace not in allowed.namespaces:
        listed = ", ".join(allowed.namespaces) or "none"
        found.append(f"namespace {deployment.metadata.namespace} may not use pool {name}; its allowed.namespaces are: {listed}")
    if deployment.spec.priority > allowed.max_priority:
        found.append(f"priority {deployment.spec.priority} is above {allowed.max_priority}, the allowed.maxPriority of pool {name}")
    if deployment.spec.pinned and not allowed.pinned:
        found.append(f"pinned is not allowed in pool {name}")
    return tuple(found)
