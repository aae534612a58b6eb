"""The pools, and which of them a node belongs to: exactly one. No I/O: whoever watches pools puts them in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from corral.api.effective import DEFAULT_POOL
from corral.api.errors import InvalidObjectError
from corral.api.modelpool import ModelPool

log = logging.getLogger(__name__)


def matches(pool: ModelPool, labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in pool.spec.node_selector.items())


def rank(pool: ModelPool) -> tuple[bool, float, str]:
    """The lowest has the node: a selector that names labels, then the older pool, then the name."""
    created = pool.metadata.creation_timestamp
    return (not pool.spec.node_selector, created.timestamp() if created else 0.0, pool.metadata.name)


def pool_of(labels: Mapping[str, str], pools: Iterable[ModelPool]) -> tuple[ModelPool | None, tuple[str, ...]]:
    """(the pool that has a node of these labels, the names of those that overlap with it there).

    The pool with the empty selector takes what is left, so it overlaps only with its like.
    """
    candidates = sorted((pool for pool in pools if matches(pool, labels)), key=rank)
    if not candidates:
        return None, ()
    winner = candidates[0]
    losers = (pool for pool in candidates[1:] if bool(pool.spec.node_selector) == bool(winner.spec.node_selector))
    return winner, tuple(pool.metadata.name for pool in losers)


class Pools:
    """The pools that there are. A cluster without any has the default one."""

    def __init__(self) -> None:
        self._pools: dict[str, ModelPool] = {}
        self.changed: Callable[[], None] = lambda: None

    def put_pool(self, obj: Mapping[str, Any]) -> None:
        try:
            pool = ModelPool.parse(obj)
        except InvalidObjectError as error:
            log.error("%s; its nodes stay as they were", error)  # noqa: TRY400 - it says all
            return
        old = self._pools.get(pool.metadata.name)
        self._pools[pool.metadata.name] = pool
        if old is None or old.spec != pool.spec or old.metadata.uid != pool.metadata.uid:
            self.changed()

    def remove_pool(self, name: str) -> None:
        if self._pools.pop(name, None) is not None:
            self.changed()

    def get(self, name: str) -> ModelPool:
        """The pool of that name, or the default settings where there is none."""
        return self._pools.get(name, DEFAULT_POOL)

    def of(self, labels: Mapping[str, str]) -> tuple[ModelPool | None, tuple[str, ...]]:
        """The pool that has a node of these labels, and those that overlap with it there."""
        return pool_of(labels, tuple(self._pools.values()) or (DEFAULT_POOL,))
