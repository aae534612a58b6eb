"""Everything is looked at again once in a while, whatever happened: a slice at a time, so that no moment costs what the fleet costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

SLICES = 30
SMALLEST = 64
"""A slice has at least so many keys: a small fleet is looked at in one go, and nobody is woken for less."""


class Rounds:
    def __init__(self, period: float, keys: Callable[[], Iterable[str]], now: float) -> None:
        self._period = period
        self._keys = keys
        self._left: list[str] = []
        self._size = 0
        self._pause = period
        self.at = now + period
        """When the next slice is due."""

    def take(self, now: float) -> tuple[list[str], bool]:
        """The slice that is due, and whether a round begins with it."""
        begins = not self._left
        if begins:
            self._left = list(self._keys())
            slices = min(SLICES, max(1, len(self._left) // SMALLEST))
            self._size = -(-len(self._left) // slices)
            self._pause = self._period / slices
        self.at = now + self._pause
        taken, self._left = self._left[: self._size], self._left[self._size :]
        return taken, begins
