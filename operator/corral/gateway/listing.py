"""`GET /v1/models` and `GET /v1/models/{id}`: every name that routes, with what is known of its model beside OpenAI's fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from corral.gateway.errors import Refused
from corral.gateway.machine import Machine
from corral.gateway.ports import ModelView
from corral.gateway.refusals import not_found


class Listing:
    """Reads from the machine, and changes nothing."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def all(self, allowed: Callable[[ModelView], bool]) -> bytes:
        data = [self._entry(name, model) for name, model in self._machine.names.served() if allowed(model)]
        return orjson.dumps({"object": "list", "data": data})

    def one(self, name: str, allowed: Callable[[ModelView], bool]) -> bytes:
        """One model, with the reasons of its state."""
        route = self._machine.resolve(name)
        model = self._machine.view(route.key) if route else None
        if route is None or model is None or not allowed(model):
            raise Refused(not_found(name))
        entry = self._entry(name, model)
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
    def _entry(name: str, model: ModelView) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": model.created,
            "owned_by": model.namespace,
            "corral": {
                "state": model.state,
                "model": model.key,
                "alias_of": model.name if name in model.aliases else None,
                "adapters": list(model.adapters),
                "context_length": model.context_length,
            },
        }
