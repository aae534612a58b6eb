"""Virtual time: a heap of events, and processes that sleep and wait in it. Deterministic: ties go in the order of their making."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from inspect import GEN_RUNNING, getgeneratorstate
from typing import Any

Steps = Generator["float | tuple[Signal, float]", bool, Any]
"""A process yields seconds to sleep, or a signal with the longest wait for it (then it is sent whether the signal came)."""


class Signal:
    """Something to wait for; `fire` wakes everybody who waits now."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: list[Process] = []

    def fire(self) -> None:
        waiting, self.waiting = self.waiting, []
        for process in waiting:
            process.fired()


class Process:
    __slots__ = ("alive", "owner", "steps", "timeline", "turn")

    def __init__(self, timeline: Timeline, steps: Steps, owner: Freezable | None) -> None:
        self.timeline = timeline
        self.steps = steps
        self.owner = owner
        self.alive = True
        self.turn = 0  # of the wait that is under way: an older wake-up is stale

    def fired(self) -> None:
        if self.alive:
            self.turn += 1
            self.timeline.after(0.0, self.resume, self.turn, True)

    def resume(self, turn: int, came: bool) -> None:
        if not self.alive or turn != self.turn:
            return
        if self.owner is not None and self.owner.frozen_until > self.timeline.now:
            self.timeline.at(self.owner.frozen_until, self.resume, turn, came)
            return
        try:
            wait = self.steps.send(came) if turn else next(self.steps)
        except StopIteration:
            self.alive = False
            return
        self.turn += 1
        if isinstance(wait, tuple):
            signal, longest = wait
            signal.waiting.append(self)
            self.timeline.after(longest, self.resume, self.turn, False)
        else:
            self.timeline.after(wait, self.resume, self.turn, True)

    def kill(self) -> None:
        if self.alive:
            self.alive = False
            if getgeneratorstate(self.steps) != GEN_RUNNING:  # one that ends itself ends at its next wait
                self.steps.close()


class Freezable:
    """Whoever can be stopped for a while, like a process that gets SIGSTOP: what it was about to do is done when it goes on."""

    frozen_until: float = 0.0


class Timeline:
    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._made = 0

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        self._made += 1
        heapq.heappush(self._heap, (max(when, self.now), self._made, what, args))

    def after(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        self.at(self.now + seconds, what, *args)

    def spawn(self, steps: Steps, owner: Freezable | None = None) -> Process:
        process = Process(self, steps, owner)
        self.after(0.0, process.resume, 0, True)
        return process

    def run(self, until: float, after_each: Callable[[], None]) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, what, args = heapq.heappop(self._heap)
            what(*args)
            self.events += 1
            after_each()
        self.now = until
