"""What a request that does not say gets: the model file's own values, and over them `spec.engine.sampling`.

Pure. Names are those of requests, values are checked once, here: a default must never be what a request is refused for.
"""

import math
from collections.abc import Mapping
from typing import Any

from corral_server.reasons import wrong_setting

DECIMALS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 1000.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "typical_p": (0.0, 1.0), "top_n_sigma": (-100.0, 100.0),
    "xtc_probability": (0.0, 1.0), "xtc_threshold": (0.0, 1.0), "repeat_penalty": (0.01, 10.0), "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0), "dynatemp_range": (0.0, 1000.0), "dynatemp_exponent": (0.0, 100.0), "dry_multiplier": (0.0, 100.0),
    "dry_base": (0.0, 100.0), "mirostat_tau": (0.0, 100.0), "mirostat_eta": (0.0, 100.0), "adaptive_target": (-1.0, 1.0),
    "adaptive_decay": (0.0, 0.99),
}  # fmt: skip
"""The least and the most that a request may ask for, by its names; a default has to lie within them too."""
WHOLES: dict[str, tuple[int, int]] = {
    "repeat_last_n": (-1, 1 << 24), "dry_allowed_length": (0, 1 << 20), "dry_penalty_last_n": (-1, 1 << 20), "mirostat": (0, 2),
    "min_keep": (0, 1 << 20), "top_k": (-1, 1 << 31),
}  # fmt: skip
_IN_SPECS = {
    "temperature": "temperature", "topP": "top_p", "minP": "min_p", "typicalP": "typical_p", "repeatPenalty": "repeat_penalty",
    "presencePenalty": "presence_penalty", "frequencyPenalty": "frequency_penalty",
}  # fmt: skip
_WHOLE_IN_SPECS = {
    "topK": ("top_k", 0, WHOLES["top_k"][1]), "repeatLastN": ("repeat_last_n", *WHOLES["repeat_last_n"]), "seed": ("seed", 0, (1 << 32) - 1),
    "maxTokens": ("max_tokens", 1, 1 << 24),
}  # fmt: skip
_IN_FILES = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold", "penalty_last_n": "repeat_last_n", "penalty_repeat": "repeat_penalty", "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau", "mirostat_eta": "mirostat_eta",
}  # fmt: skip
"""`general.sampling.*` of a GGUF file."""
SAMPLERS = ("dry", "top_k", "top_p", "top_n_sigma", "typ_p", "min_p", "temperature", "xtc", "penalties", "infill", "adaptive_p")
"""What an order of samplers is made of, by llama.cpp's names."""
_OTHER_NAMES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p", "typical_p": "typ_p", "typical": "typ_p"}
_PLAIN = {name.replace("_", ""): name for name in SAMPLERS}


def of_spec(raw: Mapping[str, Any], path: str) -> dict[str, Any]:
    """`spec.engine.sampling`; Failure names the field that is wrong. Decimals are strings there, as Kubernetes wants them, or numbers."""
    found: dict[str, Any] = {}
    for key, value in raw.items():
        if value is None:
            continue
        if key in _IN_SPECS:
            name = _IN_SPECS[key]
            low, high = DECIMALS[name]
            number = _decimal(value)
            if number is None or not low <= number <= high:
                raise wrong_setting(f"{path}.{key}", value, f'a decimal from {low:g} to {high:g}, such as "{min(high, 0.8):g}"')
            found[name] = number
        elif key in _WHOLE_IN_SPECS:
            name, least, most = _WHOLE_IN_SPECS[key]
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise wrong_setting(f"{path}.{key}", value, f"a whole number from {least} to {most}")
            found[name] = value
    return found


def of_file(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file recommends; values out of range are passed over."""
    found: dict[str, Any] = {}
    for key, name in _IN_FILES.items():
        low, high = DECIMALS.get(name) or WHOLES[name]
        number = _decimal(metadata.get(f"general.sampling.{key}"))
        if number is not None and low <= number <= high:
            found[name] = int(number) if name in WHOLES else number
    sequence = (sampler(part.strip()) for part in str(metadata.get("general.sampling.sequence", "")).split(";"))
    if order := [name for name in dict.fromkeys(sequence) if name in SAMPLERS]:
        found["samplers"] = order
    return found


def sampler(written: str) -> str:
    """llama.cpp's name for a sampler, in whichever of its ways it is written; what is none stays as it is."""
    return _OTHER_NAMES.get(written) or _PLAIN.get(written.lower().replace("_", "").replace("-", ""), written)


def _decimal(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
