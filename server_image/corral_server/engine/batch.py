"""The one batch that each step fills and decodes, in memory that is allocated once."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from corral_server.engine.library import L


class Batch:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._tokens = np.zeros(capacity, dtype=np.int32)
        self._positions = np.zeros(capacity, dtype=np.int32)
        self._counts = np.ones(capacity, dtype=np.int32)
        self._sequences = np.zeros(capacity, dtype=np.int32)
        self._wanted = np.zeros(capacity, dtype=np.int8)
        stride = self._sequences.itemsize
        self._pointers = self._sequences.ctypes.data + stride * np.arange(capacity, dtype=np.uint64)
        self._struct: Any = L.llama_batch()
        for name, array in (
            ("token", self._tokens), ("pos", self._positions), ("n_seq_id", self._counts), ("seq_id", self._pointers), ("logits", self._wanted),
        ):  # fmt: skip
            kind = dict(L.llama_batch._fields_)[name]
            setattr(self._struct, name, ctypes.cast(array.ctypes.data, kind))
        self._struct.embd = None

    @property
    def room(self) -> int:
        return self.capacity - self.size

    def clear(self) -> None:
        self.size = 0

    def add(self, tokens: Sequence[int], first_position: int, sequence: int, *, outputs: str) -> int:
        """Append tokens of one sequence; `outputs`: "none", "last" or "all". Returns the index of the last one."""
        start, end = self.size, self.size + len(tokens)
        if end > self.capacity:
            raise ValueError(f"{len(tokens)} tokens do not fit into a batch with room for {self.room}")
        self._tokens[start:end] = tokens
        self._positions[start:end] = np.arange(first_position, first_position + len(tokens), dtype=np.int32)
        self._sequences[start:end] = sequence
        self._wanted[start:end] = outputs == "all"
        if outputs == "last":
            self._wanted[end - 1] = 1
        self.size = end
        return end - 1

    def decode(self, context: Any) -> int:
        self._struct.n_tokens = self.size
        return int(L.llama_decode(context, self._struct))
