"""A simulated operator: what it knows (`sight`), the real `decide`, and what it does (`hands`). It can die or freeze between any two steps."""

from __future__ import annotations

from typing import Any

from corral.domain.decide import decide
from corral.domain.plan import Plan
from corral.simulate.hands import Hands
from corral.simulate.timeline import Steps

FIRST_WORD = 1.0
SOON = 0.005


class Operator(Hands):
    def start(self) -> None:
        cluster = self.cluster
        cluster.note(f"operator {self.name} leads with epoch {self.epoch}")
        cluster.watch(self.name, self._seen)
        self.state.put_pool(cluster.scenario.pool)
        for node in cluster.nodes:
            self._node(node)
        for key in cluster.models:
            self._model(key)
        for gateway, (sequence, entries) in cluster.reports.items():
            self._report(gateway, sequence, entries)
        for record in cluster.pods.values():
            self._pod(record)
        self._demands()
        self.spawn(self._loop())
        self.spawn(self._renew())

    def _loop(self) -> Steps:
        cluster = self.cluster
        started = cluster.now
        while any(each.status is None and each.record.scheduled for each in self.known.values()) and cluster.now < started + FIRST_WORD:
            yield 0.1
        while self.alive:
            self._poked = False
            wake = self._cycle()
            if not self.alive:
                return
            if not self._poked:
                yield (self._poke, max(SOON, min(wake - cluster.wall, 10.0)))
            yield SOON * (1 + cluster.random(f"loop {self.name}").random())

    def _cycle(self) -> float:
        if not self.may_write():
            self._depose()
            return 0.0
        self._demands()
        now = self.cluster.wall
        for key, model in list(self.state.models.items()):
            if any(each.until <= now for each in model.backoff):
                self._model(key)
        snapshot = self.state.snapshot()
        plan = self.plan = decide(snapshot, now)
        self.decisions += 1
        self.cluster.watchdog.planned(snapshot, plan, now)
        for action in plan.actions:
            self._start(action)
        for key, at in plan.turns.items():
            self._turn(key, at)
        self._verdicts(plan)
        return plan.wake_at if plan.wake_at is not None else now + 10.0

    def _verdicts(self, plan: Plan) -> None:
        for key, model in list(self.state.models.items()):
            facts = self.cluster.models.get(key)
            if facts is None:
                continue
            verdict = plan.verdicts.get(key)
            since, until = (verdict.queue_since, verdict.queue_until) if verdict is not None else (None, None)
            told = (verdict.explanation.reason, verdict.stalled, verdict.explanation.message) if verdict is not None else ("", False, "")
            changes: dict[str, Any] = {}
            if (since, until) != (model.queue_since, model.queue_until):
                changes = {"queue_since": since, "queue_until": until}
            if told[:2] != facts.verdict[:2]:
                changes["verdict"] = told
            wish = self.state.demand.get(key)
            if wish is not None and wish.wish:
                resident = any(self.state.replicas[each].resident for each in self.state.by_model.get(key, ()))
                if resident == (wish.wish == "Load"):
                    changes["wish_done"] = int(wish.wish_id)
            if changes:
                self._write_model(key, **changes)
