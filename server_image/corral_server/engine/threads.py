"""The threads of an engine's contexts, as many as `crowding` says. Reads what the kernel counts; decides nothing.

Where the kernel counts nothing, the number stays what it is.
"""

import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from corral_server.engine.crowding import Crowding
from corral_server.engine.library import L

_PULSE = 0.5
_WINDOW = 0.25
"""Seconds of work after which the count is judged."""
_LEAST = 0.1
"""Seconds from which what was idle in them says anything: the kernel counts it in hundredths of a second."""
_LOOKS, _BETWEEN = 5, 0.0005
"""How often it is looked who is at work, and the seconds between: nobody who only hands something over is seen in all of them."""
_LONG = 64
"""Tokens of a step from which it is worth a second look."""
_TASKS = Path("/proc/self/task")
_STAT = Path("/proc/stat")


class Reading(NamedTuple):
    at: float
    """Seconds."""
    waited: float
    """Seconds that the threads of this process could have run and did not."""
    idle: float
    """Seconds that the processors which it may use had nothing to do."""


_NOTHING = 0.0, 0.0, 0.0


class Threads:
    def __init__(self, contexts: Sequence[Any], most: int, loading: Reading | None) -> None:
        """`loading`: from the beginning of the load; None where the kernel counts nothing."""
        self._contexts = contexts
        self._most = most
        self._crowding = Crowding(most, random.random)
        self._count = most
        self._watching = most > 1
        self._since: Reading | None = None
        self._resting: tuple[Reading, Reading] | None = None
        """The last two pulses."""
        self._span = _WINDOW
        self._window = _NOTHING
        """Seconds of work since the count was last judged, waited and idle in them; pauses left out: short answers tell as much as long ones."""
        if self._watching and loading is not None:
            # One thread of ours was at work, the load's.
            now = self._begin(loading, used=1)
            self._resting = (now, now) if now is not None else None

    @property
    def count(self) -> int:
        return self._count

    @property
    def pulse(self) -> float | None:
        """How long to wait for work before `rest` wants to be called again, in seconds; None: as long as it takes."""
        return _PULSE if self._watching else None

    def work(self) -> None:
        """There is work, before a step of it."""
        if not self._watching or self._since is not None:
            return
        self._since = self._begin(self._resting[0], used=0) if self._resting is not None else read()
        self._resting = None

    def before(self, tokens: int) -> None:
        """A step of so many tokens is about to begin."""
        if self._watching and self._count < self._most and tokens >= _LONG:
            self._set(self._crowding.lasts(statistics.median_low(_looks())))

    def rest(self) -> None:
        """There is none, before waiting for some and every `pulse` seconds of it: only what was idle lately says who is at work."""
        if self._since is not None:
            now = self._add(self._since)
            self._since, self._resting = None, (now, now) if now is not None else None
        elif self._resting is not None and time.monotonic() - self._resting[1].at >= _PULSE:
            now = read()
            self._resting = (self._resting[1], now) if now is not None else None

    def worked(self) -> None:
        """A step is over."""
        since = self._since
        if since is None or self._window[0] + time.monotonic() - since.at < self._span:
            return
        self._since = self._add(since)
        if self._since is None:
            return
        seconds, waited, idle = self._window
        self._window, self._span = _NOTHING, _WINDOW
        self._set(self._crowding.saw(time.monotonic(), waited / seconds, idle / seconds))

    def _begin(self, resting: Reading, *, used: int) -> Reading | None:
        """What was idle meanwhile says how many threads to begin with; `used` of ours were at work in it."""
        now = read()
        if now is not None and now.at - resting.at >= _LEAST:
            self._set(self._crowding.begins(used + (now.idle - resting.idle) / (now.at - resting.at), _free))
            # It may be out of date by now.
            self._window, self._span = _NOTHING, _LEAST
        return now

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
            seconds, waited, idle = self._window
            self._window = seconds + now.at - since.at, waited + now.waited - since.waited, idle + now.idle - since.idle
        return now


def read() -> Reading | None:
    """What the kernel has counted until now; None where it counts nothing."""
    try:
        return Reading(time.monotonic(), _waited(), _idle())
    except (OSError, ValueError, IndexError):
        return None


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


def _free() -> int:
    """Processors that nobody else wants at this moment; 0 where some are not ours to use, since only the sum over all is told.

    Whoever has just handed over a request, or waits to, is at work for a moment only: another engine is for longer.
    """
    found = 0
    for free in _looks():
        found = max(found, free)
        if found >= (os.cpu_count() or 1):
            break
    return found


def _looks() -> Iterator[int]:
    """How many processors nobody else wants, each time it is looked. Half of the looks take longer than an engine does between two steps."""
    count = os.cpu_count() or 1
    if len(os.sched_getaffinity(0)) < count:
        yield 0
        return
    for look in range(_LOOKS):
        if look:
            time.sleep(_BETWEEN)
        running = next((int(line.split()[1]) for line in _STAT.read_text().splitlines() if line.startswith("procs_running ")), count + 1)
        yield max(0, count - running + 1)
