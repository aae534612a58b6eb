"""The threads of an engine's contexts, as many as `crowding` says. Reads what the kernel counts; decides nothing.

Where the kernel counts nothing, the number stays what it is.
"""

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from corral_server.engine.crowding import Crowding
from corral_server.engine.library import L

_WINDOW = 0.25
"""Seconds of work after which the count is judged: the kernel counts idle processors in hundredths of a second."""
_LEAST = 0.05
"""Seconds of a load from which what was idle in it says anything."""
_TASKS = Path("/proc/self/task")
_STAT = Path("/proc/stat")


class Reading(NamedTuple):
    at: float
    """Seconds."""
    waited: float
    """Seconds that the threads of this process could have run and did not."""
    idle: float
    """Seconds that the processors which it may use had nothing to do."""


_NOTHING = Reading(0.0, 0.0, 0.0)


class Threads:
    def __init__(self, contexts: Sequence[Any], most: int, loading: Reading | None) -> None:
        """`loading`: from the beginning of the load, which takes one thread; what was idle meanwhile says how many to begin with."""
        self._contexts = contexts
        self._crowding = Crowding(most, random.random, idle=_idle_since(loading, most) if loading is not None else most)
        self._count = most
        self._set(self._crowding.count)
        self._since: Reading | None = None
        self._window = _NOTHING
        """The work since the count was last judged, pauses left out: many short answers tell as much as a long one."""
        self._watching = most > 1

    @property
    def count(self) -> int:
        return self._count

    def work(self) -> None:
        """There is work, before a step of it."""
        if self._watching and self._since is None:
            self._since = read()

    def rest(self) -> None:
        """There is none: what is idle now says nothing."""
        if self._since is not None:
            self._add(self._since)
            self._since = None

    def worked(self) -> None:
        """A step is over."""
        since = self._since
        if since is None or self._window.at + time.monotonic() - since.at < _WINDOW:  # both are seconds of work
            return
        self._since = self._add(since)
        if self._since is None:
            return
        seconds, waited, idle = self._window
        self._window = _NOTHING
        self._set(self._crowding.saw(time.monotonic(), waited / seconds, idle / seconds))

    def _set(self, count: int) -> None:
        if count != self._count:
            self._count = count
            for context in self._contexts:
                L.llama_set_n_threads(context, count, count)

    def _add(self, since: Reading) -> Reading | None:
        now = read()
        if now is None:
            self._watching = False
        else:
            self._window = Reading(*(whole + b - a for whole, a, b in zip(self._window, since, now, strict=True)))
        return now


def read() -> Reading | None:
    """What the kernel has counted until now; None where it counts nothing."""
    try:
        return Reading(time.monotonic(), _waited(), _idle())
    except (OSError, ValueError, IndexError):
        return None


def _idle_since(before: Reading, unknown: float) -> float:
    """Processors that were idle, on average; `unknown` where too little time has passed."""
    now = read()
    if now is None or now.at - before.at < _LEAST:
        return unknown
    return (now.idle - before.idle) / (now.at - before.at)


def _waited() -> float:
    total = 0
    for task in os.listdir(_TASKS):  # noqa: PTH208  a name is all that is wanted, four times a second
        try:
            total += int((_TASKS / task / "schedstat").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            # It has just ended.
            continue
    return total / 1e9


def _idle() -> float:
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = (line.split() for line in _STAT.read_text().splitlines() if line.startswith("cpu"))
    return sum(int(fields[4]) + int(fields[5]) for fields in lines if fields[0] in ours) / os.sysconf("SC_CLK_TCK")
