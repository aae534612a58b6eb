"""Fields that OpenAI's clients send and that change nothing here: of the right type they are accepted, of a wrong one they are named. Pure."""

from collections.abc import Mapping
from typing import Any

from corral_server.openai import fields
from corral_server.openai.errors import ApiError, invalid

_MOST_METADATA, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512
_TIERS = ("auto", "default", "flex", "scale", "priority")
_VERBOSITY = ("low", "medium", "high")


def check_shared(body: Mapping[str, Any]) -> None:
    """What chat completions and responses have in common."""
    for name in ("model", "user", "safety_identifier", "prompt_cache_key"):
        fields.text(body, name)
    fields.choice(body, "prompt_cache_retention", ("in_memory", "in-memory", "24h"), "in_memory")
    fields.flag(body, "store")
    fields.choice(body, "service_tier", _TIERS, "auto")
    _check_metadata(body)


def check_chat(body: Mapping[str, Any]) -> None:
    check_shared(body)
    fields.choice(body, "verbosity", _VERBOSITY, "medium")
    for name in ("prediction", "web_search_options", "audio", "moderation"):
        fields.mapping(body, name)
    modalities = body.get("modalities")
    if modalities is None:
        return
    if not isinstance(modalities, list) or not modalities or not all(m in ("text", "audio") for m in modalities):
        raise invalid("modalities", f"modalities is {fields.shown(modalities)}; it has to be a list of text and audio")
    if "audio" in modalities:
        raise ApiError(400, "unsupported_content", "modalities asks for audio; this model answers in text only", "modalities")


def check_text(body: Mapping[str, Any]) -> dict[str, Any]:
    """`text` of the responses API."""
    text = fields.mapping(body, "text")
    fields.choice(text, "verbosity", _VERBOSITY, "medium", within="text")
    return text


def _check_metadata(body: Mapping[str, Any]) -> None:
    metadata = fields.mapping(body, "metadata")
    if len(metadata) > _MOST_METADATA:
        raise invalid("metadata", f"metadata has {len(metadata)} entries; it may have at most {_MOST_METADATA}")
    for key, value in metadata.items():
        if len(key) > _LONGEST_KEY or not isinstance(value, str) or len(value) > _LONGEST_VALUE:
            raise invalid(
                f"metadata.{key[:_LONGEST_KEY]}",
                f"metadata.{key[:_LONGEST_KEY]} is {fields.shown(value)}; it has to be a string of at most {_LONGEST_VALUE} characters, "
                f"its key at most {_LONGEST_KEY}",
            )
