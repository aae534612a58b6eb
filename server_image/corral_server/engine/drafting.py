"""How far an answer's guesses reach and what becomes of them: taken from the text before (prompt lookup), or from a draft model. Pure.

A guess costs a place in the batch and is only kept where the model itself chooses the same token, so an answer never depends on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST = 8
SURE = 0.75
"""The probability under which a draft model's token is not worth a place."""
_LENGTH = 3
_PATIENCE = 2
_LONGEST_REST = 16
_GIVEN_UP = 256


@dataclass(frozen=True)
class Bounds:
    """What a request may say of its guesses: none but whole ones of `least` tokens, at most `most`, each at least this likely."""

    most: int = MOST
    least: int = 0
    sure: float = SURE

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Bounds":
        return cls(min(raw.get("most", MOST), MOST), raw.get("least", 0), raw.get("sure", SURE))


class Draft:
    """The guesses of one answer: further ahead while they hold, less far when they do not."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self.size = MOST // 2
        self.offered = 0
        self.accepted = 0

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens that may follow."""
        raise NotImplementedError

    def judged(self, offered: int, accepted: int) -> None:
        self.offered += offered
        self.accepted += accepted
        self.size = min(self.size * 2, MOST) if accepted == offered else max(self.size // 2, 1)

    def reach(self, most: int) -> int:
        """How many tokens to guess now; 0 when fewer than a guess has to have."""
        size = min(max(self.size, self.bounds.least), self.bounds.most, most)
        return size if size >= self.bounds.least else 0


class NgramDraft(Draft):
    """What followed the last three tokens when they came up before."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        super().__init__(bounds)
        self._seen: dict[tuple[int, ...], int] = {}
        self._known = 0

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Empty when nothing like this was there before."""
        for end in range(max(self._known, _LENGTH), len(tokens)):
            self._seen[tuple(tokens[end - _LENGTH : end])] = end
        self._known = max(self._known, len(tokens))
        at = self._seen.get(tuple(tokens[-_LENGTH:]))
        if at is None or most <= 0:
            return []
        found = list(tokens[at : at + self.reach(most)])
        return found if len(found) >= self.bounds.least else []


class ModelDraft(Draft):
    """What a smaller model would say next, put here before each step. Guesses cost that model's time, so after some in vain it rests."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        super().__init__(bounds)
        self._ready: list[int] = []
        self._made_for = 0
        self._misses = 0
        self._rest = 0

    def due(self, most: int) -> int:
        """How many tokens this step wants; asked once a step."""
        if self._rest > 0:
            self._rest -= 1
            return 0
        return self.reach(most)

    def offer(self, length: int, guess: list[int]) -> None:
        """What may follow the first `length` tokens of the answer."""
        self._ready, self._made_for = (guess if len(guess) >= self.bounds.least else []), length
        if not self._ready:
            self._missed()

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        ready, self._ready = self._ready, []
        return ready[: max(most, 0)] if self._made_for == len(tokens) else []

    def judged(self, offered: int, accepted: int) -> None:
        super().judged(offered, accepted)
        if accepted:
            self._misses = 0
        else:
            self._missed()

    def give_up(self) -> None:
        """There is no room for its guesses; perhaps later."""
        self._rest = _GIVEN_UP

    def _missed(self) -> None:
        self._misses += 1
        if self._misses > _PATIENCE:
            self._rest = min(2 ** (self._misses - _PATIENCE), _LONGEST_REST)


def new_draft(kind: str, raw: Mapping[str, Any] | None) -> Draft | None:
    """The guesses of a new answer: of "ngram", of a "model", or none."""
    bounds = Bounds.of(raw or {})
    if not kind or bounds.most <= 0:
        return None
    return ModelDraft(bounds) if kind == "model" else NgramDraft(bounds)
