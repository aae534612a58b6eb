"""Prompts that ask for the text between two others, for models that were trained to fill it in. Pure."""

from collections.abc import Mapping
from typing import Any

from corral_server.openai import fields
from corral_server.openai.errors import ApiError, invalid

_NEEDED = ("pre", "suf", "mid")


def infill_prompt(before: str, after: str, fim: Mapping[str, int], *, param: str, extra: Any = None) -> list[Any]:
    """Text and token numbers of a prompt: prefix, suffix, then the middle to be written. Errors name the field `param`."""
    if any(fim.get(name, -1) < 0 for name in _NEEDED):
        # llama.cpp's endpoint is one that this model does not have, a suffix is a field that it does not take.
        code = "unsupported_parameter" if param == "suffix" else "not_supported"
        raise ApiError(400, code, f"{param} needs a model with tokens for filling in the middle; this one has none", param)
    return [*_context(extra, fim), fim["pre"], before, fim["suf"], after, fim["mid"]]


def _context(raw: Any, fim: Mapping[str, int]) -> list[Any]:
    """Other files of the project, as models with a token between files were trained to see them."""
    if raw is None:
        return []
    if not isinstance(raw, list) or not all(isinstance(c, dict) and isinstance(c.get("text"), str) for c in raw):
        raise invalid("input_extra", f"input_extra is {fields.shown(raw)}; it has to be a list of objects with filename and text")
    separator = fim.get("sep", -1)
    parts: list[Any] = []
    for chunk in raw:
        name = chunk.get("filename")
        title = name if isinstance(name, str) else "tmp"
        parts += [separator, f"{title}\n{chunk['text']}\n"] if separator >= 0 else [f"{chunk['text']}\n"]
    return parts
