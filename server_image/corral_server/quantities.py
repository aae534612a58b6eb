"""Kubernetes quantities and durations as they appear in the specification, and times as they appear in answers."""

import re
from datetime import UTC, datetime
from decimal import Decimal

_FACTORS = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(k|M|G|T|Ki|Mi|Gi|Ti)?$")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_bytes(value: str | int) -> int:
    """Bytes of a quantity such as 256Mi; ValueError says what would be right."""
    if isinstance(value, int):
        return value
    match = _QUANTITY.match(value)
    if match is None:
        raise ValueError(f"{value!r} is not a quantity such as 256Mi")
    return int(Decimal(match[1]) * _FACTORS[match[2] or ""])


def parse_seconds(value: str | float) -> float:
    """Seconds of a duration such as 1m30s."""
    if isinstance(value, (int, float)):
        return float(value)
    parts = _DURATION.findall(value)
    if not parts or "".join(n + u for n, u in parts) != value:
        raise ValueError(f"{value!r} is not a duration such as 10s or 1m30s")
    return sum(float(n) * _SECONDS[u] for n, u in parts)


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(value: str) -> float:
    """Seconds since the epoch of an RFC 3339 time."""
    parsed = datetime.fromisoformat(value)
    if parsed.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone; write it as 2026-01-02T03:04:05Z")
    return parsed.timestamp()
