"""Guesses at the next tokens, taken from what the text has said before (prompt lookup). Pure.

A guess costs a place in the batch and is only kept where the model itself chooses the same token, so an answer never depends on it.
"""

from collections.abc import Sequence

MOST = 8
_LENGTH = 3


class NgramDraft:
    """The guesses of one answer: what followed the last three tokens when they came up before."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], int] = {}
        self._known = 0
        self._size = MOST // 2
        self.offered = 0
        self.accepted = 0

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens that may follow; empty when nothing like this was there before."""
        for end in range(max(self._known, _LENGTH), len(tokens)):
            self._seen[tuple(tokens[end - _LENGTH : end])] = end
        self._known = max(self._known, len(tokens))
        at = self._seen.get(tuple(tokens[-_LENGTH:]))
        if at is None or most <= 0:
            return []
        return list(tokens[at : at + min(self._size, most)])

    def judged(self, offered: int, accepted: int) -> None:
        """Guess further ahead while the guesses hold, less far when they do not."""
        self.offered += offered
        self.accepted += accepted
        self._size = min(self._size * 2, MOST) if accepted == offered else max(self._size // 2, 1)
