"""Statuses: only what differs, words seldom, drift mended once."""

import asyncio
import contextlib

from corral.control.reporting import Reporter
from corral.control.settings import ControlSettings
from corral.kube.ports import Gone

SETTINGS = ControlSettings(message_interval=10.0)


class Desk:
    def __init__(self) -> None:
        self.now = 100.0
        self.wanted: dict = {}
        self.shown: dict = {}
        self.written: list = []
        self.errors: list = []
        self.asked_for: set[str] | None = None  # None: all
        self.reporter = Reporter(self.wanted.get, lambda key: self.shown.get(key, {}), self.write, SETTINGS, lambda: self.now, urgent=self.urgent)

    def urgent(self, key: str) -> bool:
        return self.asked_for is None or key in self.asked_for

    async def write(self, key, status) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.written.append((key, status))
        self.shown[key] = dict(status)

    async def settle(self) -> None:
        """Run until nothing more happens now."""
        task = asyncio.create_task(self.reporter.run())
        for _ in range(50):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await self.reporter.close()

    async def mark(self, key="m/a", **status) -> None:
        self.wanted[key] = status
        self.reporter.mark({key})
        await self.settle()


async def test_what_is_shown_already_is_not_written():
    desk = Desk()
    desk.shown["m/a"] = {"replicas": 1}
    await desk.mark(replicas=1)
    assert desk.written == []
    await desk.mark(replicas=2)
    assert desk.written == [("m/a", {"replicas": 2})]
    await desk.mark(replicas=2)
    assert len(desk.written) == 1


async def test_a_change_of_words_waits_and_a_change_of_fact_takes_it_along():
    desk = Desk()
    await desk.mark(conditions=[{"type": "Loaded", "reason": "WaitingForMemory", "message": "free 1Gi"}])
    await desk.mark(conditions=[{"type": "Loaded", "reason": "WaitingForMemory", "message": "free 2Gi"}])
    assert len(desk.written) == 1
    desk.now += 10
    await desk.settle()
    assert desk.written[-1][1]["conditions"][0]["message"] == "free 2Gi"
    await desk.mark(conditions=[{"type": "Loaded", "reason": "Loaded", "message": "here"}])
    assert desk.written[-1][1]["conditions"][0]["reason"] == "Loaded"


async def test_a_failed_write_is_tried_again_and_a_deleted_object_is_forgotten():
    desk = Desk()
    desk.errors = [TimeoutError("slow"), Gone("m/a")]
    await desk.mark(replicas=1)
    desk.now += 5
    await desk.settle()
    assert desk.written == []
    await desk.mark(replicas=2)
    assert desk.written == [("m/a", {"replicas": 2})]


async def test_drift_is_mended_once_and_not_fought_over():
    desk = Desk()
    await desk.mark(replicas=1, unknown="to the CRD")
    desk.shown["m/a"] = {"replicas": 7}
    desk.reporter.check_drift({"m/a"})
    await desk.settle()
    assert desk.written[-1] == ("m/a", {"replicas": 1, "unknown": "to the CRD"})
    for _ in range(3):
        desk.shown["m/a"] = {"replicas": 1}
        desk.reporter.check_drift({"m/a"})
        await desk.settle()
    assert len(desk.written) == 3, "pruned: written once more, then left alone"


async def test_an_object_that_is_gone_is_not_written():
    desk = Desk()
    desk.reporter.mark({"m/gone"})
    await desk.settle()
    assert desk.written == []


async def test_a_status_that_is_costly_to_render_takes_a_small_share_of_the_time(monkeypatch):
    spent = iter(range(1000))
    monkeypatch.setattr("corral.control.reporting.time.thread_time", lambda: next(spent) * 0.1)
    desk = Desk()
    await desk.mark(replicas=1)
    await desk.mark(replicas=2)
    await desk.mark(replicas=3)
    assert [status["replicas"] for _, status in desk.written] == [1]
    desk.now += 5
    await desk.settle()
    assert [status["replicas"] for _, status in desk.written] == [1, 3]


async def test_models_that_somebody_waits_for_are_written_before_a_whole_fleet():
    desk = Desk()
    fleet = [f"m/{number:03d}" for number in range(100)]
    desk.asked_for = {"m/099"}
    desk.wanted |= {key: {"replicas": 1} for key in fleet}
    desk.reporter.mark(set(fleet[:50]))
    desk.reporter.mark(set(fleet[50:]))
    await desk.settle()
    assert desk.written[0][0] == "m/099"
    for _ in range(20):
        await desk.settle()
    assert sorted(key for key, _ in desk.written) == fleet, "and the others after it"


async def test_one_that_is_asked_for_while_it_waits_comes_first():
    desk = Desk()
    fleet = [f"m/{number:03d}" for number in range(100)]
    desk.asked_for = set()
    desk.wanted |= {key: {"replicas": 1} for key in fleet}
    desk.reporter.mark(set(fleet))
    desk.asked_for = {"m/050"}
    desk.reporter.mark({"m/050"})
    await desk.settle()
    assert desk.written[0][0] == "m/050"
    assert len([key for key, _ in desk.written if key == "m/050"]) == 1
