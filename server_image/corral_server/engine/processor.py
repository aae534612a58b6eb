"""Which build of ggml's part for processors a process loads: the portable one, or the one for the instructions that this processor has.

The wheel carries the portable one (x86-64 with AVX2) where llama.cpp's other libraries look for it, and others of the same name in folders beside
it. It never loads a build whose instructions the processor lacks; without a folder that fits nothing is loaded here.
"""

import ctypes
from collections.abc import Set as AbstractSet
from pathlib import Path

BUILDS = {"avx512": frozenset({"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw", "avx512vbmi", "avx512_vnni"})}
"""Folders of further builds, the fastest first, and the flags of `/proc/cpuinfo` that each needs, as server_image/llama-cpp.cmake has it."""
LIBRARY = "libggml-cpu.so.0"


def fitting(flags: AbstractSet[str]) -> str | None:
    """The name of the fastest further build for a processor with these flags; None for the portable one."""
    return next((name for name, needed in BUILDS.items() if needed <= flags), None)


def flags_of(cpuinfo: str) -> frozenset[str]:
    """The flags that all processors have, of the text of `/proc/cpuinfo`."""
    found = [frozenset(line.partition(":")[2].split()) for line in cpuinfo.splitlines() if line.startswith("flags")]
    return frozenset.intersection(*found) if found else frozenset()


def load(libraries: Path) -> str | None:
    """Load the build that fits from below a folder of llama.cpp's libraries, and return its name. They take what bears the name already."""
    try:
        name = fitting(flags_of(Path("/proc/cpuinfo").read_text()))
    except OSError:
        return None
    if name is None or not (path := libraries / name / LIBRARY).is_file():
        return None
    ctypes.CDLL(str(path))
    return name
