"""LoRA adapters of requests: by number and scale as llama.cpp has it, or by the name after the model's colon."""

from collections.abc import Mapping, Sequence
from typing import Any

from corral_server.openai import fields
from corral_server.openai.errors import ApiError, invalid
from corral_server.spec import Adapter

MOST = 1000.0


class Adapters:
    """The model's adapters, and the scales at which they act where a request says nothing: none, until somebody sets them."""

    def __init__(self, known: Sequence[Adapter]) -> None:
        self._known = known
        self._scales = [0.0] * len(known)

    def chosen(self, name: str, body: Mapping[str, Any]) -> list[list[float]]:
        """Pairs of number and scale for a request; ApiError when it names one that is not here. `name` as the gateway tells it."""
        asked = body.get("lora")
        if asked is not None and asked != []:
            return self._parsed(asked, "lora")
        if not name:
            last = fields.variant(body)
            name = last if any(a.name == last for a in self._known) else ""
        if name:
            number = next((i for i, a in enumerate(self._known) if a.name == name), None)
            if number is None:
                raise ApiError(404, "adapter_not_found", f"this model has no adapter {name!r}", "model")
            return [[number, self._known[number].scale]]
        if asked == []:
            return []
        return [[i, scale] for i, scale in enumerate(self._scales) if scale]

    def shown(self) -> list[dict[str, Any]]:
        return [
            {"id": i, "path": a.source, "name": a.name, "scale": self._scales[i], "task_name": "", "prompt_prefix": ""}
            for i, a in enumerate(self._known)
        ]

    def set(self, raw: Any) -> None:
        """`POST /lora-adapters`: the scales from now on; an adapter that is not named gets none."""
        scales = [0.0] * len(self._known)
        for number, scale in self._parsed(raw, "body"):
            scales[int(number)] = scale
        self._scales = scales

    def _parsed(self, raw: Any, param: str) -> list[list[float]]:
        if not isinstance(raw, list) or not all(isinstance(a, dict) for a in raw):
            raise invalid(param, f"{param} is {fields.shown(raw)}; it has to be a list such as [{{id: 0, scale: 1.0}}]")
        pairs = []
        for entry in raw:
            number = fields.whole(entry, "id", 0, 1 << 16)
            if number is None or number >= len(self._known):
                count = len(self._known)
                has = f"has adapters 0 to {count - 1}" if count else "has none"
                raise invalid(param, f"{param} names adapter {fields.shown(entry.get('id'))}, but this model {has}")
            pairs.append([float(number), fields.number(entry, "scale", -MOST, MOST, 0.0) or 0.0])
        return pairs
