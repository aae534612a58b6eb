"""Limits of an answer that count in lines: an indentation that no line may fall below, a time after which the next line's end is the end. Pure."""

from dataclasses import dataclass


@dataclass
class LineLimits:
    indent: int = 0
    """The least blanks at the start of every line but the first."""
    milliseconds: float = 0.0
    """How long it may write, from the first token on."""
    _blanks: int = 0
    _starting: bool = False

    def cut(self, text: str, elapsed: float) -> tuple[str, bool]:
        """What may be said of a new piece of text, and whether the answer is over with it. `elapsed`: milliseconds since the first token."""
        if self.milliseconds > 0 and "\n" in text and elapsed > self.milliseconds:
            return text, True
        if self.indent > 0:
            for at, character in enumerate(text):
                if character == "\n":
                    self._starting, self._blanks = True, 0
                elif self._starting and character in " \t":
                    self._blanks += 1
                elif self._starting:
                    if self._blanks < self.indent:
                        return text[:at], True
                    self._starting = False
        return text, False
