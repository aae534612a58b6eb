"""What llama.cpp's endpoints repeat of a request's settings, in its names. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

_DEFAULTS: dict[str, Any] = {
    "seed": 0xFFFFFFFF, "temperature": 0.8, "dynatemp_range": 0.0, "dynatemp_exponent": 1.0, "top_k": 40, "top_p": 0.95, "min_p": 0.05,
    "top_n_sigma": -1.0, "xtc_probability": 0.0, "xtc_threshold": 0.1, "typical_p": 1.0, "repeat_last_n": 64, "repeat_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": 64,
    "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "adaptive_target": -1.0, "adaptive_decay": 0.9,
}  # fmt: skip
_ORDER = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
_BREAKERS = ["\n", ":", '"', "*"]


def settings(
    sampling: Mapping[str, Any], *, limit: int | None = None, stop: Sequence[str] = (), stream: bool = False, grammar: str = "",
    adapters: Sequence[Sequence[float]] = (), timings: bool = False, drafts: str = "",
) -> dict[str, Any]:  # fmt: skip
    """`generation_settings`: what was asked for, and what applies where nothing was."""
    bias = [{"token": _token(t), "bias": b} for t, b in (sampling.get("logit_bias") or {}).items()]
    most = -1 if limit is None else limit
    return {
        **{name: sampling.get(name, value) for name, value in _DEFAULTS.items()},
        "dry_sequence_breakers": sampling.get("dry_sequence_breakers") or _BREAKERS,
        "stop": list(stop), "max_tokens": most, "n_predict": most, "n_keep": 0, "n_discard": 0,
        "ignore_eos": bool(sampling.get("ignore_eos")), "stream": stream, "logit_bias": bias,
        "n_probs": sampling.get("n_probs", 0), "min_keep": sampling.get("min_keep", 0),
        "grammar": grammar, "grammar_lazy": False, "grammar_triggers": [],
        "preserved_tokens": [], "chat_format": "Content-only", "reasoning_format": "none", "reasoning_in_content": False, "generation_prompt": "",
        "samplers": sampling.get("samplers") or _ORDER, "speculative.types": drafts or "none", "timings_per_token": timings,
        "post_sampling_probs": bool(sampling.get("post_sampling")), "backend_sampling": False,
        "lora": [{"id": int(n), "scale": s} for n, s in adapters],
    }  # fmt: skip


def _token(key: str) -> int | str:
    return int(key) if key.isascii() and key.isdigit() else key


def chosen_fields(body: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Only the named fields, nested ones by their path: `generation_settings/n_predict`."""
    found: dict[str, Any] = {}
    for name in names:
        value: Any = body
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, Mapping) and part in value else _MISSING
        if value is not _MISSING:
            found[name] = value
    return found


_MISSING: Any = object()
