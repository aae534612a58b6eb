"""Our products of quantized weights give every bit that ggml's own dot products give, in each build that this processor can run."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from corral_server.engine.processor import BUILDS, flags_of

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="the kernels are for x86-64")
@pytest.mark.parametrize("build", ["", *BUILDS])
def test_each_product_is_ggml_s_to_the_last_bit(build: str):
    if build and not BUILDS[build] <= flags_of(Path("/proc/cpuinfo").read_text()):
        pytest.skip(f"this processor has no {build}")
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "lib" / build
    command = [sys.executable, "-m", "tests.support.ggml_products", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["kernels"]
    assert said["cases"] > 400
    assert said["different"] == []
