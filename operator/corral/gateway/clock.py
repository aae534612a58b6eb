"""The system's clocks, for everything in the gateway that is not pure."""

from __future__ import annotations

import time


class SystemClock:
    """Implements `Clock`."""

    @staticmethod
    def monotonic() -> float:
        return time.monotonic()

    @staticmethod
    def time() -> float:
        return time.time()
