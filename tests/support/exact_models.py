"""A model for comparing answers: SmolLM2 in floating point, made once from the quantized file and kept in the cache beside it.

With the quantized one activations are rounded to eight bits before they are multiplied. Another shape of batch, summed in another order, then
tips some of them over, and a log probability changes by up to 0.8; here by 0.02.
"""

import ctypes
import os
from pathlib import Path

import llama_cpp
from tests.support.models import cached, smollm2


def exact_smollm2() -> Path:
    """SmolLM2-135M-Instruct as F32, 540 MB."""

    def build(target: Path, _: Path) -> None:
        wanted = llama_cpp.llama_model_quantize_default_params()
        wanted.allow_requantize = True
        wanted.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
        status = llama_cpp.llama_model_quantize(os.fsencode(smollm2()), os.fsencode(target), ctypes.byref(wanted))
        if status:
            raise RuntimeError(f"llama_model_quantize: {status}")

    return cached("SmolLM2-135M-Instruct.F32.gguf", build)
