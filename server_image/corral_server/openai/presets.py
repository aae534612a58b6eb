"""Presets: names after the model's colon that bring sampling, an adapter, a system prompt and an effort of their own, over the one loaded copy."""

from collections.abc import Mapping, Sequence
from typing import Any

from corral_server.openai import fields
from corral_server.spec import Preset


class Presets:
    def __init__(self, known: Sequence[Preset]) -> None:
        self._known = {preset.name: preset for preset in known}

    def chosen(self, name: str, body: Mapping[str, Any]) -> Preset | None:
        """The one that a request asks for: by `name`, as the gateway tells it, else by the model's name in the body."""
        return self._known.get(name or fields.variant(body))


def greeted(messages: list[dict[str, Any]], preset: Preset | None) -> list[dict[str, Any]]:
    """The messages with the preset's system prompt, unless they bring one."""
    if preset is None or not preset.system_prompt or messages[0]["role"] in ("system", "developer"):
        return messages
    return [{"role": "system", "content": preset.system_prompt}, *messages]
