"""What llama.cpp and the process really hold, by kind."""

import ctypes
from typing import Any

from corral_server.engine.library import LIB, L
from corral_server.reasons import UNSUPPORTED_MODEL, Failure

_SYMBOL = "_Z26llama_get_memory_breakdownPK13llama_context"


class MapHeader(ctypes.Structure):
    """libstdc++'s std::map as the library returns it: comparator, then the header node, then the count."""

    _fields_ = (
        ("compare", ctypes.c_size_t), ("colour", ctypes.c_size_t), ("root", ctypes.c_void_p), ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p), ("count", ctypes.c_size_t),
    )  # fmt: skip


class _Node(ctypes.Structure):
    _fields_ = (
        ("colour", ctypes.c_size_t), ("parent", ctypes.c_void_p), ("left", ctypes.c_void_p), ("right", ctypes.c_void_p),
        ("buffer_type", ctypes.c_void_p), ("model", ctypes.c_size_t), ("context", ctypes.c_size_t), ("compute", ctypes.c_size_t),
    )  # fmt: skip


def _name_of(buffer_type: int) -> str:
    function = LIB.ggml_backend_buft_name
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.c_void_p]
    return str(function(buffer_type).decode())


def breakdown(context: Any) -> dict[str, int]:
    """Bytes of weights, KV cache and compute buffers over all devices, as the allocator counts them (x86-64 calling convention).

    Weights that were put into another order for this processor lie in a buffer of their own, while their place in the mapped file is still counted;
    each is counted once here, and how much of them is such a copy (anonymous memory, unlike the file) is `repacked`.
    """
    function = LIB[_SYMBOL]
    function.restype = None
    function.argtypes = [ctypes.POINTER(MapHeader), ctypes.c_void_p]
    header = MapHeader()
    function(ctypes.byref(header), context)
    totals = {"weights": 0, "kvCache": 0, "compute": 0, "repacked": 0}
    mapped = False
    pending = [header.root] if header.count else []
    while pending:
        node = _Node.from_address(pending.pop())
        totals["weights"] += node.model
        totals["kvCache"] += node.context
        totals["compute"] += node.compute
        name = _name_of(node.buffer_type)
        if name.endswith("_Mapped"):
            mapped = mapped or node.model > 0
        elif name.startswith("CPU_") or name == "AMX":
            totals["repacked"] += node.model
        pending += [child for child in (node.left, node.right) if child]
    if mapped:
        # The mapped range may or may not reach over the tensors that were copied.
        totals["weights"] = max(totals["weights"] - totals["repacked"], min(totals["weights"], L.llama_model_size(L.llama_get_model(context))))
    return totals


def tensor_bytes(kind: int, shape: list[int]) -> int:
    """As ggml stores it; Failure for a type that this library does not know."""
    blck, size = LIB.ggml_blck_size, LIB.ggml_type_size
    blck.restype, size.restype = ctypes.c_int64, ctypes.c_size_t
    blck.argtypes = size.argtypes = [ctypes.c_int]
    if not 0 <= kind < 64 or not size(kind):
        raise Failure(UNSUPPORTED_MODEL, f"a tensor has the type {kind}, which this llama.cpp does not know")
    count = 1
    for dimension in shape:
        count *= dimension
    return int(count // blck(kind) * size(kind))
