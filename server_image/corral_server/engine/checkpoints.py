"""What a sequence's memory forgets, kept aside at chosen lengths: the window of sliding-window layers, the state of recurrent ones.

Held in files that have no name any more: page cache that the kernel may write out, not anonymous memory, and gone with the process however it ends.
"""

import ctypes
import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corral_server.engine.library import L

PARTIAL_ONLY = 1
PER_SEQUENCE = 8

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Checkpoint:
    """The forgetting part of the memory after `length` tokens."""

    length: int
    data: Bytes


def pointer(data: Bytes) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def unnamed(folder: Path, size: int) -> Bytes | None:
    """Memory behind an unlinked file; None when the disk has no room (a hole in the file would end the process at its first write)."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.frombuffer(mmap.mmap(file.fileno(), size), dtype=np.uint8)
    except OSError:
        return None


def take(context: Any, sequence: int, length: int, folder: Path) -> Checkpoint | None:
    """The checkpoint of a sequence as it is now."""
    size = L.llama_state_seq_get_size_ext(context, sequence, PARTIAL_ONLY)
    data = unnamed(folder, size) if size else None
    if data is None or L.llama_state_seq_get_data_ext(context, pointer(data), size, sequence, PARTIAL_ONLY) != size:
        return None
    return Checkpoint(length, data)


def put_back(context: Any, sequence: int, checkpoint: Checkpoint) -> bool:
    """Bring the forgetting part back to where it was; the rest of the sequence has to be cut to the same length afterwards."""
    size = len(checkpoint.data)
    return bool(L.llama_state_seq_set_data_ext(context, pointer(checkpoint.data), size, sequence, PARTIAL_ONLY) == size)


def thinned(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """At most `PER_SEQUENCE`: of the crowded ones, the one whose neighbours lie closest goes; the last stays."""
    kept = sorted(checkpoints, key=lambda c: c.length)
    while len(kept) > PER_SEQUENCE:
        gaps = [(kept[i + 1].length - (kept[i - 1].length if i else 0), i) for i in range(len(kept) - 1)]
        del kept[min(gaps)[1]]
    return kept
