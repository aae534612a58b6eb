"""The records as the decision's State. `refresh` translates what was marked since the last time, and costs that; the loop alone calls it, so State
has one owner. Nothing here decides, and nothing does I/O.
"""

from __future__ import annotations

from collections.abc import Iterator

from corral.api import DEFAULT_POOL, effective
from corral.control.facts import Facts
from corral.control.naming import Names
from corral.control.pods import replica_of, state_of
from corral.control.records import Records
from corral.control.settings import ControlSettings
from corral.control.translate import Deployment, Unreadable, blocked_model, created_of, model_of, pool_of, refused_by_pool, revision_of, status_of
from corral.domain import reasons
from corral.domain.model import Blocked, Demand, DeviceKey
from corral.domain.snapshot import State

SLICE = 100


class Projection:
    def __init__(self, records: Records, settings: ControlSettings) -> None:
        self.records = records
        self._settings = settings
        self.state = State()
        self.facts: dict[str, Facts] = {}
        self.names = Names()
        self.retries: dict[str, float] = {}  # models with a failure whose time comes
        self._pool_of_model: dict[str, str] = {}
        self._models_of_pool: dict[str, set[str]] = {}

    def models_of_pool(self, name: str) -> frozenset[str]:
        return frozenset(self._models_of_pool.get(name, ()))

    def next_time(self, now: float) -> float | None:
        """When a report expires, a failure is over, or an order is no longer believed."""
        times = [at for at in (*self.retries.values(), *self.records.going.values()) if at > now]
        expiry = self.records.demand.next_expiry()
        return min([*times, expiry] if expiry is not None else times, default=None)

    def refresh(self, now: float) -> set[str]:
        """Bring State up to what was recorded; the pods that it looked at. Costs what changed."""
        records, dirty = self.records, self.records.dirty
        dirty.demand |= records.demand.expire(now)
        dirty.models |= {key for key, at in self.retries.items() if at <= now}
        dirty.pods |= {key for key, until in records.going.items() if until <= now}
        for _ in self.slices(now):
            pass
        pods, dirty.pods = dirty.pods, set()
        for key in pods:
            self._refresh_pod(key, now)
        demanded, dirty.demand = dirty.demand, set()
        for key in demanded:
            self._refresh_demand(key)
        return pods

    def slices(self, now: float) -> Iterator[None]:
        """The part of `refresh` that grows with the number of changed models, in slices of some tens of milliseconds."""
        if self.records.dirty.pools:
            self._refresh_pools()
        # What changes from here on is marked anew, and looked at again.
        models, self.records.dirty.models = list(self.records.dirty.models), set()
        done = -1
        try:
            for count, key in enumerate(models, 1):
                self._refresh_names(key)
                if count % SLICE == 0:
                    yield
            # Once all claims are known: whoever gets a name keeps it.
            self.records.dirty.status |= self.names.resolve()
            for done, key in enumerate(models):
                self._refresh_model(key, now)
                if done % SLICE == SLICE - 1:
                    yield
        finally:
            self.records.dirty.models |= set(models[done + 1 :])

    def _refresh_pools(self) -> None:
        wanted = self.records.pools or {"default": DEFAULT_POOL}
        for name in self.state.pools.keys() - wanted.keys():
            self.state.remove_pool(name)
        for name in self.records.dirty.pools | (wanted.keys() - self.state.pools.keys()):
            if name in wanted:
                self.state.put_pool(pool_of(wanted[name]))

    def _refresh_names(self, key: str) -> None:
        found = self.records.deployments.get(key)
        if not isinstance(found, Deployment):
            self.names.remove(key)
            return
        name, aliases = found.parsed.metadata.name, found.parsed.spec.aliases
        self.names.put(key, created_of(found), (name, *aliases), self.facts_of(found).served_names)

    def facts_of(self, found: Deployment) -> Facts:
        metadata = found.parsed.metadata
        facts = self.facts.get(found.key)
        if facts is None or facts.uid != metadata.uid:
            facts = self.facts[found.key] = Facts.restore(metadata.uid, metadata.generation, found.estimate_key, status_of(found))
        else:
            facts.respecified(metadata.generation, found.estimate_key)
        return facts

    def _refresh_model(self, key: str, now: float) -> None:
        found = self.records.deployments.get(key)
        old_pool = self._pool_of_model.pop(key, None)
        if old_pool is not None:
            self._models_of_pool[old_pool].discard(key)
        self.retries.pop(key, None)
        self.records.dirty.status.add(key)
        self.records.dirty.pods |= self.state.by_model.get(key, frozenset())
        if found is None:
            self.state.remove_model(key)
            self.state.put_demand(key, Demand())
            self.facts.pop(key, None)
            return
        if isinstance(found, Unreadable):
            self.state.put_model(blocked_model(key, found.generation, Blocked(reasons.INVALID, found.message)))
            return
        facts, name = self.facts_of(found), found.parsed.spec.pool
        facts.forget_healed(now)
        retry_at = facts.next_retry(now)
        if retry_at is not None:
            self.retries[key] = retry_at
        self._pool_of_model[key] = name
        self._models_of_pool.setdefault(name, set()).add(key)
        pool = self.records.pools.get(name)
        self.state.put_model(
            model_of(
                found,
                effective(found.parsed, pool),
                facts,
                revision=revision_of(found, pool, self._settings),
                refused=refused_by_pool(found, pool, any_pool=bool(self.records.pools)),
                settings=self._settings,
            )
        )

    def _refresh_pod(self, key: str, now: float) -> None:
        pod = self.records.pods.get(key)
        if pod is None:
            self.records.going.pop(key, None)
            old = self.state.replicas.get(key)
            if old is not None:
                self.records.dirty.pools.add(self.state.nodes[old.node].pool if old.node in self.state.nodes else "")
            self.state.remove_replica(key)
            return
        owner = self.records.deployments.get(pod.record.model)
        uid = owner.uid if owner else ""
        pod.orphaned = bool(uid and pod.record.owner_uid and pod.record.owner_uid != uid)
        state = state_of(pod)
        if state is not pod.state:
            # A pod that was there before us has been in its state for longer than we know.
            found = pod.since == 0.0 and not pod.known
            pod.state, pod.since = state, 0.0 if found else now
        pod.known = pod.known or pod.status is not None
        if pod.delete_ordered is not None and now >= pod.delete_ordered:
            self.records.going.pop(key, None)
            pod.delete_ordered = None
        facts = self.facts.get(pod.record.model)
        footprint = facts.footprint(self._settings) if facts else None
        keys = (DeviceKey(pod.record.node, device) for device in pod.record.devices)
        namespaced = any((device := self.state.devices.get(key)) is not None and device.namespaced for key in keys)
        self.state.put_replica(replica_of(pod, max(footprint.estimated, footprint.measured) if footprint else 0, namespaced=namespaced))
        self.records.dirty.status.add(pod.record.model)
        self.records.dirty.pools.add(pod.record.pool)

    def _refresh_demand(self, key: str) -> None:
        facts = self.facts.get(key)
        demand = self.records.demand.demand(key, facts.wish if facts else None)
        if facts is not None and demand.last_used > facts.last_used:
            facts.last_used = demand.last_used
        self.state.put_demand(key, demand)
        self.records.dirty.status.add(key)
