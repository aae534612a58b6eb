"""What a projector takes beside its model, by llama.cpp's own plan: nothing is loaded for it."""

import ctypes
from pathlib import Path
from typing import Any

from corral_server.engine.library import multimodal
from corral_server.engine.memory import MapHeader, tensor_bytes
from corral_server.gguf_header import Header, NeedMoreError, parse_header
from corral_server.reasons import UNSUPPORTED_MODEL, Failure

_SYMBOL = "_Z21mtmd_get_memory_usagePKc19mtmd_context_params"
_FIRST = 1 << 20
_MOST = 1 << 28


class _Node(ctypes.Structure):
    _fields_ = (
        ("colour", ctypes.c_size_t), ("parent", ctypes.c_void_p), ("left", ctypes.c_void_p), ("right", ctypes.c_void_p),
        ("device", ctypes.c_void_p), ("bytes", ctypes.c_size_t),
    )  # fmt: skip


def projector_memory(path: str, *, offload: bool, flash_attention: int, source: str = "") -> dict[str, int]:
    """Bytes of its weights and of its compute buffers (x86-64 calling convention); Failure when llama.cpp cannot read it."""
    library = multimodal()
    params = library.mtmd_context_params_default()
    params.use_gpu = offload
    params.flash_attn_type = flash_attention
    total = _planned(library, path, params)
    if not total:
        raise Failure(UNSUPPORTED_MODEL, f"model.projector: llama.cpp could not read {source or path} as a projector")
    weights = sum(tensor_bytes(t.type, list(t.shape)) for t in _header(path, source or path).tensors)
    return {"weights": weights, "compute": max(total - weights, 0)}


def _planned(library: Any, path: str, params: Any) -> int:
    function = library._libmtmd[_SYMBOL]  # noqa: SLF001  a function that is not bound
    function.restype = None
    function.argtypes = [ctypes.POINTER(MapHeader), ctypes.c_char_p, library.mtmd_context_params]
    header = MapHeader()
    function(ctypes.byref(header), path.encode(), params)
    total = 0
    pending = [header.root] if header.count else []
    while pending:
        node = _Node.from_address(pending.pop())
        total += node.bytes
        pending += [child for child in (node.left, node.right) if child]
    return total


def _header(path: str, what: str) -> Header:
    length = _FIRST
    while True:
        with Path(path).open("rb") as file:
            data = file.read(length)
        try:
            return parse_header(data, what)
        except NeedMoreError:
            if len(data) < length or length >= _MOST:
                raise Failure(UNSUPPORTED_MODEL, f"model.projector: the header of {what} does not end") from None
            length *= 4
