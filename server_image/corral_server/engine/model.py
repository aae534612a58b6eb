"""A loaded model and its context: the calls that create and free them, and what they say about themselves.

Checks before each call what would otherwise end the process (batch and output sizes are bounded by the plan).
"""

import ctypes
from collections.abc import Callable
from typing import Any

from corral_server.engine.library import L, Log
from corral_server.engine.plan import POOLING_TYPES, EnginePlan
from corral_server.reasons import LOAD_FAILED, OUT_OF_MEMORY, UNSUPPORTED_MODEL, Failure

_MEMORY_WORDS = ("alloc", "out of memory", "cudaMalloc", "insufficient memory")
_REFUSED_WORDS = (
    "unknown model architecture",
    "unsupported",
    "missing tensor",
    "key not found",
    "wrong number of tensors",
    "unknown pre-tokenizer",
    "invalid",
)


def load_model(
    path: str, log: Log, *, gpu_layers: int = -1, split: list[float] | None = None, no_alloc: bool = False, vocab_only: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Any:  # fmt: skip
    """The model of a file; Failure with llama.cpp's own words when it refuses."""
    params = L.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    params.vocab_only = vocab_only
    params.no_alloc = no_alloc
    # Weights in the processor's own order: a third faster with 4-bit formats. The estimate sees them because it plans with the same setting.
    params.use_extra_bufts = True
    params.load_mode = L.LLAMA_LOAD_MODE_NONE if no_alloc else L.LLAMA_LOAD_MODE_MMAP
    if split and len(split) > 1:
        if len(split) > L.llama_max_devices():
            raise Failure(LOAD_FAILED, f"the model is split over {len(split)} devices; this llama.cpp knows at most {L.llama_max_devices()}")
        array = (ctypes.c_float * L.llama_max_devices())(*split)
        params.tensor_split = ctypes.cast(array, ctypes.POINTER(ctypes.c_float))
    keep = None
    if progress is not None:
        report = progress

        def on_progress(value: float, _: Any) -> bool:
            report(value)
            return True

        keep = L.llama_progress_callback(on_progress)
        params.progress_callback = keep
    model = L.llama_model_load_from_file(path.encode(), params)
    del keep
    if not model:
        raise _load_failure(f"llama.cpp could not load {path}", log)
    return model


def make_context(model: Any, plan: EnginePlan, log: Log, *, threads: int = 1, whole_windows: bool = False) -> Any:
    """`whole_windows`: sliding windows keep what has left them, so that any length can be gone back to."""
    params = L.llama_context_default_params()
    params.n_ctx = plan.cells
    params.n_batch = plan.batch
    params.n_ubatch = plan.micro_batch
    params.n_seq_max = plan.slots
    params.n_outputs_max = plan.outputs
    params.n_threads = params.n_threads_batch = threads
    params.kv_unified = True
    params.swa_full = whole_windows
    params.flash_attn_type = plan.flash_attention
    params.type_k = params.type_v = plan.kv_type
    params.embeddings = plan.embeds
    if plan.embeds:
        params.pooling_type = POOLING_TYPES[plan.pooling]
    context = L.llama_init_from_model(model, params)
    if not context:
        raise _load_failure("llama.cpp could not create the context", log)
    return context


def has_state(model: Any) -> bool:
    """Whether it keeps a recurrent state, alone or beside attention: that is only right at its very end."""
    return bool(L.llama_model_is_recurrent(model) or L.llama_model_is_hybrid(model))


def model_format(model: Any) -> str:
    """How the weights are written, in llama.cpp's words: `Q4_K - Medium`."""
    name = L.llama_ftype_name(L.llama_model_ftype(model))
    return name.decode("utf-8", "replace") if name else ""


def metadata(model: Any) -> dict[str, str]:
    """Every key of the file that has a printable value."""
    buffer = ctypes.create_string_buffer(1 << 12)
    values: dict[str, str] = {}
    for index in range(L.llama_model_meta_count(model)):
        L.llama_model_meta_key_by_index(model, index, buffer, len(buffer))
        key = buffer.value.decode("utf-8", "replace")
        length = L.llama_model_meta_val_str_by_index(model, index, buffer, len(buffer))
        if length >= len(buffer):
            # Arrays of the vocabulary print as megabytes; the template is fetched by its own call.
            if key.startswith("tokenizer.") and "template" not in key:
                continue
            large = ctypes.create_string_buffer(length + 1)
            L.llama_model_meta_val_str_by_index(model, index, large, len(large))
            values[key] = large.value.decode("utf-8", "replace")
        else:
            values[key] = buffer.value.decode("utf-8", "replace")
    return values


def _load_failure(what: str, log: Log) -> Failure:
    said = log.tail(4)
    lowered = said.lower()
    if any(word.lower() in lowered for word in _MEMORY_WORDS):
        return Failure(OUT_OF_MEMORY, f"{what}: {said}")
    if any(word in lowered for word in _REFUSED_WORDS):
        return Failure(UNSUPPORTED_MODEL, f"{what}: {said}")
    return Failure(LOAD_FAILED, f"{what}: {said or 'it gave no reason'}")
