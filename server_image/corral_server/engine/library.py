"""llama.cpp's low-level bindings, and its log.

Imports `llama_cpp.llama_cpp` without running the package's own `__init__`, which pulls in a whole second server (and its memory).
Never initialises the backend: that is for the process that will decode.
"""

import ctypes
import importlib.util
import sys
import types
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corral_server.engine import processor

FloatArray = npt.NDArray[np.float32]


def _low_level() -> Any:
    if "llama_cpp" not in sys.modules:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("llama-cpp-python is not installed")
        package = types.ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["llama_cpp"] = package
        processor.load(Path(package.__path__[0]) / "lib")
    from llama_cpp import llama_cpp  # noqa: PLC0415  needs the package above in place

    return llama_cpp


def multimodal() -> Any:
    """The bindings of libmtmd, which only those load who have a projector or decode for one."""
    from llama_cpp import mtmd_cpp  # noqa: PLC0415

    return mtmd_cpp


L: Any = _low_level()
LIB: Any = L._lib  # noqa: SLF001  the C library itself: some functions are not bound, some are bound too slowly


def _returning_address(name: str, argtypes: list[Any]) -> Any:
    """A second handle on a function that returns a pointer, as a plain address: building ctypes pointers per token costs more than the copy."""
    function = LIB[name]
    function.argtypes = argtypes
    function.restype = ctypes.c_void_p
    return function


get_logits_ith = _returning_address("llama_get_logits_ith", [ctypes.c_void_p, ctypes.c_int32])
get_embeddings_ith = _returning_address("llama_get_embeddings_ith", [ctypes.c_void_p, ctypes.c_int32])
get_embeddings_seq = _returning_address("llama_get_embeddings_seq", [ctypes.c_void_p, ctypes.c_int32])


def floats_at(address: int, count: int) -> FloatArray:
    """A view of llama.cpp's memory, valid until its next decode."""
    buffer: Any = (ctypes.c_float * count).from_address(address)
    return np.frombuffer(buffer, dtype=np.float32)


class Log:
    """llama.cpp's log lines: the last errors and warnings are kept for messages, nothing is printed."""

    _current: "Log | None" = None

    def __init__(self, *, keep_all: bool = False) -> None:
        self.lines: deque[str] = deque(maxlen=40)
        self.everything: deque[str] | None = deque(maxlen=4000) if keep_all else None
        self._level = 0
        self.callback = L.llama_log_callback(self._write)
        L.llama_log_set(self.callback, ctypes.c_void_p(0))
        # llama.cpp calls it from C until it is given another, whoever else has forgotten this by then.
        Log._current = self

    def _write(self, level: int, text: bytes, _: Any) -> None:
        # Level 5 continues the line before it.
        if level != 5:
            self._level = level
        serious = self._level in (3, 4)
        if serious or self.everything is not None:
            line = text.decode("utf-8", "replace").strip()
            if line and serious:
                self.lines.append(line)
            if line and self.everything is not None:
                self.everything.append(line)

    def tail(self, count: int = 3) -> str:
        return " | ".join(list(self.lines)[-count:])
