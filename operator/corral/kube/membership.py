"""Which pool a node belongs to: exactly one. Pure, and told the same way to whoever asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from corral.api.effective import DEFAULT_POOL
from corral.api.modelpool import ModelPool


def matches(pool: ModelPool, labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in pool.spec.node_selector.items())


def rank(pool: ModelPool) -> tuple[bool, float, str]:
    """The lowest has the node: a selector that names labels, then the older pool, then the name."""
    created = pool.metadata.creation_timestamp
    return (not pool.spec.node_selector, created.timestamp() if created else 0.0, pool.metadata.name)


def pool_of(labels: Mapping[str, str], pools: Iterable[ModelPool]) -> tuple[ModelPool | None, tuple[str, ...]]:
    """(the pool that has a node of these labels, the names of those that overlap with it there).

    A cluster without any pool has the default one. The pool with the empty selector takes what is left, so it overlaps only with its like.
    """
    candidates = sorted((pool for pool in pools if matches(pool, labels)), key=rank)
    if not candidates:
        return None, ()
    winner = candidates[0]
    losers = (pool for pool in candidates[1:] if bool(pool.spec.node_selector) == bool(winner.spec.node_selector))
    return winner, tuple(pool.metadata.name for pool in losers)


def known(pools: Iterable[ModelPool]) -> tuple[ModelPool, ...]:
    return tuple(pools) or (DEFAULT_POOL,)
