"""Quantities as other people's objects write them: any suffix, also exponents and thousandths. The API's own fields are narrower (`api.types`)."""

from __future__ import annotations

from decimal import ROUND_CEILING
from functools import lru_cache
from typing import Any

from kubernetes.utils.quantity import parse_quantity


@lru_cache(maxsize=4096)
def whole(text: str | int | None) -> int:
    """Bytes, or pieces; a fraction counts as a whole one. Nothing, and what cannot be read, is 0: the API server has checked it."""
    if text in {None, ""}:
        return 0
    try:
        return int(parse_quantity(text).to_integral_value(ROUND_CEILING))
    except ValueError:
        return 0


def memory_of(resources: dict[str, Any] | None, side: str = "requests") -> int:
    """`memory` of a container's (or pod's) resources."""
    return whole(((resources or {}).get(side) or {}).get("memory"))
