"""A multimodal projector (llama.cpp's libmtmd): loaded beside the model, it turns pictures and audio into what the model reads in place of tokens.

Takes decoded pixels and samples only: files that strangers made are decoded in another process. `encode` may run beside the inference thread, one
call at a time; everything that touches the context is called on that thread.
"""

import ctypes
import hashlib
import re
import secrets
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from corral_server.engine.jobs import RefusedError
from corral_server.engine.library import LIB, L, Log, multimodal
from corral_server.engine.media_marks import MediaPrompt, Span, make_mark
from corral_server.engine.media_memory import projector_memory
from corral_server.engine.plan import EnginePlan
from corral_server.reasons import OUT_OF_MEMORY, UNSUPPORTED_MODEL, Failure

M: Any = multimodal()
_TEXT = 0
_GPU = 1
_BAD_COUNT = 1


class Projector:
    def __init__(self, path: str, model: Any, plan: EnginePlan, log: Log, *, threads: int, offload: bool) -> None:
        M.mtmd_helper_log_set(log.callback, ctypes.c_void_p(0))
        self.marker = f"<__media_{secrets.token_hex(8)}__>"
        params = M.mtmd_context_params_default()
        params.use_gpu = offload
        if offload:
            # The device of the output layer, as the footprint has it.
            params.device = _last_device()
        params.print_timings = False
        params.n_threads = threads
        # Nobody can guess it, so nobody can write it into a text by chance or on purpose.
        self._marker = self.marker.encode()
        params.media_marker = self._marker
        params.flash_attn_type = plan.flash_attention
        self._plan = plan
        self._log = log
        self._handle = M.mtmd_init_from_file(path.encode(), model, params)
        if not self._handle:
            said = log.tail(3) or "it gave no reason"
            reason = OUT_OF_MEMORY if re.search("alloc|out of memory", said, re.IGNORECASE) else UNSUPPORTED_MODEL
            raise Failure(reason, f"model.projector: llama.cpp could not load {path} for this model: {said}")
        self.vision = bool(M.mtmd_support_vision(self._handle))
        self.audio = bool(M.mtmd_support_audio(self._handle))
        self.sample_rate = max(int(M.mtmd_get_audio_sample_rate(self._handle)), 0) if self.audio else 0
        self._many_positions = bool(M.mtmd_decode_use_mrope(self._handle))
        self.memory = projector_memory(path, offload=offload, flash_attention=plan.flash_attention)
        self._width = int(L.llama_model_n_embd_inp(model))

    def describe(self) -> dict[str, Any]:
        return {"vision": self.vision, "audio": self.audio, "marker": self.marker, "sampleRate": self.sample_rate}

    # --- from a text with marks to a prompt

    def prompt(self, text: str, media: Sequence[Mapping[str, Any]], *, add_special: bool, parse_special: bool, param: str) -> MediaPrompt:
        """The prompt's tokens, with a run of marks for each picture."""
        bitmaps = [_bitmap(item) for item in media]
        try:
            digests = [digest for _, digest in bitmaps]
            chunks = self._tokenize(text, [handle for handle, _ in bitmaps], param, add_special=add_special, parse_special=parse_special)
        finally:
            for handle, _ in bitmaps:
                M.mtmd_bitmap_free(handle)
        return self._spans(chunks, digests, param)

    def _tokenize(self, text: str, handles: list[Any], param: str, *, add_special: bool, parse_special: bool) -> Any:
        raw = text.encode()
        chunks = M.mtmd_input_chunks_init()
        given = M.mtmd_input_text(text=raw, text_len=len(raw), add_special=add_special, parse_special=parse_special)
        array = (ctypes.c_void_p * max(len(handles), 1))(*handles)
        code = M.mtmd_tokenize(self._handle, chunks, ctypes.byref(given), array, len(handles))
        if code == 0:
            return chunks
        M.mtmd_input_chunks_free(chunks)
        if code == _BAD_COUNT:
            found = text.count(self.marker)
            raise RefusedError(400, "invalid_media", f"the prompt has {found} places for {len(handles)} images or pieces of audio", param)
        raise RefusedError(400, "invalid_media", f"the model cannot take this image or audio: {self._log.tail(1)}", param)

    def _spans(self, chunks: Any, digests: list[str], param: str) -> MediaPrompt:
        owner = _Owner(chunks)
        prompt = MediaPrompt([], owner=owner)
        ordinals: dict[str, int] = {}
        for index in range(M.mtmd_input_chunks_size(chunks)):
            chunk = M.mtmd_input_chunks_get(chunks, index)
            count = int(M.mtmd_input_chunk_get_n_tokens(chunk))
            if M.mtmd_input_chunk_get_type(chunk) == _TEXT:
                size = ctypes.c_size_t()
                tokens = M.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(size))
                prompt.tokens += tokens[: size.value]
                if any(t < 0 for t in tokens[: size.value]):
                    raise RefusedError(400, "invalid_media", "the model has no words for what this projector writes around an image", param)
                continue
            if not count:
                continue
            if M.mtmd_decode_use_non_causal(self._handle, chunk) and count > self._plan.micro_batch:
                raise RefusedError(
                    400,
                    "media_too_large",
                    f"one image takes {count} tokens in one piece; engine.microBatch is {self._plan.micro_batch}",
                    param,
                )
            digest = (M.mtmd_input_chunk_get_id(chunk) or b"").decode()
            if digest not in digests:
                # Merged of several: nothing tells it from others like it.
                digest = secrets.token_hex(16)
            ordinals[digest] = ordinal = ordinals.get(digest, -1) + 1
            start, positions = len(prompt.tokens), int(M.mtmd_input_chunk_get_n_pos(chunk))
            mark = make_mark(digest, ordinal, start, count, positions)
            prompt.spans.append(Span(start, count, positions, mark, chunk))
            prompt.tokens += [mark] * count
        return prompt

    # --- from a picture to what the model reads

    def encode(self, span: Span) -> Any:
        """What the model reads in place of the span's tokens; None when it failed."""
        if M.mtmd_encode_chunk(self._handle, span.chunk) != 0:
            return None
        made = M.mtmd_get_output_embd(self._handle)
        embedding = np.ctypeslib.as_array(made, shape=(span.count, self._width)).copy() if made else None
        # One that is no number would make everything after it no number either.
        return embedding if embedding is not None and np.isfinite(embedding).all() else None

    def decode(self, context: Any, span: Span, position: int, sequence: int, *, output: bool) -> tuple[int, int]:
        """Put an encoded span into a sequence; llama.cpp's code, and the index of its last row."""
        positions = self._positions(span, position)
        # What reads itself in all directions has to be in one piece.
        together = bool(M.mtmd_decode_use_non_causal(self._handle, span.chunk))
        step = span.count if together else self._plan.batch
        index = 0
        if together:
            L.llama_set_causal_attn(context, False)
        try:
            for start in range(0, span.count, step):
                end = min(start + step, span.count)
                index = end - start - 1
                wanted = np.zeros(end - start, dtype=np.int8)
                wanted[-1] = output and end == span.count
                code = _decode(context, span.embedding[start:end], np.ascontiguousarray(positions[:, start:end]), sequence, wanted)
                if code != 0:
                    return code, index
        finally:
            if together:
                L.llama_set_causal_attn(context, True)
        return 0, index

    def _positions(self, span: Span, first: int) -> Any:
        """Rows of positions: one, or four where pictures have height and width."""
        if not self._many_positions:
            return first + np.arange(span.count, dtype=np.int32)[None, :]
        image = M.mtmd_input_chunk_get_tokens_image(span.chunk)
        if not image:
            return np.repeat(first + np.arange(span.count, dtype=np.int32)[None, :], 4, axis=0)
        array = (M.mtmd_decoder_pos * span.count)()
        M.mtmd_helper_image_get_decoder_pos(image, first, array)
        fields = np.frombuffer(array, dtype=np.uint32).reshape(span.count, 4).astype(np.int32)
        return np.ascontiguousarray(fields[:, [0, 2, 1, 3]].T)


def _last_device() -> int | None:
    """The last of the accelerators that this process sees."""
    count, get, kind = LIB.ggml_backend_dev_count, LIB.ggml_backend_dev_get, LIB.ggml_backend_dev_type
    count.restype, get.restype, kind.restype = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    get.argtypes, kind.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    devices = [get(index) for index in range(count())]
    return next((device for device in reversed(devices) if kind(device) == _GPU), None)


class _Owner:
    """Holds the library's chunks for as long as a prompt points to them."""

    def __init__(self, chunks: Any) -> None:
        weakref.finalize(self, M.mtmd_input_chunks_free, chunks)


def _decode(context: Any, embedding: Any, positions: Any, sequence: int, wanted: Any) -> int:
    count = len(embedding)
    counts = np.ones(count, dtype=np.int32)
    number = np.asarray([sequence], dtype=np.int32)
    pointers = np.full(count, number.ctypes.data, dtype=np.uint64)
    batch = L.llama_batch()
    kinds = dict(L.llama_batch._fields_)
    arrays = {"embd": embedding, "pos": positions, "n_seq_id": counts, "seq_id": pointers, "logits": wanted}
    for name, array in arrays.items():
        setattr(batch, name, ctypes.cast(array.ctypes.data, kinds[name]))
    batch.token = None
    batch.n_tokens = count
    return int(L.llama_decode(context, batch))


def _bitmap(item: Mapping[str, Any]) -> tuple[Any, str]:
    """The library's own copy of decoded pixels or samples, named by their digest."""
    try:
        # Mapped: what another process decoded is copied once, by the library.
        data = np.memmap(item["path"], dtype=np.uint8, mode="r")
    except (OSError, ValueError):
        raise RefusedError(400, "invalid_media", "the image or audio is gone: its request has ended") from None
    handle, digest = _copied(item, data[item["at"] : item["at"] + item["bytes"]])
    M.mtmd_bitmap_set_id(handle, digest.encode())
    return handle, digest


def _copied(item: Mapping[str, Any], view: Any) -> tuple[Any, str]:
    name = f"{item['kind']} {item.get('width')} {item.get('height')} {item['bytes']} "
    digest = hashlib.sha256(name.encode() + hashlib.sha256(view).digest()).hexdigest()
    if item["kind"] == "image":
        if len(view) != item["width"] * item["height"] * 3:
            raise RefusedError(400, "invalid_media", "the image was not decoded whole")
        pixels = ctypes.cast(view.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
        return M.mtmd_bitmap_init(item["width"], item["height"], pixels), digest
    if len(view) != item["bytes"] or len(view) % 4 or len(view) < 8:
        raise RefusedError(400, "invalid_media", "the audio was not decoded whole")
    samples = ctypes.cast(view.ctypes.data, ctypes.POINTER(ctypes.c_float))
    return M.mtmd_bitmap_init_from_audio(len(view) // 4, samples), digest
