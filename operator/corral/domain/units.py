"""How bytes and times read in messages: rounded, absolute, the same everywhere. This module owns the spelling and nothing else."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_UNITS = (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))


def quantity(count: int) -> str:
    """`5583457484` -> `5.2Gi`: binary units, one digit after the point below 100, none where it would be zero."""
    sign = "-" if count < 0 else ""
    size = abs(count)
    for unit, scale in _UNITS:
        if size >= scale:
            value = round(size / scale, 1) if size < 100 * scale else float(round(size / scale))
            return f"{sign}{value:g}{unit}"
    return f"{sign}{size}"


def clock(at: float) -> str:
    """`10:42:11Z`: a time of day, rounded up to the second so that what is promised has happened by then."""
    return datetime.fromtimestamp(math.ceil(at), UTC).strftime("%H:%M:%SZ")


def seconds(duration: float) -> str:
    return f"{duration:g}s" if duration < 10 else f"{round(duration)}s"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
