"""How many threads a decode gets: all of them, unless others want the same processors. Pure: figures in, a count out.

A decode has hundreds of barriers. While one of its threads waits for a processor, the others spin at the next barrier and keep theirs from whoever
could go on: two engines of two threads on two processors together make a fiftieth of what one makes alone. With one thread each they make all of it.
"""

from collections.abc import Callable

_LEAST_MISSED = 0.15
"""Threads that wait for a processor, on average, which never tell of a crowd: clients and the supervisor want one now and then."""
_FREE = 0.6
"""Idle processors, on average, from which one thread more is faster."""
_NEARLY = 0.75
"""Share of the threads for which the processors were free, from which it is not looked again."""
_PATIENCE = 1.0, 16.0
"""Seconds before one more is tried: at first, and after it was too many again and again."""
_SETTLED = 10.0
"""Seconds after which a count that was tried has proved right."""


class Crowding:
    def __init__(self, most: int, chance: Callable[[], float]) -> None:
        """`chance`: a number in [0, 1) that differs from engine to engine, so that not all of them try at once."""
        self.count = most
        self._most = most
        self._chance = chance
        self._patience = _PATIENCE[0]
        self._raised = float("-inf")
        self._next = float("-inf")

    def begins(self, free: float, now_free: Callable[[], float]) -> int:
        """The count to begin work with, after a pause. `free`: processors that nobody else used in it, on average; `now_free` looks how many they are
        at this moment, and is asked where they were few: who was at work a moment ago may have ended.
        """
        self.count = max(1, min(self._most, round(free if free >= _NEARLY * self._most else max(free, now_free()))))
        return self.count

    def lasts(self, free: int) -> int:
        """The count for a step that takes long and cannot be changed in its middle, when `free` processors were nobody else's most of the times
        that it was looked. What was seen at the beginning of the work, among those who asked for it, may be over.
        """
        self.count = max(self.count, min(self._most, free))
        return self.count

    def saw(self, now: float, missing: float, idle: float) -> int:
        """The count from now on. `missing`: how many of this engine's threads waited for a processor, on average over the last window of work;
        `idle`: how many processors nobody used in it.
        """
        # One that waits makes all wait: they stand still for that share of the time. One less costs its own share of the work.
        crowded = missing > max(1 / self.count, _LEAST_MISSED)
        if crowded and self.count > 1:
            # Whoever was tried a moment ago and is too many is tried again later and later.
            self._patience = min(2 * self._patience, _PATIENCE[1]) if now - self._raised < _SETTLED else _PATIENCE[0]
            self._next = now + self._patience * (0.5 + self._chance())
            self.count = max(1, self.count - max(1, round(missing)))
        elif not crowded and idle >= _FREE and self.count < self._most and now >= self._next:
            self.count = min(self._most, self.count + max(1, int(idle)))
            self._raised = now
        return self.count
