"""Small multimodal projectors with random weights, and pictures and sounds to show them.

What they see means nothing; that it reaches the model, where, and how much of it, is as with real ones.
"""

import hashlib
import io
import math
import struct
import wave
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf
import numpy as np
from tests.support import models

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Eyes:
    """`vision` and `audio` name llama.cpp's kinds of projectors; `width` is that of the text model."""

    vision: str = "gemma3"
    audio: str = "ultravox"
    width: int = 256
    inner: int = 64
    heads: int = 4
    layers: int = 2
    feed_forward: int = 128
    image: int = 64
    patch: int = 8
    merge: int = 2
    mels: int = 80
    stack: int = 4
    seed: int = 7


def projector(eyes: Eyes) -> Path:
    """The path of the file; made once and kept in the cache."""
    key = hashlib.sha256(repr((1, sorted(asdict(eyes).items()))).encode()).hexdigest()[:16]
    return models.cached(f"projector-{key}.gguf", lambda target, _: _write(target, eyes))


def _write(target: Path, e: Eyes) -> None:
    writer = gguf.GGUFWriter(target, "clip")
    writer.add_name("random projector")
    writer.add_bool("clip.has_vision_encoder", bool(e.vision))
    writer.add_bool("clip.has_audio_encoder", bool(e.audio))
    writer.add_bool("clip.use_gelu", True)
    random = np.random.default_rng(e.seed)
    if e.vision:
        _common(writer, e, "vision", e.vision)
        writer.add_uint32("clip.vision.image_size", e.image)
        writer.add_uint32("clip.vision.patch_size", e.patch)
        writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
        writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
        writer.add_uint32("clip.vision.projector.scale_factor", e.merge)
        writer.add_uint32("clip.vision.spatial_merge_size", e.merge)
        _add(writer, random, _seeing(e))
    if e.audio:
        _common(writer, e, "audio", e.audio)
        writer.add_uint32("clip.audio.num_mel_bins", e.mels)
        writer.add_uint32("clip.audio.projector.stack_factor", e.stack)
        _add(writer, random, _hearing(e))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _common(writer: gguf.GGUFWriter, e: Eyes, side: str, kind: str) -> None:
    writer.add_string(f"clip.{side}.projector_type", kind)
    writer.add_uint32(f"clip.{side}.embedding_length", e.inner)
    writer.add_uint32(f"clip.{side}.feed_forward_length", e.feed_forward)
    writer.add_uint32(f"clip.{side}.block_count", e.layers)
    writer.add_uint32(f"clip.{side}.projection_dim", e.width)
    writer.add_uint32(f"clip.{side}.attention.head_count", e.heads)
    writer.add_float32(f"clip.{side}.attention.layer_norm_epsilon", 1e-6)


def _blocks(e: Eyes, prefix: str, *, key_bias: bool) -> Shapes:
    shapes: Shapes = {}
    for layer in range(e.layers):
        at = f"{prefix}.blk.{layer}"
        for norm in ("ln1", "ln2"):
            shapes |= {f"{at}.{norm}.weight": (e.inner,), f"{at}.{norm}.bias": (e.inner,)}
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            shapes[f"{at}.{part}.weight"] = (e.inner, e.inner)
            if part != "attn_k" or key_bias:
                shapes[f"{at}.{part}.bias"] = (e.inner,)
        shapes |= {f"{at}.ffn_up.weight": (e.feed_forward, e.inner), f"{at}.ffn_up.bias": (e.feed_forward,)}
        shapes |= {f"{at}.ffn_down.weight": (e.inner, e.feed_forward), f"{at}.ffn_down.bias": (e.inner,)}
    shapes |= {f"{prefix}.post_ln.weight": (e.inner,), f"{prefix}.post_ln.bias": (e.inner,)}
    return shapes


def _seeing(e: Eyes) -> Shapes:
    patches = (e.image // e.patch) ** 2
    shapes: Shapes = {"v.patch_embd.weight": (e.inner, 3, e.patch, e.patch), **_blocks(e, "v", key_bias=True)}
    if e.vision == "gemma3":
        shapes |= {"v.patch_embd.bias": (e.inner,), "v.position_embd.weight": (patches, e.inner)}
        return shapes | {"mm.input_projection.weight": (e.inner, e.width), "mm.soft_emb_norm.weight": (e.inner,)}
    merged = e.inner * e.merge**2
    shapes |= {"v.patch_embd.weight.1": (e.inner, 3, e.patch, e.patch)}
    return shapes | {"mm.0.weight": (merged, merged), "mm.0.bias": (merged,), "mm.2.weight": (e.width, merged), "mm.2.bias": (e.width,)}


def _hearing(e: Eyes) -> Shapes:
    stacked = e.inner * e.stack
    return {
        "a.conv1d.1.weight": (e.inner, e.mels, 3), "a.conv1d.1.bias": (e.inner, 1),
        "a.conv1d.2.weight": (e.inner, e.inner, 3), "a.conv1d.2.bias": (e.inner, 1),
        "a.position_embd.weight": (1500, e.inner), **_blocks(e, "a", key_bias=False),
        "mm.a.norm_pre.weight": (stacked,), "mm.a.mlp.1.weight": (2 * e.inner, stacked),
        "mm.a.norm_mid.weight": (e.inner,), "mm.a.mlp.2.weight": (e.width, e.inner),
    }  # fmt: skip


def _add(writer: gguf.GGUFWriter, random: np.random.Generator, shapes: Shapes) -> None:
    for name, shape in shapes.items():
        if "norm" in name or (".ln" in name and name.endswith("weight")) or "post_ln.weight" in name:
            writer.add_tensor(name, np.ones(shape, dtype=np.float32))
            continue
        inputs = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
        values = (random.standard_normal(shape, dtype=np.float32) * (1.5 / math.sqrt(inputs))).astype(np.float32)
        half = len(shape) > 1 and "position" not in name and not name.endswith("bias")
        writer.add_tensor(name, values.astype(np.float16) if half else values)


# --- what can be shown


def png(seed: int, width: int = 96, height: int = 64) -> bytes:
    """A picture of coloured blocks."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    rows = (np.arange(height) * 8 // height)[:, None]
    columns = (np.arange(width) * 8 // width)[None, :]
    pixels = blocks[rows, columns]
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def wav(seed: int, seconds: float = 1.0, rate: int = 16_000) -> bytes:
    """A chord, as 16-bit mono."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    sound = sum(np.sin(2 * np.pi * f * time) for f in random.uniform(100, 2000, 3)) * 0.3
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
