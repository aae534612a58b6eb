"""LoRA adapters: loaded with the model, switched between steps, and whose turn the batch is.

All sequences of one decode share one set of adapters. Prefixes made with different sets are never mixed: that is the callers' part.
"""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from corral_server.engine.library import L, Log
from corral_server.reasons import LOAD_FAILED, Failure

AdapterSet = tuple[tuple[int, float], ...]
"""Numbers and scales of the adapters in force, in the order of their numbers; empty: the bare model."""

TURN = 8
"""Steps for which a set keeps the batch while another one waits."""


def load_adapters(model: Any, wanted: Sequence[Mapping[str, Any]], log: Log) -> list[Any]:
    """A handle for each adapter file; Failure names the one that llama.cpp refuses."""
    handles = []
    for entry in wanted:
        handle = L.llama_adapter_lora_init(model, str(entry["path"]).encode())
        if not handle:
            raise Failure(LOAD_FAILED, f"llama.cpp could not load the adapter {entry['name']}: {log.tail(2) or 'it gave no reason'}")
        if L.llama_adapter_get_alora_n_invocation_tokens(handle):
            raise Failure(LOAD_FAILED, f"the adapter {entry['name']} acts only after a phrase that invokes it, which is not supported")
        handles.append(handle)
    return handles


def parse_set(raw: Sequence[Sequence[float]] | None, count: int) -> AdapterSet:
    """The set of a request's pairs of number and scale; what has no effect is left out."""
    chosen: dict[int, float] = {}
    for number, scale in raw or ():
        if not 0 <= int(number) < count:
            raise ValueError(f"there is no adapter {int(number)}; this model has {count}")
        chosen[int(number)] = float(scale)
    return tuple((n, s) for n, s in sorted(chosen.items()) if s)


class Switch:
    """Which set the context evaluates with at the moment."""

    def __init__(self, context: Any, handles: list[Any]) -> None:
        self._context = context
        self._handles = handles
        self._current: AdapterSet = ()
        self._steps = 0

    @property
    def count(self) -> int:
        return len(self._handles)

    def choose(self, waiting: Mapping[AdapterSet, float]) -> AdapterSet:
        """The set of the next step among those with work, each with the arrival of its oldest request: the present one goes on while it is alone or
        its turn lasts, then the one that has waited longest follows.
        """
        others = {s: at for s, at in waiting.items() if s != self._current}
        if self._current in waiting and (not others or self._steps < TURN):
            chosen = self._current
        else:
            chosen = min(others or waiting, key=lambda s: waiting[s])
        if chosen != self._current:
            self._apply(chosen)
            self._steps = 0
        self._steps += 1
        return chosen

    def _apply(self, chosen: AdapterSet) -> None:
        size = max(len(chosen), 1)
        # An array of the handles' own type: ctypes would take a single pointer for the first of them, and pass its address.
        handles = (L.llama_adapter_lora_p_ctypes * size)(*(self._handles[n] for n, _ in chosen))
        scales = (ctypes.c_float * size)(*(s for _, s in chosen))
        L.llama_set_adapters_lora(self._context, handles, len(chosen), scales)
        self._current = chosen
