"""LoRA adapters of random weights, large enough to change what SmolLM2 says."""

from pathlib import Path

import gguf
import numpy as np

_WIDTH = 576
_LAYERS = 30
_RANK = 4


def write_adapter(target: Path, seed: int, *, strength: float = 0.2, layers: int = _LAYERS, width: int = _WIDTH, architecture: str = "llama") -> Path:
    """An adapter on the query matrices; the same seed gives the same file."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(_RANK))
    for layer in range(layers):
        name = f"blk.{layer}.attn_q.weight"
        writer.add_tensor(f"{name}.lora_a", random.standard_normal((_RANK, width)).astype(np.float32) * strength)
        writer.add_tensor(f"{name}.lora_b", random.standard_normal((width, _RANK)).astype(np.float32) * strength)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
