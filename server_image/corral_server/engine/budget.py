"""A limit on how long a model may think: when it is reached, the thought is ended for it. Pure.

The tokens of the end are forced one by one, so the model reads them as its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Budget:
    limit: int
    opening: Sequence[int]
    closing: Sequence[int]
    """The tokens that end a thought, as they are recognised."""
    ending: Sequence[int]
    """What is forced: perhaps a sentence, then the closing."""
    whole: Callable[[int], bool]
    """Whether the text after this token stands by itself: a character must not be cut in two."""
    thinking: bool = False
    used: int = 0
    over: bool = False
    _last: list[int] = field(default_factory=list)
    _forced: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._end_if_spent(-1)

    def forced(self) -> int | None:
        """The token that has to come now, if there is one."""
        return self._forced[0] if self._forced else None

    def refuse(self) -> None:
        """What should have been forced cannot come: the thought goes on as it likes."""
        self._forced.clear()

    def accept(self, token: int) -> None:
        if self._forced and token == self._forced[0]:
            self._forced.pop(0)
            return
        if self.over:
            return
        self._last.append(token)
        if not self.thinking:
            self.thinking = self._ends_with(self.opening)
            self._last = self._last[-len(self.opening) :]
            self._end_if_spent(-1)
            return
        if self._ends_with(self.closing):
            self.over = True
            return
        self.used += 1
        self._end_if_spent(token)

    def _end_if_spent(self, token: int) -> None:
        if self.thinking and not self.over and self.used >= self.limit and (token < 0 or self.whole(token)):
            self._forced = list(self.ending)
            self.over = True

    def _ends_with(self, wanted: Sequence[int]) -> bool:
        return len(wanted) > 0 and self._last[-len(wanted) :] == list(wanted)
