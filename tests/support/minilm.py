"""all-MiniLM-L6-v2 as a GGUF file: its published safetensors weights and WordPiece vocabulary under llama.cpp's names for `bert`.

It converts this one model and knows no other.
"""

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

LAYERS, HEADS, WIDTH, FEED_FORWARD, CONTEXT = 6, 12, 384, 1536, 512

OUTER = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
INNER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
# llama.cpp adds these two to F32 activations row by row and wants them unconverted.
KEPT_F32 = {"position_embd.weight", "token_types.weight"}


def convert(weights: Path, vocabulary: Path, target: Path) -> None:
    """Write `target` from `weights` (safetensors, F32) and `vocabulary` (one WordPiece a line)."""
    names = {f"{source}.{kind}": f"{name}.{kind}" for source, name in OUTER.items() for kind in ("weight", "bias")}
    for layer in range(LAYERS):
        for source, name in INNER.items():
            names |= {f"encoder.layer.{layer}.{source}.{kind}": f"blk.{layer}.{name}.{kind}" for kind in ("weight", "bias")}
    writer = gguf.GGUFWriter(target, "bert")
    _add_settings(writer)
    _add_vocabulary(writer, vocabulary.read_text(encoding="utf-8").splitlines())
    for name, tensor in _tensors(weights).items():
        if name in names:  # the pooler and the position ids are no part of a mean-pooled embedding
            matrix = tensor.ndim > 1 and names[name] not in KEPT_F32
            writer.add_tensor(names[name], tensor.astype(np.float16 if matrix else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_settings(writer: gguf.GGUFWriter) -> None:
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(value=False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)


def _add_vocabulary(writer: gguf.GGUFWriter, pieces: list[str]) -> None:
    """llama.cpp marks the start of a word, WordPiece marks what goes on inside one."""
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    tokens, types = [], []
    for piece in pieces:
        if piece in special:
            tokens.append(piece)
        else:
            tokens.append(piece[2:] if piece.startswith("##") else f"\u2581{piece}")
        types.append(gguf.TokenType.CONTROL if piece in special else gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_type_count(2)
    writer.add_bos_token_id(pieces.index("[CLS]"))
    writer.add_eos_token_id(pieces.index("[SEP]"))
    writer.add_sep_token_id(pieces.index("[SEP]"))
    writer.add_unk_token_id(pieces.index("[UNK]"))
    writer.add_pad_token_id(pieces.index("[PAD]"))
    writer.add_mask_token_id(pieces.index("[MASK]"))


def _tensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The F32 tensors of a safetensors file: 8 bytes of header length, a JSON header, then the data."""
    content = np.memmap(path, dtype=np.uint8, mode="r")
    (length,) = struct.unpack("<Q", content[:8].tobytes())
    header = json.loads(content[8 : 8 + length].tobytes())
    found = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = content[begin:end].view(np.float32).reshape(entry["shape"])
    return found
