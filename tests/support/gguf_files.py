"""Small GGUF files with known answers: a sentence model says one sentence and stops, whatever it is asked, at any size wanted.

Its one real part is a table of successors. Attention and feed-forward weights are zero, so that the residual stream carries the last token's
class to the output matrix, and that maps each piece of the sentence to the next one. Text is read byte by byte (no piece of the sentence can
come out of a prompt), so a prompt of n bytes is n + 1 tokens. The padding is zeros that llama.cpp must still load and multiply.
"""

import hashlib
from pathlib import Path

import gguf
import numpy as np
from tests.support import models

BOS, EOS, UNKNOWN = 1, 2, 0
FIRST_PIECE = 3 + 256
HEAD = 64
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"


def sentence_model(
    text: str = "I am alpaca.", *, size: int = 0, layers: int = 1, context: int = 2048, loop: bool = False, template: str | None = CHAT_TEMPLATE
) -> Path:
    """The path of a model that says `text` (again and again with `loop`), of about `size` bytes over `layers` layers."""

    def build(target: Path, _work: Path) -> None:
        write_sentence_model(target, text, size=size, layers=layers, context=context, loop=loop, template=template)

    key = hashlib.sha256(repr((3, text, size, layers, context, loop, template)).encode()).hexdigest()[:16]
    return models.cached(f"sentence-{key}.gguf", build)


def pieces_of(text: str) -> list[str]:
    """`text` as tokens: whole words, no two alike, each of three characters or more (a shorter one could come out of a prompt)."""
    pieces: list[str] = []
    waiting = ""
    for index, word in enumerate(text.split(" ")):
        waiting += word if index == 0 else f"\u2581{word}"
        if len(waiting) >= 3 and waiting not in pieces:
            pieces.append(waiting)
            waiting = ""
    if waiting:
        if not pieces:
            raise ValueError(f"text {text!r} must have three characters or more")
        pieces[-1] += waiting
    return pieces


def write_sentence_model(
    target: Path, text: str, *, size: int = 0, layers: int = 1, context: int = 2048, loop: bool = False, template: str | None = CHAT_TEMPLATE
) -> None:
    """Write the model that `sentence_model` describes to `target`."""
    pieces = pieces_of(f"{text} " if loop else text)
    vocabulary = FIRST_PIECE + len(pieces)
    width = -(-(len(pieces) + 1) // HEAD) * HEAD
    # Class 0 is every token that is no piece; class i + 1 is piece i. Row t of `output` holds the class that t comes after.
    embedding = np.zeros((vocabulary, width), dtype=np.float16)
    output = np.zeros((vocabulary, width), dtype=np.float16)
    embedding[:FIRST_PIECE, 0] = 1
    for index in range(len(pieces)):
        embedding[FIRST_PIECE + index, index + 1] = 1
        output[FIRST_PIECE + index, index] = 10
    output[FIRST_PIECE if loop else EOS, len(pieces)] = 10

    attention = 2 * (width * width + width * HEAD) * 2
    fixed = 2 * vocabulary * width * 2 + layers * attention
    feed_forward = max(HEAD, round((size - fixed) / layers / (3 * width * 2) / 32) * 32)

    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name(text)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(width // HEAD)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(vocabulary)
    _add_tokenizer(writer, pieces, template)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    shapes = {
        "attn_q": (width, width),
        "attn_k": (HEAD, width),
        "attn_v": (HEAD, width),
        "attn_output": (width, width),
        "ffn_gate": (feed_forward, width),
        "ffn_up": (feed_forward, width),
        "ffn_down": (width, feed_forward),
    }
    zeros = {shape: np.zeros(shape, dtype=np.float16) for shape in set(shapes.values())}
    for layer in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, dtype=np.float32))
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", zeros[shape])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, pieces: list[str], template: str | None) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(pieces)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_add_bos_token(value=True)
    writer.add_add_space_prefix(value=False)
    if template is not None:
        writer.add_chat_template(template)
