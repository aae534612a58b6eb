"""Renders the status of one model or pool from the store, the last verdicts and the conditions. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from corral.control.settings import ControlSettings
from corral.control.status import conditions_json, model_status, pool_conditions, pool_status, unreadable_status
from corral.control.store import Store
from corral.control.translate import Deployment
from corral.domain import reasons
from corral.domain.conditions import conditions
from corral.domain.plan import Verdict

NOTHING: Mapping[str, Any] = {}


class Renderer:
    def __init__(self, store: Store, settings: ControlSettings, clock: Callable[[], float]) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self.verdicts: Mapping[str, Verdict] = {}
        self.former_model: Callable[[str], Mapping[str, Any]] = self.observed_model
        self.former_pool: Callable[[str], Mapping[str, Any]] = self.observed_pool

    def observed_model(self, key: str) -> Mapping[str, Any]:
        found = self._store.deployments.get(key)
        return found.packed.status if found is not None else NOTHING

    def observed_pool(self, name: str) -> Mapping[str, Any]:
        found = self._store.pool_objects.get(name)
        return (found.get("status") or NOTHING) if found is not None else NOTHING

    def in_use(self, key: str) -> bool:
        """Whether there is a pod of it, or a request for it."""
        demand = self._store.state.demand.get(key)
        return bool(self._store.state.by_model.get(key)) or (demand is not None and demand.waiting > 0)

    def model(self, key: str) -> Mapping[str, Any] | None:
        """None: there is no such model (any more), or the loop has not seen it yet."""
        store = self._store
        found, model = store.deployments.get(key), store.state.models.get(key)
        if found is None or model is None:
            return None
        ids = sorted(store.state.by_model.get(key, ()))
        replicas = [store.state.replicas[it] for it in ids if not store.state.replicas[it].deleting]
        verdict, former = self.verdicts.get(key), self.former_model(key)
        judged = conditions(model, replicas, verdict, self._clock())
        told = conditions_json(judged, former.get("conditions") or (), model.generation, self._clock(), self._name_taken(key))
        facts = store.facts.get(key)
        if not isinstance(found, Deployment) or facts is None:
            return unreadable_status(model.generation, told, former)
        pods = [store.pods[it] for it in ids if it in store.pods]
        explanation = verdict.explanation if verdict is not None else None
        return model_status(found, facts, pods, told, explanation, store.names.served(key), self._settings, former)

    def _name_taken(self, key: str) -> str:
        """What is to be said of names that another model has."""
        taken = self._store.names.taken(key)
        if not taken:
            return ""
        listed = ", ".join(f"{name} belongs to {owner}" for name, owner in sorted(taken.items()))
        return f"{reasons.NAME_TAKEN}: {listed}; {key} always works."

    def pool(self, name: str) -> Mapping[str, Any] | None:
        pool = self._store.pools.get(name)
        if pool is None:
            return None
        models = len(self._store.projection.models_of_pool(name))
        return pool_status(
            pool,
            self._store.state,
            models,
            pool_conditions(pool, self._store.state, self._store.records.overlaps.get(name, {}), self.former_pool(name), self._clock()),
        )
