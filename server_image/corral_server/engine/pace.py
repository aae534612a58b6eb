"""How many prompt tokens a step takes beside running answers, so that these do not stand still for seconds. Pure: counts and times in, counts out."""

_LONGEST = 3.0
"""Seconds that a step should take at most. Shorter ones cost the waiting prompts more: every step evaluates a token of each running answer too."""
_LEAST = 32
"""Tokens under which a step is not cheaper in proportion; only larger ones say what a token costs."""
_NEWEST = 0.3


class Pace:
    def __init__(self, most: int) -> None:
        """`most`: tokens of a piece where the machine is fast enough."""
        self._most = most
        self._cost = 0.0

    def took(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens has been evaluated."""
        if tokens >= _LEAST:
            cost = seconds / tokens
            self._cost = cost if not self._cost else self._cost + _NEWEST * (cost - self._cost)

    def piece(self) -> int:
        """Prompt tokens for the next step that has running answers in it, in whole `_LEAST`."""
        if not self._cost:
            return self._most
        count = int(_LONGEST / self._cost) // _LEAST * _LEAST
        return min(max(count, _LEAST), self._most)
