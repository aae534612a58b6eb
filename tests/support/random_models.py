"""Small GGUF files of several architectures with random weights: their words mean nothing, their shapes, memory and timing are real.

For what a sentence model cannot show: logits that depend on the whole history, windows, recurrent states, experts, latent attention. Text is read
byte by byte.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf
import numpy as np
from tests.support import models

BYTES = 256
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shape:
    """What a model's tensors follow from; a field that an architecture does not have is not used."""

    architecture: str
    layers: int = 4
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    head: int = 64
    feed_forward: int = 512
    context: int = 4096
    vocabulary: int = 512
    window: int = 0
    experts: int = 8
    experts_used: int = 2
    expert_feed_forward: int = 128
    quantised: str = "F16"
    seed: int = 1
    sharp: float | None = None
    """How many times stronger its attention is: it then picks out single tokens, and every word follows from what was said long before."""
    words_of: Path | None = None
    """A file whose vocabulary it has, instead of one of bytes; `vocabulary` has to be its size."""


def random_model(shape: Shape) -> Path:
    """The path of the file; made once and kept in the cache."""
    told = {k: v.name if isinstance(v, Path) else v for k, v in asdict(shape).items() if v is not None}
    key = hashlib.sha256(repr((2, sorted(told.items()))).encode()).hexdigest()[:16]
    return models.cached(f"random-{shape.architecture}-{key}.gguf", lambda target, _: _write(target, shape))


def _attention(s: Shape) -> Shapes:
    return {
        "attn_norm": (s.width,),
        "attn_q": (s.heads * s.head, s.width),
        "attn_k": (s.kv_heads * s.head, s.width),
        "attn_v": (s.kv_heads * s.head, s.width),
        "attn_output": (s.width, s.heads * s.head),
    }


def _dense(s: Shape) -> Shapes:
    return {
        "ffn_norm": (s.width,),
        "ffn_gate": (s.feed_forward, s.width),
        "ffn_up": (s.feed_forward, s.width),
        "ffn_down": (s.width, s.feed_forward),
    }


def _experts(s: Shape) -> Shapes:
    return {
        "ffn_norm": (s.width,),
        "ffn_gate_inp": (s.experts, s.width),
        "ffn_gate_exps": (s.experts, s.expert_feed_forward, s.width),
        "ffn_up_exps": (s.experts, s.expert_feed_forward, s.width),
        "ffn_down_exps": (s.experts, s.width, s.expert_feed_forward),
    }


def _head_norms(s: Shape) -> Shapes:
    return {"attn_q_norm": (s.head,), "attn_k_norm": (s.head,)}


def _llama(s: Shape, _: int) -> Shapes:
    return {**_attention(s), **_dense(s)}


def _qwen3(s: Shape, _: int) -> Shapes:
    return {**_attention(s), **_head_norms(s), **_dense(s)}


def _qwen3moe(s: Shape, _: int) -> Shapes:
    return {**_attention(s), **_head_norms(s), **_experts(s)}


def _gemma3(s: Shape, _: int) -> Shapes:
    return {**_attention(s), **_head_norms(s), **_dense(s), "post_attention_norm": (s.width,), "post_ffw_norm": (s.width,)}


def recurrent(s: Shape, layer: int) -> bool:
    """Every second layer of a hybrid keeps a state instead of a cache."""
    return s.architecture == "lfm2" and layer % 2 == 0


def _lfm2(s: Shape, layer: int) -> Shapes:
    if not recurrent(s, layer):
        return {**_attention(s), **_head_norms(s), **_dense(s)}
    mixing = {"shortconv.conv": (s.width, 3), "shortconv.in_proj": (3 * s.width, s.width), "shortconv.out_proj": (s.width, s.width)}
    return {"attn_norm": (s.width,), **mixing, **_dense(s)}


def _mamba(s: Shape, _: int) -> Shapes:
    inner, rank = 2 * s.width, s.width // 16
    return {
        "attn_norm": (s.width,),
        "ssm_in": (2 * inner, s.width),
        "ssm_conv1d": (inner, 4),
        "ssm_conv1d.bias": (inner,),
        "ssm_x": (rank + 32, inner),
        "ssm_dt": (inner, rank),
        "ssm_dt.bias": (inner,),
        "ssm_a.": (inner, 16),
        "ssm_d.": (inner,),
        "ssm_out": (s.width, inner),
    }


LATENT, ROTATED = 64, 32


def _deepseek2(s: Shape, layer: int) -> Shapes:
    plain = s.head
    shapes: Shapes = {
        "attn_norm": (s.width,),
        "attn_q_a": (96, s.width),
        "attn_q_a_norm": (96,),
        "attn_q_b": (s.heads * (plain + ROTATED), 96),
        "attn_kv_a_mqa": (LATENT + ROTATED, s.width),
        "attn_kv_a_norm": (LATENT,),
        "attn_k_b": (s.heads, LATENT, plain),
        "attn_v_b": (s.heads, s.head, LATENT),
        "attn_output": (s.width, s.heads * s.head),
    }
    if layer == 0:
        return {**shapes, **_dense(s)}
    shared = {"ffn_gate_shexp": (s.expert_feed_forward, s.width), "ffn_up_shexp": (s.expert_feed_forward, s.width)}
    return {**shapes, **_experts(s), **shared, "ffn_down_shexp": (s.width, s.expert_feed_forward)}


LAYERS: dict[str, Callable[[Shape, int], Shapes]] = {
    "llama": _llama, "qwen3": _qwen3, "qwen3moe": _qwen3moe, "gemma3": _gemma3, "lfm2": _lfm2, "mamba": _mamba, "deepseek2": _deepseek2,
    "qwen2vl": _llama,
}  # fmt: skip


def _write(target: Path, s: Shape) -> None:
    writer = gguf.GGUFWriter(target, s.architecture)
    _keys(writer, s)
    if s.words_of is not None:
        _copy_tokenizer(writer, s.words_of)
    else:
        _tokenizer(writer, s.vocabulary)
    random = np.random.default_rng(s.seed)
    final = "token_embd_norm.weight" if s.architecture == "lfm2" else "output_norm.weight"
    _add(writer, random, s, "token_embd.weight", (s.vocabulary, s.width))
    _add(writer, random, s, "output.weight", (s.vocabulary, s.width))
    _add(writer, random, s, final, (s.width,))
    for layer in range(s.layers):
        for name, dimensions in LAYERS[s.architecture](s, layer).items():
            full = name.rstrip(".") if name.endswith((".", ".bias")) else f"{name}.weight"
            _add(writer, random, s, f"blk.{layer}.{full}", dimensions)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, random: np.random.Generator, s: Shape, name: str, shape: tuple[int, ...]) -> None:
    strength = s.sharp if s.sharp is not None and ".attn_" in name and name.split(".")[2] not in ("attn_norm", "attn_output_norm") else 1.0
    if name.endswith("norm.weight"):
        writer.add_tensor(name, np.full(shape, strength, dtype=np.float32))
        return
    if ".ssm_a" in name:
        # A decay: it has to be negative, or the state grows without bound.
        writer.add_tensor(name, -random.uniform(0.01, 0.2, shape).astype(np.float32))
        return
    values = (random.standard_normal(shape, dtype=np.float32) * (2.0 * strength / np.sqrt(shape[-1]))).astype(np.float32)
    kind = gguf.GGMLQuantizationType[s.quantised]
    if len(shape) < 2 or "ssm_" in name or "shortconv.conv" in name or "ffn_gate_inp" in name:
        writer.add_tensor(name, values)
    elif kind == gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _keys(writer: gguf.GGUFWriter, s: Shape) -> None:
    writer.add_name("random weights")
    writer.add_block_count(s.layers)
    writer.add_context_length(s.context)
    writer.add_embedding_length(s.width)
    writer.add_vocab_size(s.vocabulary)
    writer.add_layer_norm_rms_eps(1e-6)
    if s.architecture == "mamba":
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * s.width)
        writer.add_ssm_state_size(16)
        writer.add_ssm_time_step_rank(s.width // 16)
        return
    writer.add_feed_forward_length(s.feed_forward)
    writer.add_head_count(s.heads)
    if s.architecture == "deepseek2":
        _latent_keys(writer, s)
        return
    writer.add_head_count_kv([0 if recurrent(s, n) else s.kv_heads for n in range(s.layers)] if s.architecture == "lfm2" else s.kv_heads)
    if s.architecture == "lfm2":
        writer.add_shortconv_l_cache(3)
    writer.add_key_length(s.head)
    writer.add_value_length(s.head)
    writer.add_rope_dimension_count(s.head)
    if s.window:
        writer.add_sliding_window(s.window)
    if s.architecture == "qwen2vl":
        # Positions of an image's tokens have a row and a column beside their place in the text.
        writer.add_rope_dimension_sections([s.head // 8, 3 * s.head // 16, 3 * s.head // 16, 0])
    if s.architecture == "qwen3moe":
        writer.add_expert_count(s.experts)
        writer.add_expert_used_count(s.experts_used)
        writer.add_expert_feed_forward_length(s.expert_feed_forward)


def _latent_keys(writer: gguf.GGUFWriter, s: Shape) -> None:
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(96)
    writer.add_kv_lora_rank(LATENT)
    writer.add_key_length(LATENT + ROTATED)
    writer.add_value_length(LATENT)
    writer.add_key_length_mla(s.head + ROTATED)
    writer.add_value_length_mla(s.head)
    writer.add_rope_dimension_count(ROTATED)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_count(s.experts)
    writer.add_expert_used_count(s.experts_used)
    writer.add_expert_feed_forward_length(s.expert_feed_forward)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_scale(1.0)


def _tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(BYTES))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * BYTES
    extra = vocabulary - len(tokens)
    tokens += [f"\u2581w{n}" for n in range(extra)]
    kinds += [gguf.TokenType.NORMAL] * extra
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(value=True)
    writer.add_add_space_prefix(value=False)


def _copy_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    for key, field in gguf.GGUFReader(path).fields.items():
        if key.startswith("tokenizer."):
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=field.types[-1] if len(field.types) > 1 else None)
