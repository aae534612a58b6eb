"""llama.cpp's router API in its own shapes, so that its clients work: list, load, unload, events.

A manual load or unload becomes a wish in the report; this module never touches a model by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from corral.domain import reasons
from corral.gateway import refusals
from corral.gateway.driver import Driver
from corral.gateway.errors import Refused, refuse
from corral.gateway.ports import ModelView
from corral.gateway.refusals import not_found

_VALUES = {
    reasons.LOADED: "loaded",
    reasons.LOADING: "loading",
    reasons.STARTING: "loading",
    reasons.EVICTING: "loading",
    reasons.WAITING_FOR_GRANT: "loading",
    reasons.DOWNLOADING: "downloading",
    reasons.SLEEPING: "sleeping",
    reasons.DRAINING: "loaded",
}
_UP_AGAIN = frozenset({reasons.LOADING, reasons.EVICTING, reasons.DOWNLOADING})
_RUNNING = frozenset({"loaded", "loading", "downloading"})
SUBSCRIBER_QUEUE = 1024
"""Events that one slow subscriber may be behind before it is let go."""


class RouterApi:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._machine = driver.machine
        self._put_away: set[str] = set()
        """Unloaded by hand, and not running since."""
        self._ran: dict[str, int] = {}
        """Seen loaded, with the evictions that it had had by then. Its clients call `sleeping` only what fell asleep by itself, being idle."""
        self._subscribers: dict[asyncio.Queue[bytes | None], dict[str, bytes]] = {}
        driver.listeners.append(self._changed)

    def models(self, allowed: Callable[[ModelView], bool]) -> bytes:
        """`GET /models`: one entry a model, its further names as aliases."""
        entries = []
        for key in sorted({model.key for _, model in self._machine.names.served()}):
            model = self._machine.view(key)
            if model is None or not allowed(model):
                continue
            name = _name(model)
            entries.append(
                {
                    "id": name,
                    "aliases": [other for other in dict.fromkeys((*model.served_names, model.key)) if other != name],
                    "tags": [],
                    "object": "model",
                    "owned_by": "corral",
                    "created": model.created,
                    "status": {**self._status(model, progress_as="list"), "args": []},
                    "source": "preset",
                    "can_remove": False,
                }
            )
        return orjson.dumps({"data": entries, "object": "list"})

    def props(self) -> bytes:
        """`GET /props` without a model."""
        return orjson.dumps(
            {
                "role": "router",
                "models_autoload": True,
                "max_instances": 0,
                "build_info": "b0-corral",
                # Of no model; clients of one model's server look for these.
                "model_alias": "corral",
                "model_path": "none",
                "default_generation_settings": {"params": {}, "n_ctx": 0},
            }
        )

    def load(self, body: bytes, may: Callable[[ModelView, str], None]) -> bytes:
        model = self._model(body, may)
        if self._value(model) in _RUNNING:
            raise refuse(400, "model_already_loaded", f"{model.key} is running already")
        blocked = refusals.blocked(model)
        if blocked is not None:
            raise Refused(blocked)
        self._driver.wish(model.key, "Load")
        return b'{"success":true}'

    def unload(self, body: bytes, may: Callable[[ModelView, str], None]) -> bytes:
        model = self._model(body, may)
        value = self._value(model)
        if value not in _RUNNING and value != "sleeping":
            raise refuse(400, "model_not_loaded", f"{model.key} is not running")
        self._put_away.add(model.key)
        if value == "sleeping":
            self._changed(model.key)  # nothing is in memory: no wish to the operator
        else:
            self._driver.wish(model.key, "Unload")
        return b'{"success":true}'

    def subscribe(self) -> asyncio.Queue[bytes | None]:
        """Events from now on, as complete SSE events; None ends them. As in llama.cpp, nothing is repeated for who comes late."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(SUBSCRIBER_QUEUE)
        self._subscribers[queue] = {}
        return queue

    def unsubscribe(self, queue: asyncio.Queue[bytes | None]) -> None:
        self._subscribers.pop(queue, None)

    def end(self) -> None:
        for queue in list(self._subscribers):
            self._drop(queue)

    def _drop(self, queue: asyncio.Queue[bytes | None]) -> None:
        self._subscribers.pop(queue, None)
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(None)

    def _changed(self, key: str) -> None:
        self._note(key)
        if not self._subscribers:
            return
        model = self._machine.view(key)
        if model is None:
            event: dict[str, Any] = {"model": key.partition("/")[2], "event": "model_remove"}
        else:
            status = self._status(model, progress_as="event")
            data = {"status": status.pop("value"), **status}
            event = {"model": _name(model), "event": "model_status", "data": data}
        line = b"data: " + orjson.dumps(event) + b"\n\n"
        for queue, last in list(self._subscribers.items()):
            if last.get(key) == line:
                continue
            last[key] = line
            if queue.full():
                self._drop(queue)
            else:
                queue.put_nowait(line)

    def _note(self, key: str) -> None:
        model, state = self._machine.view(key), self._machine.progress(key)[0]
        if model is None or state in _UP_AGAIN:
            self._put_away.discard(key)
            self._ran.pop(key, None)
        elif state == reasons.LOADED:
            self._ran.setdefault(key, model.evictions)

    def _model(self, body: bytes, may: Callable[[ModelView, str], None]) -> ModelView:
        try:
            name = orjson.loads(body).get("model")
        except (orjson.JSONDecodeError, AttributeError):
            raise refuse(400, "invalid_request", 'send {"model": NAME}') from None
        if not isinstance(name, str) or not name:
            raise refuse(400, "missing_model", 'send {"model": NAME}')
        route = self._machine.resolve(name)
        model = self._machine.view(route.key) if route else None
        if model is None:
            raise Refused(not_found(name))
        may(model, name)
        return model

    def _value(self, model: ModelView) -> str:
        return self._value_of(model.key, self._machine.progress(model.key)[0])

    def _value_of(self, key: str, state: str) -> str:
        value = _VALUES.get(state, "unloaded")
        if value == "sleeping":
            model = self._machine.view(key)
            if key in self._put_away or model is None or self._ran.get(key) != model.evictions:
                return "unloaded"
        return value

    def _status(self, model: ModelView, *, progress_as: str) -> dict[str, Any]:
        state, progress = self._machine.progress(model.key)
        value = self._value_of(model.key, state)
        status: dict[str, Any] = {"value": value}
        if value == "loading" and progress is not None and progress_as == "event":
            status["progress"] = {"stages": ["text_model"], "current": "text_model", "value": round(progress, 3)}
        if value == "downloading" and progress is not None:
            status["progress"] = {_name(model): {"done": int(progress * 1000), "total": 1000}}
        if value not in _RUNNING and (model.ready is False or refusals.blocked(model) is not None):
            status.update(value="unloaded", failed=True, exit_code=1)
        return status


def _name(model: ModelView) -> str:
    return next((name for name in model.served_names if name == model.name), model.served_names[0] if model.served_names else model.key)
