"""Which build of ggml's part for processors is loaded."""

import platform
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import pytest

from corral_server.engine import processor

ZEN_4 = "fpu sse4_2 fma avx f16c bmi2 avx2 avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512_bf16 avx512vbmi avx512_vbmi2 avx512_vnni"
SKYLAKE_X = "fpu sse4_2 fma avx f16c bmi2 avx2 avx512f avx512dq avx512cd avx512bw avx512vl"
ZEN_3 = "fpu sse4_2 fma avx f16c bmi2 avx2"


def cpuinfo(*flags: str) -> str:
    return "".join(f"processor\t: {n}\nmodel name\t: x\nflags\t\t: {line}\nbugs\t\t: none\n\n" for n, line in enumerate(flags))


@pytest.mark.parametrize(
    ("processors", "build"),
    [([ZEN_4, ZEN_4], "avx512"), ([ZEN_3], None), ([SKYLAKE_X], None), ([ZEN_4, ZEN_3], None), ([], None)],
    ids=["all of it", "no AVX-512", "AVX-512 without small integers", "cores of two kinds", "another architecture"],
)
def test_the_fastest_build_whose_instructions_every_core_has(processors: list[str], build: str | None) -> None:
    assert processor.fitting(processor.flags_of(cpuinfo(*processors))) == build


def test_without_a_folder_nothing_is_loaded(tmp_path: Path) -> None:
    assert processor.load(tmp_path) is None


@pytest.mark.skipif(platform.machine() != "x86_64", reason="further builds are for x86-64")
@pytest.mark.parametrize("build", processor.BUILDS)
def test_the_wheel_carries_every_build(build: str) -> None:
    assert any(path.parts[-2:] == (build, processor.LIBRARY) for path in files("llama-cpp-python") or [])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="further builds are for x86-64")
def test_the_engine_computes_with_what_this_processor_has() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "from corral_server.engine.library import L; print(L.llama_print_system_info().decode())"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    build = processor.fitting(processor.flags_of(Path("/proc/cpuinfo").read_text()))
    assert ("AVX512_VNNI = 1" in said) == (build == "avx512")
