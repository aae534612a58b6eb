"""GGUF files of many gibibytes that take no room on disk: a mixture of experts whose weights are holes of a sparse file, read as zeros.

It answers its sentence like `gguf_files.sentence_model`, since the feed-forward part of zeros adds nothing; each token reads one expert a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tests.support.gguf_files import EOS, FIRST_PIECE, HEAD, _add_tokenizer, pieces_of

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
ALIGNMENT = 32


def write_large_model(target: Path, text: str, *, size: int, layers: int, experts: int = 64, context: int = 2048) -> None:
    """A model that says `text`, whose layers hold `size` bytes together."""
    pieces = pieces_of(text)
    vocabulary, width = FIRST_PIECE + len(pieces), HEAD
    if len(pieces) + 1 > width:
        raise ValueError(f"text {text!r} has {len(pieces)} pieces; at most {width - 1} fit")
    embedding, output = np.zeros((vocabulary, width), dtype=np.float16), np.zeros((vocabulary, width), dtype=np.float16)
    embedding[:FIRST_PIECE, 0] = 1
    for index in range(len(pieces)):
        embedding[FIRST_PIECE + index, index + 1] = 1
        output[FIRST_PIECE + index, index] = 10
    output[EOS, len(pieces)] = 10
    inner = round(size / layers / experts / (3 * width * 2) / 32) * 32

    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name(text)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(vocabulary)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(1)
    _add_tokenizer(writer, pieces, CHAT_TEMPLATE)
    tensors: list[tuple[str, tuple[int, ...], Any]] = [
        ("token_embd.weight", embedding.shape, embedding),
        ("output.weight", output.shape, output),
        ("output_norm.weight", (width,), np.ones(width, dtype=np.float32)),
    ]
    for layer in range(layers):
        tensors += [(f"blk.{layer}.{name}.weight", (width,), np.ones(width, dtype=np.float32)) for name in ("attn_norm", "ffn_norm")]
        tensors += [(f"blk.{layer}.{name}.weight", (width, width), None) for name in ("attn_q", "attn_k", "attn_v", "attn_output")]
        tensors.append((f"blk.{layer}.ffn_gate_inp.weight", (experts, width), np.zeros((experts, width), dtype=np.float32)))
        tensors.append((f"blk.{layer}.ffn_gate_exps.weight", (experts, inner, width), None))
        tensors.append((f"blk.{layer}.ffn_up_exps.weight", (experts, inner, width), None))
        tensors.append((f"blk.{layer}.ffn_down_exps.weight", (experts, width, inner), None))
    offsets, at = [], 0
    for name, shape, data in tensors:
        kind = np.dtype(np.float16) if data is None else data.dtype
        bytes_ = int(np.prod(shape)) * kind.itemsize
        writer.add_tensor_info(name, shape, kind, bytes_)
        offsets.append(at)
        at += -(-bytes_ // ALIGNMENT) * ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with target.open("r+b") as file:
        file.seek(0, 2)
        start = -(-file.tell() // ALIGNMENT) * ALIGNMENT
        for (_, _, data), offset in zip(tensors, offsets, strict=True):
            if data is not None:
                file.seek(start + offset)
                file.write(data.tobytes())
        file.truncate(start + at)
