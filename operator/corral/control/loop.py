"""The controller: wake -> refresh -> decide -> apply -> settle -> status, in one task that owns the State.

Everything it learns comes through the store; everything it does runs in tasks of its own, so no pod and no API call can hold it up. An error in one
cycle is logged and the next one runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from corral.control.apply import Applier
from corral.control.metrics import Metrics
from corral.control.outcomes import LoadDone
from corral.control.projection import SLICE
from corral.control.recorder import Recorder
from corral.control.reporting import Reporter
from corral.control.rounds import Rounds
from corral.control.settings import ControlSettings
from corral.control.shell import Shell
from corral.control.store import Store
from corral.control.supervisors import Signer, Supervisors
from corral.control.views import Renderer
from corral.control.warming import Warming
from corral.domain import reasons
from corral.domain.decide import decide
from corral.domain.model import ReplicaState
from corral.domain.plan import Plan, Verdict
from corral.kube.ports import Gone, Leadership, Statuses, Workloads

log = logging.getLogger(__name__)

FIRST_WORD = 1.0
"""How long the first decision waits for the supervisors of the pods that run already."""
NOT_LEADING = 0.5
AFTER_ERROR = 1.0
SOON = 0.001


class Controller:
    """One leader's control loop. `store` is the Sink for whoever watches the world; use all of it on one event loop."""

    def __init__(
        self,
        workloads: Workloads,
        statuses: Statuses,
        leadership: Leadership,
        signer: Signer,
        *,
        settings: ControlSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings or ControlSettings()
        self._clock = clock
        self._leadership = leadership
        self.store = Store(self.settings, clock)
        self._metrics = Metrics(self.store.state, self._waiting)
        self._supervisors = Supervisors(self.store, signer, leadership, self.settings)
        self._recorder = Recorder(self.store, statuses, clock)
        shell = Shell(self.store, workloads, self._supervisors, leadership, self.settings, clock)
        self._applier = Applier(shell, self._recorder, self._metrics)
        self._plan = Plan()
        self._verdicts: Mapping[str, Verdict] = {}
        self._renderer = Renderer(self.store, self.settings, clock)
        self._models = Reporter(
            self._renderer.model, self._renderer.observed_model, self._write_model, self.settings, clock, urgent=self._renderer.in_use
        )
        self._pools = Reporter(
            self._renderer.pool, self._renderer.observed_pool, self._write_pool, self.settings, clock, interval=self.settings.pool_interval
        )
        self._renderer.former_model, self._renderer.former_pool = self._models.former, self._pools.former
        self._warming = Warming(self.store, self._supervisors, clock)
        self._statuses = statuses
        self._rounds = Rounds(self.settings.resync, self.store.everything, clock())

    @property
    def metrics(self) -> Any:
        """The Prometheus registry."""
        return self._metrics.registry

    def plan_view(self) -> dict[str, Any]:
        """The last plan, for people who look into a running operator."""
        return {
            "actions": [{"action": type(it).__name__, "model": it.model, "reason": it.reason, "message": it.message} for it in self._plan.actions],
            "verdicts": {
                key: {"stalled": it.stalled, "queueSince": it.queue_since, **it.explanation.as_json()} for key, it in sorted(self._verdicts.items())
            },
            "devices": {
                str(key): {"capacity": device.capacity, "margin": device.margin, "used": self.store.state.used.get(key, 0), "closed": device.closed}
                for key, device in sorted(self.store.state.devices.items())
            },
            "underWay": self._applier.under_way(),
            "wakeAt": self._plan.wake_at,
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Lead until `stop`, or until another leader took over."""
        epoch = self._leadership.epoch
        await self._supervisors.open()
        self.store.pods_changed = self._supervisors.pod_changed
        for key in list(self.store.pods):
            self._supervisors.pod_changed(key)
        stopper = asyncio.create_task(self._wake_at_stop(stop), name="stop")
        workers = [
            asyncio.create_task(self._recorder.run(), name="events"),
            asyncio.create_task(self._models.run(), name="statuses of models"),
            asyncio.create_task(self._pools.run(), name="statuses of pools"),
            asyncio.create_task(self._warming.run(), name="warming"),
        ]
        try:
            await self._first_sight(stop)
            while not stop.is_set():
                if self._leadership.epoch != epoch:
                    log.warning("the lease went from epoch %d to %d: somebody else led meanwhile", epoch, self._leadership.epoch)
                    return
                self.store.wake.clear()
                await self._take_in()
                await self._rest(self._guarded_cycle())
        finally:
            for task in (stopper, *workers):
                task.cancel()
            await asyncio.gather(stopper, *workers, return_exceptions=True)
            await self._applier.close()
            await self._models.close()
            await self._pools.close()
            await self._supervisors.close()

    async def _wake_at_stop(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.store.ready.set()
        self.store.wake.set()

    async def _first_sight(self, stop: asyncio.Event) -> None:
        """Nothing is decided before every source has synced and the pods that run had a moment to say what they do."""
        await self.store.ready.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_WORD):
                while not stop.is_set() and any(
                    pod.status is None and pod.record.running and pod.record.host and not pod.gone for pod in self.store.pods.values()
                ):
                    self.store.wake.clear()
                    await self.store.wake.wait()
        gc.collect()
        gc.freeze()  # the caches are filled: what stays need not be walked through in the middle of some decision
        self._rounds.at = self._clock() + self.settings.resync
        self.store.touch_all()

    async def _take_in(self) -> None:
        """Thousands of models at once, at the start or when their pool changes: the lease must be renewed meanwhile."""
        if len(self.store.dirty.models) > SLICE:
            try:
                for _ in self.store.projection.slices(self._clock()):
                    await asyncio.sleep(0)
            except Exception:
                log.exception("the control loop stumbled over a model; it goes on with the others")
                self._metrics.loop_error()

    async def _rest(self, until: float) -> None:
        """Until something happens, or the time has come. What comes at once with it is taken along."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(SOON, until - self._clock())):
                await self.store.wake.wait()
        await asyncio.sleep(0)

    def _guarded_cycle(self) -> float:
        now = self._clock()
        try:
            return self._cycle(now)
        except Exception:
            log.exception("the control loop stumbled; it goes on")
            self._metrics.loop_error()
            return now + AFTER_ERROR

    def _cycle(self, now: float) -> float:
        """One round; when to look again if nothing happens."""
        if now >= self._rounds.at:
            self._resync(now)
        touched = self.store.projection.refresh(now)
        if not self._leadership.may_write():
            self.store.dirty.pods |= touched  # they are settled when we may write again
            return now + NOT_LEADING
        started = time.perf_counter()
        plan = decide(self.store.state.snapshot(), now)
        self._metrics.planned(time.perf_counter() - started)
        self._take_verdicts(plan)
        self._applier.apply(plan, now)
        self._applier.settle(touched, now)
        self._applier.retry_estimates(now)
        decide_again = self._acknowledge()
        self._tell()
        # What this round itself ordered was decided upon already: it is taken in without another round.
        self.store.projection.refresh(now)
        if decide_again:
            self.store.wake.set()
        else:
            self.store.wake.clear()
        self._models.mark(self.store.take_dirty_statuses())
        self._pools.mark(self.store.take_dirty_pools())
        times = [self._rounds.at, plan.wake_at, self._applier.next_release(now), self.store.projection.next_time(now)]
        return min(at for at in times if at is not None)

    def _resync(self, now: float) -> None:
        keys, begins = self._rounds.take(now)
        self.store.touch_some(keys, pools=begins)
        self._models.check_drift(set(keys))
        if begins:
            self._pools.check_drift(set(self.store.pools))

    def _waiting(self) -> Mapping[str, int]:
        """Models that somebody waits for and that no replica serves, by the reason that they are told."""
        found: dict[str, int] = {}
        for key, demand in self.store.state.demand.items():
            verdict = self._verdicts.get(key)
            if demand.waiting and verdict is not None and verdict.explanation.reason != reasons.LOADED:
                found[verdict.explanation.reason] = found.get(verdict.explanation.reason, 0) + 1
        return found

    def _take_verdicts(self, plan: Plan) -> None:
        old, new = self._verdicts, plan.verdicts
        changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
        self._plan, self._verdicts = plan, new
        self._renderer.verdicts = new
        for key in changed:
            self._keep_place(key, new.get(key))
        self.store.dirty.status |= changed

    def _keep_place(self, key: str, verdict: Verdict | None) -> None:
        """A place in the queue is a fact: it outlives this leader in the status, and the decision reads it back."""
        facts = self.store.facts.get(key)
        if facts is None:
            return
        place = (verdict.queue_since, verdict.queue_until) if verdict is not None else (None, None)
        if (facts.queue_since, facts.queue_until) != place:
            facts.queue_since, facts.queue_until = place
            self.store.touch_model(key)

    def _acknowledge(self) -> bool:
        """A wish that came true, or cannot, is taken note of; its gateway then stops reporting it. True when there was one."""
        acknowledged = False
        for key, demand in [(key, it) for key, it in self.store.state.demand.items() if it.wish]:
            replicas = [self.store.state.replicas[it] for it in self.store.state.by_model.get(key, ())]
            model, verdict, facts = self.store.state.models.get(key), self._verdicts.get(key), self.store.facts.get(key)
            if facts is None:
                continue
            loaded = any(it.state is ReplicaState.LOADED for it in replicas)
            hopeless = (model is not None and model.blocked is not None) or (verdict is not None and verdict.stalled)
            done = (loaded or hopeless) if demand.wish == "Load" else not any(it.resident or it.ordered == "Load" for it in replicas)
            gateway, _, number = demand.wish_id.rpartition("#")
            if done and number.isdigit():
                facts.wish = (int(number), demand.wish, gateway.rpartition("/")[2])
                self.store.dirty.demand.add(key)
                self.store.dirty.status.add(key)
                acknowledged = True
        return acknowledged

    def _tell(self) -> None:
        """Events and metrics of what supervisors reported."""
        for it in self.store.outcomes.take():
            if isinstance(it, LoadDone):
                self._metrics.loaded(it.times, waited=it.waited, estimated=it.estimated, measured=it.measured)
                self._recorder.model(it.model, reasons.LOADED, f"{it.pod} is loaded on {it.node}, after {it.times.total:.1f} s", deed=True)
            else:
                self._metrics.failure(it.reason)
                self._recorder.model(it.model, it.reason, f"{it.pod} on {it.node}: {it.message}", warning=True)

    async def _write_model(self, key: str, status: Mapping[str, Any]) -> None:
        deployment = self.store.deployments.get(key)
        if deployment is None:
            raise Gone(f"ModelDeployment {key} was deleted before its status was written")
        namespace, _, name = key.partition("/")
        self._metrics.status_written("model")
        self._tell_conditions(key, status)
        await self._statuses.write_model(namespace, name, deployment.uid, status)

    def _tell_conditions(self, key: str, status: Mapping[str, Any]) -> None:
        """A model that stalls or waits for memory says so once, as an event."""
        before = {it["type"]: it for it in self._models.former(key).get("conditions") or ()}
        for condition in status.get("conditions") or ():
            old = before.get(condition["type"], {})
            stalled = condition["type"] == "Stalled" and condition["status"] == "True"
            waits = condition["type"] == "Loaded" and condition["reason"] in (reasons.WAITING_FOR_MEMORY, reasons.WAITING_FOR_TURN)
            if (stalled or waits) and (old.get("status"), old.get("reason")) != (condition["status"], condition["reason"]):
                self._recorder.model(key, condition["reason"], condition["message"], warning=stalled)

    async def _write_pool(self, name: str, status: Mapping[str, Any]) -> None:
        self._metrics.status_written("pool")
        await self._statuses.write_pool(name, status)
