"""llama.cpp's fields that every endpoint takes: which sequence answers, what is told on the way, limits that count in lines and time. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corral_server.openai import fields

_LONGEST = 1 << 31
NAMES = (
    "top_k", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold", "repeat_penalty", "repeat_last_n", "frequency_penalty",
    "presence_penalty", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "mirostat", "mirostat_tau",
    "mirostat_eta", "adaptive_target", "adaptive_decay", "dynatemp_range", "dynatemp_exponent", "min_keep", "samplers", "seed", "logit_bias",
    "ignore_eos", "cache_prompt", "lora", "id_slot", "return_progress", "timings_per_token", "n_indent", "t_max_predict_ms", "grammar", "json_schema",
    "reasoning_format", "reasoning_budget_tokens", "thinking_budget_tokens", "reasoning_budget_message", "chat_template_kwargs",
    "add_generation_prompt", "continue_final_message", "stop", "speculative.n_max", "speculative.n_min", "speculative.p_min",
)  # fmt: skip
"""llama.cpp's fields of a chat, which it takes on the endpoints of other APIs too."""


@dataclass(frozen=True)
class NativeFields:
    progress: bool = False
    """How much of the prompt has been evaluated is told."""
    timings: bool = False
    """Each piece has its figures."""
    verbose: bool = False
    job: dict[str, Any] = field(default_factory=dict)
    """What the engine has to know of it."""


def native_fields(body: Mapping[str, Any]) -> NativeFields:
    progress, timings = fields.flag(body, "return_progress"), fields.flag(body, "timings_per_token")
    verbose = fields.flag(body, "verbose")
    slot = fields.whole(body, "id_slot", -1, 1 << 16, -1)
    indent, milliseconds = fields.whole(body, "n_indent", 0, _LONGEST, 0), fields.number(body, "t_max_predict_ms", -1, _LONGEST, 0.0)
    for name, least in (("n_keep", -1), ("n_discard", 0), ("n_cache_reuse", 0), ("sse_ping_interval", -1)):
        # Nothing here is ever shifted or cut, and a proxy's patience is the gateway's affair.
        fields.whole(body, name, least, _LONGEST)
    job: dict[str, Any] = {"slot": slot if slot is not None and slot >= 0 else None, "draft": _guesses(body)}
    if progress or timings:
        job["tells_progress"] = True
    if verbose:
        job |= {"tells_tokens": True, "tells_prompt": True}
    if indent or (milliseconds or 0.0) > 0:
        job["lines"] = {"indent": indent, "milliseconds": max(milliseconds or 0.0, 0.0)}
    return NativeFields(progress, timings, verbose, job)


def _guesses(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a request says of the guesses at its answer; without effect where the model makes none."""
    found = {
        "most": fields.whole(body, "speculative.n_max", 0, _LONGEST),
        "least": fields.whole(body, "speculative.n_min", 0, _LONGEST),
        "sure": fields.number(body, "speculative.p_min", 0, 1, None),
    }
    return {name: value for name, value in found.items() if value is not None}
