"""Carries out a plan: one task per replica at a time, each action in its own; an action that fails leaves a pause and a fact, never a stopped loop.

Also settles what former leaders, crashes and refusals left behind: a commitment without an engine, memory that nobody uses, marks that have served.
It decides nothing about where models go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from itertools import chain
from typing import Any

from corral.control.create import create, estimate, expect, planned
from corral.control.evict import delete, evict
from corral.control.keeping import give_back
from corral.control.load import load
from corral.control.metrics import Metrics
from corral.control.observation import rfc3339
from corral.control.pods import Order, Pod
from corral.control.recorder import Recorder
from corral.control.settings import ControlSettings
from corral.control.shell import Abandoned, Shell, to_json
from corral.domain import reasons
from corral.domain.model import ReplicaState
from corral.domain.plan import Action, Create, Delete, Estimate, Evict, Load, Plan
from corral.kube.ports import TURN, Conflict, Gone, NotLeader, Refused

log = logging.getLogger(__name__)

REMEMBERED = 256
LIMIT_NEAR = 0.9
"""A resident pod that uses more than this share of its memory limit gets a larger one."""


class Applier:
    def __init__(self, shell: Shell, recorder: Recorder, metrics: Metrics) -> None:
        self._shell = shell
        self._recorder = recorder
        self._metrics = metrics
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._held: dict[str, tuple[float, int]] = {}  # until when this is left alone, and after how many failures
        self._unsettled: set[str] = set()
        self._gate = asyncio.Semaphore(shell.settings.estimate_concurrency)

    @property
    def busy(self) -> int:
        return len(self._tasks)

    def next_release(self, now: float) -> float | None:
        """When the first pause ends, or the time for which a pod keeps its memory request."""
        pods = self._shell.store.pods
        kept = [pod.kept[0] for key in self._unsettled if (pod := pods.get(key)) is not None and pod.kept is not None]
        return min(chain((until for until, _ in self._held.values() if until > now), kept), default=None)

    def apply(self, plan: Plan, now: float) -> None:
        for action in plan.actions:
            self._start(action, now)
        for key, started in plan.turns.items():
            self._turn(key, started)

    def _start(self, action: Action, now: float) -> None:
        key = action_key(action)
        if key in self._tasks or self._is_held(key, now):
            return
        store = self._shell.store
        match action:
            case Estimate():
                self._run(key, self._estimate(action.model))
            case Create():
                request = planned(self._shell, action, self._tasks.keys())
                if request is None:
                    return
                pod = expect(self._shell, request, action)
                self._run(pod, self._create(action, request, pod), hold=key)
            case Load():
                store.order(key, Order("Load", action.reason, now, action.commitment, action.loaded_for))
                self._run(key, self._load(action))
            case Evict():
                store.order(key, Order("Evict", action.reason, now, evicting_for=action.evicting_for))
                self._run(key, self._evict(action))
            case Delete():
                store.order(key, Order("Delete", action.reason, now))
                self._run(key, self._delete(action))
            case _:
                log.error("there is no such action: %r", action)
                return
        self._metrics.action(action)
        log.info("%s %s: %s: %s", type(action).__name__, key, action.reason, action.message)

    # --- the actions, with what is told of them

    async def _estimate(self, model: str) -> None:
        reason = await estimate(self._shell, model, self._gate)
        if reason:
            self._metrics.failure(reason)

    async def _create(self, action: Create, request: Any, key: str) -> None:
        await create(self._shell, request, key)
        self._recorder.model(action.model, "Created", f"replica {key} on {', '.join(map(str, action.devices))}: {action.message}", deed=True)

    async def _load(self, action: Load) -> None:
        await load(self._shell, action)

    async def _evict(self, action: Evict) -> None:
        if not await evict(self._shell, action):
            return
        self._metrics.evicted(action.reason, swap=bool(action.evicting_for))
        facts = self._shell.store.facts.get(action.model)
        if facts is not None and action.evicting_for:
            facts.evictions += 1
            self._shell.store.touch_model(action.model)
        self._recorder.model(action.model, action.reason, action.message, deed=True)

    async def _delete(self, action: Delete) -> None:
        await delete(self._shell, action)
        self._recorder.model(action.model, action.reason, action.message, deed=True)

    def retry_estimates(self, now: float) -> None:
        """A source that failed and may be there now is asked again; until it answers, the model stays blocked with the reason that it had."""
        for key in [key for key, at in self._shell.store.retries.items() if at <= now]:
            facts = self._shell.store.facts.get(key)
            task = f"estimate {key}"
            if facts is not None and facts.blocked is not None and facts.blocked.until <= now and task not in self._tasks:
                self._run(task, self._estimate(key))

    def under_way(self) -> dict[str, str]:
        """What is being done, for people who look."""
        orders = {key: pod.order.kind for key, pod in self._shell.store.pods.items() if pod.order is not None}
        return {key: orders.get(key, "") for key in self._tasks}

    # --- what is left over

    def settle(self, keys: set[str], now: float) -> None:
        """Put right what these pods show. Called after the plan was applied: whatever the decision wants done with them is under way."""
        keys, self._unsettled = keys | self._unsettled, set()
        for key in keys:
            pod = self._shell.store.pods.get(key)
            if pod is None or not pod.record.uid or key in self._tasks:
                continue
            if self._is_held(key, now):
                self._unsettled.add(key)
            else:
                self._settle(key, pod, now)

    def _settle(self, key: str, pod: Pod, now: float) -> None:
        store, record, status = self._shell.store, pod.record, pod.status
        if pod.orphaned:
            if not pod.gone:
                store.order(key, Order("Delete", reasons.DELETED, now))
                self._run(key, self._delete(Delete(record.model, reasons.DELETED, f"its ModelDeployment {record.model} is gone", key)))
            return
        if pod.gone or status is None or not pod.reachable:
            return
        if pod.resident:
            marks = _marks(pod)
            if marks and not self._is_held(f"mark {key}", now):
                self._run(f"mark {key}", self._mark(key, marks))
            elif status.memory.total > record.memory_limit * LIMIT_NEAR and self._shell.limit(pod) and not self._is_held(f"limit {key}", now):
                self._run(f"limit {key}", self._raise_limit(key))
            return
        facts = store.facts.get(record.model)
        if (
            status.state is ReplicaState.FAILED
            and status.error is not None
            and not status.error.retry
            and facts is not None
            and facts.blocked is None
        ):
            # It gave up on its file, and what stood in the way is gone or the spec has changed: a fresh pod tries again.
            store.order(key, Order("Delete", reasons.FAILED, now))
            self._run(key, self._delete(Delete(record.model, reasons.FAILED, f"{record.name} gave up on its file: {status.error.message}", key)))
            return
        idle_host = pod.host and record.memory_wanted > self._shell.residue(record.model)
        if idle_host and pod.kept is not None and now < pod.kept[0]:
            self._unsettled.add(key)
            idle_host = False
        if pod.commitment is not None or idle_host:
            store.order(key, Order("Evict", "Released", now))
            self._run(key, self._release(key))

    async def _raise_limit(self, key: str) -> None:
        """It uses more than was foreseen when its limit was set: before it is killed for that, the limit goes up, in place."""
        pod = self._shell.pod(key)
        if pod is not None and pod.resident and (limit := self._shell.limit(pod)):
            self._shell.store.put_pod(await self._shell.workloads.resize(pod.record, max(pod.record.memory_wanted, pod.record.memory_request), limit))

    async def _release(self, key: str) -> None:
        await give_back(self._shell, key)

    def _turn(self, key: str, started: float) -> None:
        pod = self._shell.pod(key)
        if pod is None or pod.turn_started == started:
            return
        pod.turn_started = started
        facts = self._shell.store.facts.get(pod.record.model)
        if facts is not None:
            facts.turns += 1
        self._metrics.turn()
        self._shell.store.touch(key)
        self._run(f"mark {key}", self._mark(key, _marks(pod)))

    async def _mark(self, key: str, annotations: dict[str, str | None]) -> None:
        await self._shell.annotate(key, annotations, holds=lambda pod: pod.resident)

    # --- tasks

    def _run(self, key: str, work: Coroutine[Any, Any, None], *, hold: str = "") -> None:
        if key in self._tasks:
            work.close()
            return
        self._tasks[key] = asyncio.create_task(self._guard(key, work, hold or key), name=key)

    async def _guard(self, key: str, work: Coroutine[Any, Any, None], hold: str) -> None:
        failed = False
        try:
            await work
        except NotLeader as error:
            log.warning("%s", error)
            failed = True
        except (Abandoned, Conflict, Gone, Refused) as error:
            log.info("%s: %s", key, error)
            failed = True
        except Exception:
            log.exception("an action on %s failed", key)
            failed = True
        finally:
            self._tasks.pop(key, None)
        if failed:
            self._hold(hold)
        else:
            self._held.pop(hold, None)
        self._shell.store.order(key, None)
        self._shell.store.wake.set()

    def _hold(self, key: str) -> None:
        settings: ControlSettings = self._shell.settings
        now = self._shell.clock()
        count = self._held.get(key, (0.0, 0))[1] + 1
        if len(self._held) >= REMEMBERED:  # of pods that have been gone for long
            self._held = {held: (until, times) for held, (until, times) in self._held.items() if until + settings.action_backoff_max > now}
        self._held[key] = (now + min(settings.action_backoff_max, settings.action_backoff * 2.0 ** min(count - 1, 20)), count)

    def _is_held(self, key: str, now: float) -> bool:
        held = self._held.get(key)
        return held is not None and held[0] > now

    async def close(self) -> None:
        """Drop everything that is under way, as it is."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _marks(pod: Pod) -> dict[str, str | None]:
    """Annotations that do not say yet what is true: its turn has begun."""
    record, marks = pod.record, dict[str, str | None]()
    if pod.turn_started is not None:
        turn = to_json({"started": rfc3339(pod.turn_started)})
        if record.annotations.get(TURN) != turn:
            marks[TURN] = turn
    return marks


def action_key(action: Action) -> str:
    """What an action works on: one replica, or (with a space, which no replica has) one model."""
    if isinstance(action, Load | Evict | Delete):
        return action.replica
    return f"{'estimate' if isinstance(action, Estimate) else 'create'} {action.model}"
