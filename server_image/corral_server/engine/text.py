"""The text of one answer as it grows: whole characters only, cut at the first stop string. Pure."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Bytes of tokens go in, text that may be sent comes out.

    What could still become a stop string is held back, so a client never sees a part of one.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(s for s in stops if s)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped_by: str | None = None

    def feed(self, piece: bytes) -> str:
        text = self._decoder.decode(piece)
        if not self._stops:
            return text
        return self._emit(self._held + text)

    def finish(self) -> str:
        """What is left when the answer ends without a stop string."""
        if self.stopped_by is not None:
            return ""
        rest = self._decoder.decode(b"", final=True)
        text = self._emit(self._held + rest) if self._stops else rest
        if self.stopped_by is None:
            text += self._held
            self._held = ""
        return text

    def drop(self) -> None:
        """What is held back is not to be said: the answer ended before it."""
        self._held = ""
        self._decoder.reset()

    def _emit(self, text: str) -> str:
        if self.stopped_by is not None:
            return ""
        first, found = len(text), None
        for stop in self._stops:
            at = text.find(stop)
            if 0 <= at < first:
                first, found = at, stop
        if found is not None:
            self.stopped_by = found
            self._held = ""
            return text[:first]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
