"""A model that stays open in the zygote while the pod sleeps, so that the next engine has it at its fork.

Owns the one model of the process it runs in. Only for files that an engine has loaded before, in main memory, by a build without a GPU backend: the
zygote must not die of a file, touch a device or start a thread. Weights are a shared mapping of the file; what a model holds beside them (its
vocabulary, weights in another order) is the zygote's own memory, and bounded.
"""

import ctypes
from pathlib import Path
from typing import Any

from corral_server.engine.library import L, Log
from corral_server.engine.model import load_model
from corral_server.machine import anonymous_bytes, threads
from corral_server.reasons import Failure

LIMIT = 64 << 20
"""Bytes of its own that a kept model may cost a sleeping pod."""

Identity = tuple[str, int, int]


class _Kept:
    def __init__(self) -> None:
        self.identity: Identity | None = None
        self.model: Any = None
        self.refused: Identity | None = None


_kept = _Kept()


def identity_of(path: str) -> Identity:
    """Another file under the same name is another model."""
    file = Path(path).stat()
    return path, file.st_size, file.st_mtime_ns


def keep(path: str) -> None:
    """Open the model in this process, unless it is too large for that; what cannot be opened is left to the engine, which says why."""
    try:
        identity = identity_of(path)
    except OSError:
        return
    if identity in (_kept.identity, _kept.refused):
        return
    _drop()
    before = anonymous_bytes("self")
    L.llama_backend_init()
    try:
        model = load_model(path, Log(), gpu_layers=0)
    except Failure:
        _kept.refused = identity
        return
    _kept.model, _kept.identity = model, identity
    if threads() != 1:
        raise SystemExit("opening the model started a thread: nothing can be forked from this process any more")
    if anonymous_bytes("self") - before > LIMIT:
        _drop()
        _kept.refused = identity


def kept(path: str) -> Any:
    """The open model of this file, None when there is none."""
    try:
        return _kept.model if _kept.identity is not None and _kept.identity == identity_of(path) else None
    except OSError:
        return None


def _drop() -> None:
    if _kept.model is not None:
        L.llama_model_free(_kept.model)
        _kept.model = _kept.identity = None
        ctypes.CDLL(None).malloc_trim(0)
