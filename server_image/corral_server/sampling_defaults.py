"""What a request that does not say gets: the model file's own values, and over them `spec.engine.sampling`.

Pure. Names are those of requests, values are checked once, here: a default must never be what a request is refused for.
"""

import math
from collections.abc import Mapping
from typing import Any

from corral_server.reasons import wrong_setting

_DECIMALS: dict[str, tuple[str, float, float]] = {
    "temperature": ("temperature", 0.0, 1000.0), "topP": ("top_p", 0.0, 1.0), "minP": ("min_p", 0.0, 1.0), "typicalP": ("typical_p", 0.0, 1.0),
    "repeatPenalty": ("repeat_penalty", 0.01, 10.0), "presencePenalty": ("presence_penalty", -2.0, 2.0),
    "frequencyPenalty": ("frequency_penalty", -2.0, 2.0),
}  # fmt: skip
_WHOLES: dict[str, tuple[str, int, int]] = {
    "topK": ("top_k", 0, 1 << 31), "repeatLastN": ("repeat_last_n", -1, 1 << 24), "seed": ("seed", 0, (1 << 32) - 1),
    "maxTokens": ("max_tokens", 1, 1 << 24),
}  # fmt: skip
_IN_FILES: dict[str, tuple[str, float, float]] = {
    "temp": ("temperature", 0.0, 1000.0), "top_k": ("top_k", 0, 1 << 31), "top_p": ("top_p", 0.0, 1.0), "min_p": ("min_p", 0.0, 1.0),
    "xtc_probability": ("xtc_probability", 0.0, 1.0), "xtc_threshold": ("xtc_threshold", 0.0, 1.0),
    "penalty_last_n": ("repeat_last_n", -1, 1 << 24), "penalty_repeat": ("repeat_penalty", 0.01, 10.0), "mirostat": ("mirostat", 0, 2),
    "mirostat_tau": ("mirostat_tau", 0.0, 100.0), "mirostat_eta": ("mirostat_eta", 0.0, 100.0),
}  # fmt: skip
"""`general.sampling.*` of a GGUF file."""
_WHOLE_IN_FILES = frozenset({"top_k", "penalty_last_n", "mirostat"})


def of_spec(raw: Mapping[str, Any], path: str) -> dict[str, Any]:
    """`spec.engine.sampling`; Failure names the field that is wrong. Decimals are strings there, as Kubernetes wants them, or numbers."""
    found: dict[str, Any] = {}
    for key, value in raw.items():
        if value is None:
            continue
        if key in _DECIMALS:
            name, low, high = _DECIMALS[key]
            number = _decimal(value)
            if number is None or not low <= number <= high:
                raise wrong_setting(f"{path}.{key}", value, f'a decimal from {low:g} to {high:g}, such as "{min(high, 0.8):g}"')
            found[name] = number
        elif key in _WHOLES:
            name, least, most = _WHOLES[key]
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise wrong_setting(f"{path}.{key}", value, f"a whole number from {least} to {most}")
            found[name] = value
    return found


def of_file(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file recommends; values out of range are passed over."""
    found: dict[str, Any] = {}
    for key, (name, low, high) in _IN_FILES.items():
        number = _decimal(metadata.get(f"general.sampling.{key}"))
        if number is not None and low <= number <= high:
            found[name] = int(number) if key in _WHOLE_IN_FILES else number
    return found


def _decimal(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
