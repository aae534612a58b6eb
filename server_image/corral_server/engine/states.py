"""Saved sequence states: the prompt cache that outlives the engine.

One file a state, with the checkpoints of its sequence, in a folder that belongs to this pod alone: what people wrote is in there, so nobody else
may read it and it goes with the server.
Files are page cache, not anonymous memory: a sleeping server holds nothing. A state is only used when its key (model, context, library) and its
checksum are right: llama.cpp accepts many a damaged one and then answers wrongly.
"""

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corral_server.engine import media_marks, scheduling
from corral_server.engine.adapters import AdapterSet
from corral_server.engine.checkpoints import Checkpoint, pointer
from corral_server.engine.library import L

_MAGIC = b"CRLSTAT3"
_HEAD = struct.Struct("<8s32sQII32s")
_PART = struct.Struct("<QQ")


@dataclass
class Entry:
    path: Path
    tokens: list[int]
    size: int
    used: int
    checkpoints: list[int]
    adapters: int = 0
    """The set of adapters that it was made with, as a number."""


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

    def knows(self, tokens: Sequence[int], adapters: AdapterSet = ()) -> bool:
        return not media_marks.shows(tokens) and _name(tokens, _number(adapters)) in self._entries

    def save(self, context: Any, sequence: int, tokens: Sequence[int], checkpoints: Sequence[Checkpoint] = (), *, adapters: AdapterSet = ()) -> None:
        """Keep a sequence as it is now; what it continues is dropped, the least recently used give way."""
        size = L.llama_state_seq_get_size_ext(context, sequence, 0)
        if len(tokens) < scheduling.MINIMUM or media_marks.shows(tokens) or not 0 < size <= self._limit or self.knows(tokens, adapters):
            return
        kept = list(checkpoints)
        while size + sum(len(c.data) for c in kept) > self._limit:
            del kept[0]
        size_of_all = size + sum(len(c.data) for c in kept)
        number = _number(adapters)
        for name, entry in list(self._entries.items()):
            if entry.adapters == number and len(entry.tokens) < len(tokens) and scheduling.common_prefix(entry.tokens, tokens) == len(entry.tokens):
                self._drop(name)
        while self._entries and sum(e.size for e in self._entries.values()) + size_of_all > self._limit:
            self._drop(min(self._entries, key=lambda n: self._entries[n].used))
        data = np.empty(size, dtype=np.uint8)
        written = L.llama_state_seq_get_data_ext(context, pointer(data), size, sequence, 0)
        if written != size:
            return
        numbers = np.asarray(tokens, dtype=np.int32)
        table = b"".join(_PART.pack(c.length, len(c.data)) for c in kept)
        parts: list[Any] = [numbers.tobytes(), table, *(c.data.data for c in kept), data.data]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        name = _name(tokens, number)
        temporary = self._folder / f"{name}.{os.getpid()}"
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123  opened with its mode
                file.write(_HEAD.pack(_MAGIC, self._key, number, len(tokens), len(kept), digest.digest()))
                for part in parts:
                    file.write(part)
            temporary.replace(self._folder / f"{name}.state")
        except OSError:
            # A full disk costs the cache, not the answer.
            temporary.unlink(missing_ok=True)
            return
        self._clock += 1
        self._entries[name] = Entry(self._folder / f"{name}.state", list(tokens), size_of_all, self._clock, [c.length for c in kept], number)

    def find(self, wanted: Sequence[int], rewind: scheduling.Rewind, better_than: int, *, adapters: AdapterSet = ()) -> tuple[Entry, int] | None:
        """The state that keeps most of a prompt, when it is clearly more than what is there without it."""
        best: tuple[Entry, int] | None = None
        number = _number(adapters)
        for entry in self._entries.values():
            if entry.adapters != number:
                continue
            oldest = max(0, len(entry.tokens) - self._window) if self._window else 0
            length = scheduling.reusable(entry.tokens, wanted, oldest, rewind, entry.checkpoints)
            if length >= better_than + 32 and (best is None or length > best[1]):
                best = (entry, length)
        return best

    def restore(self, context: Any, sequence: int, entry: Entry) -> list[Checkpoint] | None:
        """Put a state into an empty sequence and give back its checkpoints; None, and the entry gone, when it cannot be trusted."""
        self._clock += 1
        entry.used = self._clock
        try:
            # Mapped, not read: a checkpoint that is kept from it costs page cache only.
            raw = np.memmap(entry.path, dtype=np.uint8, mode="r")
            _, _, _, count, parts, digest = _HEAD.unpack(raw[: _HEAD.size].tobytes())
        except (OSError, ValueError, struct.error):
            self._drop(_name(entry.tokens, entry.adapters))
            return None
        body = raw[_HEAD.size :]
        if hashlib.sha256(body.data).digest() == digest:
            at = 4 * count + _PART.size * parts
            checkpoints = []
            for length, size in _PART.iter_unpack(body[4 * count : at].tobytes()):
                checkpoints.append(Checkpoint(length, body[at : at + size]))
                at += size
            data = body[at:]
            if len(data) and L.llama_state_seq_set_data_ext(context, pointer(data), len(data), sequence, 0) == len(data):
                return checkpoints
        self._drop(_name(entry.tokens, entry.adapters))
        return None

    def _adopt(self, path: Path) -> None:
        """Take over a file that an earlier engine of this pod wrote, if it is of the same model and context."""
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
            if len(head) == _HEAD.size:
                magic, key, number, count, parts, _ = _HEAD.unpack(head)
                if magic == _MAGIC and key == self._key and parts < 1 << 10:
                    tokens = np.frombuffer(file.read(4 * count), dtype=np.int32).tolist()
                    table = file.read(_PART.size * parts)
                    if len(tokens) == count and len(table) == _PART.size * parts and path.stem == _name(tokens, number):
                        self._clock += 1
                        size = path.stat().st_size - _HEAD.size - 4 * count
                        lengths = [length for length, _ in _PART.iter_unpack(table)]
                        self._entries[path.stem] = Entry(path, tokens, size, self._clock, lengths, number)
                        return
        path.unlink(missing_ok=True)

    def _drop(self, name: str) -> None:
        self._entries.pop(name).path.unlink(missing_ok=True)


def _number(adapters: AdapterSet) -> int:
    return int.from_bytes(hashlib.sha256(repr(adapters).encode()).digest()[:8], "little") if adapters else 0


def _name(tokens: Sequence[int], adapters: int) -> str:
    return hashlib.sha256(adapters.to_bytes(8, "little") + np.asarray(tokens, dtype=np.int32).tobytes()).hexdigest()[:32]
