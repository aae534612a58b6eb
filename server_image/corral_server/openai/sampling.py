"""Sampling fields of a request, over the model's defaults: OpenAI's names and llama.cpp's."""

from collections.abc import Mapping
from typing import Any

from corral_server.openai import fields
from corral_server.openai.errors import invalid
from corral_server.sampling_defaults import DECIMALS, SAMPLERS, WHOLES, sampler

_MAX_SEED = 2**63 - 1
_MOST_BREAKERS, _LONGEST_BREAKER = 32, 40
_LETTERS = {
    "d": "dry", "k": "top_k", "y": "typ_p", "p": "top_p", "s": "top_n_sigma", "m": "min_p", "t": "temperature", "x": "xtc", "e": "penalties",
    "i": "infill", "a": "adaptive_p",
}  # fmt: skip


_CHANCES = ("samplers", "mirostat", "dynatemp_range", "xtc_probability", "adaptive_target")
"""With one of these a temperature of 0 need not mean the likeliest token."""
OPENAI_HOTTEST = 2.0
"""The highest temperature of OpenAI's endpoints; llama.cpp's own know no bound."""


def sampling_of(
    body: Mapping[str, Any], defaults: Mapping[str, Any], *, hottest: float = DECIMALS["temperature"][1], vocabulary: int = 0, texts: bool = False
) -> dict[str, Any]:
    """What the engine's sampler gets; only what differs from its own defaults is set. `vocabulary`: how many tokens there are, when known; `texts`:
    whether a bias may name its tokens by their text.
    """
    fields.number(body, "temperature", 0.0, hottest)
    merged = {**defaults, **{k: v for k, v in body.items() if v is not None}}
    values: dict[str, Any] = {
        **{name: fields.number(merged, name, *bounds) for name, bounds in DECIMALS.items()},
        **{name: fields.whole(merged, name, *bounds) for name, bounds in WHOLES.items()},
        "seed": _seed(merged),
        "ignore_eos": fields.flag(merged, "ignore_eos") or None,
        "dry_sequence_breakers": _breakers(merged),
        "samplers": _samplers(merged),
    }
    if values["top_k"] is not None:
        # Both 0 and -1 are in use for "all".
        values["top_k"] = max(values["top_k"], 0)
    if values["dry_base"] is not None and values["dry_base"] < 1.0:
        # llama.cpp takes its own default then.
        values["dry_base"] = None
    if merged.get("logit_bias"):
        values["logit_bias"] = _logit_bias(merged["logit_bias"], vocabulary, texts=texts)
    return {k: v for k, v in values.items() if v is not None}


def reseeded(sampling: dict[str, Any], index: int) -> dict[str, Any]:
    """The same for one of several answers: from one seed each gets its own."""
    return {**sampling, "seed": sampling["seed"] + index} if "seed" in sampling and index else sampling


def leaves_nothing_to_chance(sampling: Mapping[str, Any]) -> bool:
    """Whether every token of the answer is the likeliest, by what `sampling_of` gave."""
    return sampling.get("temperature") == 0 and not any(sampling.get(name) for name in _CHANCES)


def _breakers(body: Mapping[str, Any]) -> list[str] | None:
    raw = body.get("dry_sequence_breakers")
    if raw is None:
        return None
    if not isinstance(raw, list) or not 0 < len(raw) <= _MOST_BREAKERS or not all(isinstance(b, str) and len(b) <= _LONGEST_BREAKER for b in raw):
        raise invalid(
            "dry_sequence_breakers",
            f"dry_sequence_breakers is {fields.shown(raw)}; it has to be a list of 1 to {_MOST_BREAKERS} strings, "
            f"each of at most {_LONGEST_BREAKER} characters",
        )
    return raw


def _samplers(body: Mapping[str, Any]) -> list[str] | None:
    """The order of samplers, in any of the ways in which llama.cpp lets it be written: names, or one letter for each."""
    raw = body.get("samplers")
    if raw is None:
        return None
    names: list[str] = []
    if isinstance(raw, str):
        names = [_LETTERS.get(letter, letter) for letter in raw]
    elif isinstance(raw, list) and all(isinstance(n, str) for n in raw):
        names = [sampler(name) for name in raw]
    if not names or not set(names) <= set(SAMPLERS) or len(names) > len(set(names)):
        raise invalid("samplers", f"samplers is {fields.shown(raw)}; it has to be a list of some of {', '.join(SAMPLERS)}, each once")
    return names


def _seed(body: Mapping[str, Any]) -> int | None:
    seed = fields.whole(body, "seed", -(_MAX_SEED + 1), _MAX_SEED)
    # llama.cpp's "choose one".
    return None if seed is None or seed == -1 else seed & 0xFFFFFFFFFFFFFFFF


def _logit_bias(raw: Any, vocabulary: int, *, texts: bool) -> dict[str, float | None]:
    """OpenAI's object of token to bias, or llama.cpp's list of pairs; false means never."""
    pairs = list(raw.items()) if isinstance(raw, dict) else raw
    if not isinstance(pairs, list) or len(pairs) > 4096:
        raise invalid("logit_bias", f"logit_bias is {fields.shown(raw)}; it has to be an object of token number to bias")
    result: dict[str, float | None] = {}
    for pair in pairs:
        try:
            token, bias = pair
            if texts and isinstance(token, str) and not (token.isascii() and token.isdigit()):
                result[token] = _bias(token, bias)
                continue
            number = int(token)
        except (TypeError, ValueError):
            raise invalid("logit_bias", f"logit_bias holds {fields.shown(pair)}; each entry has to name a token by its number") from None
        if number < 0 or (vocabulary and number >= vocabulary):
            highest = f"from 0 to {vocabulary - 1}" if vocabulary else "0 or more"
            raise invalid("logit_bias", f"logit_bias names token {number}; tokens of this model are {highest}")
        result[str(number)] = _bias(number, bias)
    return result


def _bias(token: int | str, bias: Any) -> float | None:
    if bias is False:
        return None
    if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
        raise invalid("logit_bias", f"logit_bias of token {token} is {fields.shown(bias)}; it has to be a number from -100 to 100")
    return float(bias)
