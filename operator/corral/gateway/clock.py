"""The system's clocks, for everything in the gateway that is not pure."""

from __future__ import annotations

import time


class SystemClock:
    """Implements `Clock`."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)
