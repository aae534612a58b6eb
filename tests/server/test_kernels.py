"""Our products of quantized weights give every bit that ggml's own dot products give, in each build that this processor can run."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from tests.server.harness import ROOT

from corral_server.engine.processor import BUILDS, flags_of


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="the kernels are for x86-64")
@pytest.mark.parametrize("build", ["", *BUILDS])
def test_each_product_is_ggml_s_to_the_last_bit(build: str):
    if build and not BUILDS[build] <= flags_of(Path("/proc/cpuinfo").read_text()):
        pytest.skip(f"this processor has no {build}")
    folder = Path(str(distribution("llama-cpp-python").locate_file("llama_cpp/lib"))) / build
    command = [sys.executable, "-m", "tests.support.ggml_products", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["kernels"]
    assert said["cases"] > 400
    assert said["different"] == []
