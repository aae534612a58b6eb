"""`GET /v1/models` and `GET /v1/models/{id}`: every name that routes, with what is known of its model beside OpenAI's fields.

What may follow a model's colon is listed once, after the model's own name: who can only choose from this list has to find it there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import orjson

from corral.gateway.errors import Refused
from corral.gateway.machine import Machine
from corral.gateway.ports import ModelView
from corral.gateway.refusals import not_found


class Allowed(Protocol):
    def __call__(self, model: ModelView, *variants: str) -> bool:
        """Whether who asks may use the model by any of its names, or by one of these."""
        ...


class Listing:
    """Reads from the machine, and changes nothing."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def all(self, allowed: Allowed) -> bytes:
        return orjson.dumps({"object": "list", "data": list(self._entries(allowed))})

    def _entries(self, allowed: Allowed) -> Iterator[dict[str, Any]]:
        for name, model in self._machine.names.served():
            if allowed(model):
                yield self._entry(name, model)
            own = model.name if model.name in model.served_names else model.key
            for variant in [f"{name}:{adapter}" for adapter in model.adapters] if name == own else ():
                if allowed(model, variant):
                    yield self._entry(variant, model, name)

    def one(self, name: str, allowed: Allowed) -> bytes:
        """One model, with the reasons of its state."""
        route = self._machine.resolve(name)
        model = self._machine.view(route.key) if route else None
        if route is None or model is None or not allowed(model, *([name] if route.adapter else [])):
            raise Refused(not_found(name))
        entry = self._entry(name, model, name.removesuffix(f":{route.adapter}") if route.adapter else None)
        details = entry["corral"]
        state, progress = self._machine.progress(model.key)
        details["state"] = state
        if progress is not None:
            details["progress"] = round(progress, 3)
        details["waiting"] = self._machine.waiting(model.key)
        details["ready"] = model.ready
        details["conditions"] = [{"type": one.type, "status": one.status, "reason": one.reason, "message": one.message} for one in model.conditions]
        if model.explanation is not None:
            details["explanation"] = dict(model.explanation)
        return orjson.dumps(entry)

    @staticmethod
    def _entry(name: str, model: ModelView, variant_of: str | None = None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": model.created,
            "owned_by": model.namespace,
            "corral": {
                "state": model.state,
                "model": model.key,
                "alias_of": model.name if name in model.aliases else None,
                "variant_of": variant_of,
                "adapters": list(model.adapters),
                "context_length": model.context_length,
            },
        }
