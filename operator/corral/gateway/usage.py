"""What a request cost in tokens: an estimate before it runs, the pod's own count after. Reads copies; never changes what passes through.

Asked by `x-corral-usage: 1`, a pod tells it in the answer's `x-corral-usage: PROMPT,COMPLETION` header, or at the end of a stream in the comment
`: corral-usage PROMPT,COMPLETION`. Where it does neither, `usage` of the answer itself counts, if there is one.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

TAIL = 4096
"""Bytes at the end of an answer that are looked into."""
DEFAULT_COMPLETION = 256
"""Tokens reserved for an answer whose request sets no bound."""

_TOLD = re.compile(rb"(\d{1,12}),(\d{1,12})")
_COMMENT = re.compile(rb"^: corral-usage (\d{1,12}),(\d{1,12})\s*$", re.MULTILINE)
_USAGE = re.compile(rb'"usage":\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


class _Bounds(msgspec.Struct):
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n_predict: Any = None
    n: Any = None


_bounds = msgspec.json.Decoder(_Bounds)


def estimate(body: bytes | None, size: int) -> int:
    """Tokens to reserve: a quarter of the body's bytes, and the bound of its answer."""
    prompt = size // 4
    if body is None:
        return prompt
    try:
        bounds = _bounds.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return prompt
    named = (bounds.max_completion_tokens, bounds.max_tokens, bounds.max_output_tokens, bounds.n_predict)
    completion = next((value for value in named if isinstance(value, int) and value > 0), DEFAULT_COMPLETION)
    choices = bounds.n if isinstance(bounds.n, int) and 0 < bounds.n <= 128 else 1
    return prompt + completion * choices


def told(header: bytes) -> int | None:
    """The sum that the answer's header tells."""
    match = _TOLD.fullmatch(header.strip())
    return int(match[1]) + int(match[2]) if match else None


def found(tail: bytes) -> int | None:
    """The sum that the end of an answer tells."""
    comments = _COMMENT.findall(tail)
    if comments:
        return int(comments[-1][0]) + int(comments[-1][1])
    matches = _USAGE.findall(tail)
    if not matches:
        return None
    try:
        usage = msgspec.json.decode(matches[-1], type=dict[str, Any])
    except msgspec.DecodeError:
        return None
    total = usage.get("total_tokens")
    if isinstance(total, int):
        return total
    parts = [usage.get("input_tokens"), usage.get("output_tokens")]
    return sum(part for part in parts if isinstance(part, int)) if any(isinstance(part, int) for part in parts) else None
