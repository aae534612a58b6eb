"""Products of quantized weights by one build of ggml, in a process of its own: two builds do not go into one.

`python -m tests.support.ggml_products FOLDER`, FOLDER with llama.cpp's libraries or one of a further build below it, prints as JSON which products
differ in any bit from ggml's own dot products of a row and a column, and whether the build has kernels of ours at all.
"""

import ctypes
import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8}
F32 = 0


class Case(NamedTuple):
    kind: str
    values: int
    """In each row and each column."""
    rows: int
    columns: int
    slices: int
    threads: int


def cases() -> Iterator[Case]:
    shapes = [(32, 1, 1), (576, 192, 3), (1536, 577, 4), (96, 33, 17), (64, 1001, 129), (64, 3, 300), (4096, 40, 9), (14336, 24, 66)]
    shapes += [(288, 22, columns) for columns in range(1, 36)]
    for kind, (values, rows, columns), threads in product(TYPES, shapes, (1, 3)):
        yield Case(kind, values, rows, columns, 1, threads)
    for kind, columns, threads in product(TYPES, (1, 5), (1, 2)):
        yield Case(kind, 128, 70, columns, 3, threads)


class _Memory(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class _Traits(ctypes.Structure):
    _fields_ = [("from_float", ctypes.c_void_p), ("dot", ctypes.c_void_p), ("columns_type", ctypes.c_int), ("rows_at_once", ctypes.c_int64)]


_FROM_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_DOT = ctypes.CFUNCTYPE(
    None, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
)
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (ctypes.c_void_p, [_Memory]),
    "ggml_free": (None, [ctypes.c_void_p]),
    "ggml_new_tensor_2d": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]),
    "ggml_new_tensor_3d": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, *[ctypes.c_int64] * 3]),
    "ggml_mul_mat": (ctypes.c_void_p, [ctypes.c_void_p] * 3),
    "ggml_get_data": (ctypes.c_void_p, [ctypes.c_void_p]),
    "ggml_new_graph": (ctypes.c_void_p, [ctypes.c_void_p]),
    "ggml_build_forward_expand": (None, [ctypes.c_void_p] * 2),
    "ggml_quantize_chunk": (ctypes.c_size_t, [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]),
    "ggml_row_size": (ctypes.c_size_t, [ctypes.c_int, ctypes.c_int64]),
}


class Ggml:
    def __init__(self, base: Path, build: Path) -> None:
        self.base = ctypes.CDLL(str(base / "libggml-base.so.0"), mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(build / "libggml-cpu.so.0"))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self.base, name)
            function.restype, function.argtypes = result, arguments
        self.cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(_Traits)
        self.cpu.ggml_graph_compute_with_ctx.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        self.cpu.ggml_cpu_init()

    def differs(self, case: Case) -> bool:
        """Whether the product is other than the dot products of its rows and columns, in any bit."""
        kind = TYPES[case.kind]
        chance = np.random.default_rng(case.values * case.rows + case.columns)
        weights = chance.standard_normal((case.rows, case.values), dtype=np.float32)
        columns = chance.standard_normal((case.slices * case.columns, case.values), dtype=np.float32)
        row = self.base.ggml_row_size(kind, case.values)
        context = self.base.ggml_init(_Memory(weights.nbytes + 4 * columns.nbytes + 4 * case.rows * len(columns) + (16 << 20), None, False))
        try:
            x = self.base.ggml_new_tensor_2d(context, kind, case.values, case.rows)
            y = self.base.ggml_new_tensor_3d(context, F32, case.values, case.columns, case.slices)
            at = self.base.ggml_get_data(x)
            self.base.ggml_quantize_chunk(kind, weights.ctypes.data, at, 0, case.rows, case.values, None)
            quantized = ctypes.string_at(at, row * case.rows)
            ctypes.memmove(self.base.ggml_get_data(y), columns.ctypes.data, columns.nbytes)
            result = self.base.ggml_mul_mat(context, x, y)
            graph = self.base.ggml_new_graph(context)
            self.base.ggml_build_forward_expand(graph, result)
            self.cpu.ggml_graph_compute_with_ctx(context, graph, case.threads)
            data = ctypes.string_at(self.base.ggml_get_data(result), 4 * case.rows * len(columns))
        finally:
            self.base.ggml_free(context)
        return data != self.dots(kind, quantized, columns).tobytes()

    def dots(self, kind: int, weights: bytes, columns: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """By ggml's dot product of one row and one column: [columns, rows]."""
        traits = self.cpu.ggml_get_type_traits_cpu(kind).contents
        columns_traits = self.cpu.ggml_get_type_traits_cpu(traits.columns_type).contents
        dot, from_float = _DOT(traits.dot), _FROM_FLOAT(columns_traits.from_float)
        values = columns.shape[1]
        row, column = self.base.ggml_row_size(kind, values), self.base.ggml_row_size(traits.columns_type, values)
        rows = len(weights) // row
        packed, quantized = ctypes.create_string_buffer(weights, len(weights)), ctypes.create_string_buffer(column)
        result = np.empty((len(columns), rows), dtype=np.float32)
        for c, one in enumerate(columns):
            from_float(one.ctypes.data, ctypes.addressof(quantized), values)
            for r in range(rows):
                dot(values, result[c:, r:].ctypes.data, 0, ctypes.addressof(packed) + r * row, 0, ctypes.addressof(quantized), 0, 1)
        return result


def main() -> None:
    build = Path(sys.argv[1])
    base = next(folder for folder in (build, build.parent) if (folder / "libggml-base.so.0").is_file())
    ggml = Ggml(base, build)
    asked = list(cases())
    found = [case for case in asked if ggml.differs(case)]
    print(json.dumps({"kernels": hasattr(ggml.cpu, "__wrap_llamafile_sgemm"), "cases": len(asked), "different": found}))


if __name__ == "__main__":
    main()
