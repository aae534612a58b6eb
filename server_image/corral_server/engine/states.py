"""Saved sequence states: the prompt cache that outlives the engine.

One file a state, in a folder that belongs to this pod alone: what people wrote is in there, so nobody else may read it and it goes with the server.
Files are page cache, not anonymous memory: a sleeping server holds nothing. A state is only used when its key (model, context, library) and its
checksum are right: llama.cpp accepts many a damaged one and then answers wrongly.
"""

import ctypes
import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corral_server.engine import scheduling
from corral_server.engine.library import L

_MAGIC = b"CRLSTATE"
_HEAD = struct.Struct("<8s32sII32s")
MINIMUM = 64
"""Tokens under which evaluating is cheaper than keeping."""


@dataclass
class Entry:
    path: Path
    tokens: list[int]
    size: int
    used: int


def state_key(parts: dict[str, Any]) -> bytes:
    """What has to be equal for a state to mean the same."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()


class StateStore:
    def __init__(self, folder: Path, key: bytes, limit: int, window: int) -> None:
        self._folder = folder
        self._key = key
        self._limit = limit
        self._window = window
        self._clock = 0
        self._entries: dict[str, Entry] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.state"), key=lambda p: p.stat().st_mtime_ns):
            self._adopt(path)

    def knows(self, tokens: Sequence[int]) -> bool:
        return _name(tokens) in self._entries

    def save(self, context: Any, sequence: int, tokens: Sequence[int]) -> None:
        """Keep a sequence as it is now; what it continues is dropped, the least recently used give way."""
        size = L.llama_state_seq_get_size_ext(context, sequence, 0)
        if len(tokens) < MINIMUM or not 0 < size <= self._limit or self.knows(tokens):
            return
        for name, entry in list(self._entries.items()):
            if len(entry.tokens) < len(tokens) and scheduling.common_prefix(entry.tokens, tokens) == len(entry.tokens):
                self._drop(name)
        while self._entries and sum(e.size for e in self._entries.values()) + size > self._limit:
            self._drop(min(self._entries, key=lambda n: self._entries[n].used))
        data = np.empty(size, dtype=np.uint8)
        written = L.llama_state_seq_get_data_ext(context, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)), size, sequence, 0)
        if written != size:
            return
        numbers = np.asarray(tokens, dtype=np.int32)
        digest = hashlib.sha256(numbers.tobytes())
        digest.update(data.data)
        name = _name(tokens)
        temporary = self._folder / f"{name}.{os.getpid()}"
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123  opened with its mode
                file.write(_HEAD.pack(_MAGIC, self._key, len(tokens), 0, digest.digest()))
                file.write(numbers.tobytes())
                file.write(data.data)
            temporary.replace(self._folder / f"{name}.state")
        except OSError:
            # A full disk costs the cache, not the answer.
            temporary.unlink(missing_ok=True)
            return
        self._clock += 1
        self._entries[name] = Entry(self._folder / f"{name}.state", list(tokens), size, self._clock)

    def find(self, wanted: Sequence[int], rewind: scheduling.Rewind, better_than: int) -> tuple[Entry, int] | None:
        """The state that keeps most of a prompt, when it is clearly more than what is there without it."""
        best: tuple[Entry, int] | None = None
        for entry in self._entries.values():
            oldest = max(0, len(entry.tokens) - self._window) if self._window else 0
            length = scheduling.reusable(entry.tokens, wanted, oldest, rewind)
            if length >= better_than + 32 and (best is None or length > best[1]):
                best = (entry, length)
        return best

    def restore(self, context: Any, sequence: int, entry: Entry) -> bool:
        """Put a state into an empty sequence; False, and the entry gone, when it cannot be trusted."""
        self._clock += 1
        entry.used = self._clock
        try:
            raw = np.fromfile(entry.path, dtype=np.uint8)
            _, _, count, _, digest = _HEAD.unpack(raw[: _HEAD.size].tobytes())
        except (OSError, struct.error):
            self._drop(_name(entry.tokens))
            return False
        body = raw[_HEAD.size :]
        data = body[4 * count :]
        if hashlib.sha256(body.data).digest() == digest and len(data):
            pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            if L.llama_state_seq_set_data_ext(context, pointer, len(data), sequence, 0) == len(data):
                return True
        self._drop(_name(entry.tokens))
        return False

    def _adopt(self, path: Path) -> None:
        """Take over a file that an earlier engine of this pod wrote, if it is of the same model and context."""
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
            if len(head) == _HEAD.size:
                magic, key, count, _, _ = _HEAD.unpack(head)
                tokens = np.frombuffer(file.read(4 * count), dtype=np.int32).tolist()
                if magic == _MAGIC and key == self._key and len(tokens) == count and path.stem == _name(tokens):
                    self._clock += 1
                    self._entries[path.stem] = Entry(path, tokens, path.stat().st_size - _HEAD.size - 4 * count, self._clock)
                    return
        path.unlink(missing_ok=True)

    def _drop(self, name: str) -> None:
        self._entries.pop(name).path.unlink(missing_ok=True)


def _name(tokens: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(tokens, dtype=np.int32).tobytes()).hexdigest()[:32]
