"""Which model a name means. Pure; kept up change by change, because it is asked on every request.

The order: a served name, then `namespace/name`, then the name split at its last `:` into a model and one of its adapters or
presets. The pod is told either in the same header.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from corral.gateway.headers import header_text
from corral.gateway.ports import ModelView

ROUTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Route:
    """Where a name leads. `asked` is what the client wrote: the answer's `model` repeats it."""

    key: str
    asked: str
    adapter: str = ""
    lines: bytes = b""
    """What the pod is told of it: header lines."""


def _lines(asked: str, adapter: str = "") -> bytes:
    served = b"x-corral-served-name: %b\r\n" % header_text(asked)
    return served + b"x-corral-adapter: %b\r\n" % header_text(adapter) if adapter else served


class Names:
    """The table of served names."""

    def __init__(self) -> None:
        self._models: dict[str, ModelView] = {}
        self._by_name: dict[str, list[str]] = {}
        self._routes: dict[str, Route] = {}
        """What was resolved since the last change."""

    def put(self, model: ModelView) -> None:
        self.remove(model.key)
        self._models[model.key] = model
        for name in model.served_names:
            self._by_name.setdefault(name, []).append(model.key)

    def remove(self, key: str) -> None:
        self._routes.clear()
        old = self._models.pop(key, None)
        for name in old.served_names if old else ():
            holders = self._by_name.get(name)
            if holders and key in holders:
                holders.remove(key)
                if not holders:
                    del self._by_name[name]

    def resolve(self, asked: str) -> Route | None:
        """The route of a name, or None when nothing is called so."""
        route = self._routes.get(asked)
        if route is None:
            route = self._resolve(asked)
            if route is not None and len(self._routes) < ROUTES_MAX:
                self._routes[asked] = route
        return route

    def _resolve(self, asked: str) -> Route | None:
        key = self._key_of(asked)
        if key is not None:
            return Route(key, asked, "", _lines(asked))
        base, colon, adapter = asked.rpartition(":")
        if colon:
            key = self._key_of(base)
            if key is not None and adapter in self._models[key].adapters:
                return Route(key, asked, adapter, _lines(asked, adapter))
        return None

    def served(self) -> Iterator[tuple[str, ModelView]]:
        """Every name that routes, with its model; a model's own key comes along only when it is a served name."""
        for name in sorted(self._by_name):
            key = self._key_of(name)
            if key is not None:
                yield name, self._models[key]
        for key in sorted(self._models):
            if not self._models[key].served_names:
                yield key, self._models[key]

    def _key_of(self, name: str) -> str | None:
        holders = self._by_name.get(name)
        if holders:
            if len(holders) == 1:
                return holders[0]
            # Two statuses claim one name for as long as a watch lags behind: the older object has it, as the operator will decide.
            return min(holders, key=lambda key: (self._models[key].created, key))
        return name if name in self._models else None
