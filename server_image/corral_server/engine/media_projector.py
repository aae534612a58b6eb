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
_TEXT, _IMAGE = 0, 1
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
        """The prompt's tokens, with a run of marks for each picture. Images are only measured here: what is made of one before it is encoded is many
        times its size.
        """
        prompt = MediaPrompt([], text, add_special, parse_special)
        shapes: list[Any] = []
        for number, item in enumerate(media):
            bitmap, digest = _bitmap(item)
            prompt.owners.append(_Owner(M.mtmd_bitmap_free, bitmap))
            prompt.images.append(bitmap)
            shape = M.mtmd_bitmap_init(item["width"], item["height"], None) if item["kind"] == "image" else bitmap
            if shape is not bitmap:
                prompt.owners.append(_Owner(M.mtmd_bitmap_free, shape))
            for each in (bitmap, shape):
                M.mtmd_bitmap_set_id(each, f"{number} {digest}".encode())
            shapes.append(shape)
        chunks = self._tokenize(text, shapes, param, add_special=add_special, parse_special=parse_special)
        prompt.owners.append(_Owner(M.mtmd_input_chunks_free, chunks))
        self._fill(prompt, chunks, param)
        return prompt

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

    def _fill(self, prompt: MediaPrompt, chunks: Any, param: str) -> None:
        parts: dict[int, int] = {}
        for index in range(M.mtmd_input_chunks_size(chunks)):
            chunk = M.mtmd_input_chunks_get(chunks, index)
            count = int(M.mtmd_input_chunk_get_n_tokens(chunk))
            kind = M.mtmd_input_chunk_get_type(chunk)
            if kind == _TEXT:
                size = ctypes.c_size_t()
                tokens = M.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(size))
                prompt.tokens += tokens[: size.value]
                if any(t < 0 for t in tokens[: size.value]):
                    raise RefusedError(400, "invalid_media", "the model has no words for what this projector writes around an image", param)
                continue
            if M.mtmd_decode_use_non_causal(self._handle, chunk) and count > self._plan.micro_batch:
                message = f"one image takes {count} tokens in one piece; engine.microBatch is {self._plan.micro_batch}"
                raise RefusedError(400, "media_too_large", message, param)
            number, digest = _shown(chunk)
            parts[number] = part = parts.get(number, -1) + 1
            if not count:
                continue
            start, positions = len(prompt.tokens), int(M.mtmd_input_chunk_get_n_pos(chunk))
            mark = make_mark(digest, part, start, count, positions)
            prompt.spans.append(Span(start, count, positions, mark, chunk, number if kind == _IMAGE else -1, part))
            prompt.tokens += [mark] * count

    # --- from a picture to what the model reads

    def encode(self, prompt: MediaPrompt, span: Span) -> Any:
        """What the model reads in place of the span's tokens; None when it failed."""
        try:
            chunk = span.chunk if span.image < 0 else self._ready(prompt, span)
        except RefusedError:
            return None
        if chunk is None or M.mtmd_encode_chunk(self._handle, chunk) != 0:
            return None
        if not any(s.image == span.image and s.start > span.start for s in prompt.spans):
            prompt.ready = None
        made = M.mtmd_get_output_embd(self._handle)
        embedding = np.ctypeslib.as_array(made, shape=(span.count, self._width)).copy() if made else None
        # One that is no number would make everything after it no number either.
        return embedding if embedding is not None and np.isfinite(embedding).all() else None

    def _ready(self, prompt: MediaPrompt, span: Span) -> Any:
        """The span's chunk with the pixels in it as the projector wants them; kept as long as parts of the same image follow."""
        if prompt.ready is None or prompt.ready[0] != span.image:
            prompt.ready = None
            prompt.ready = self._parts(prompt, span.image, self.marker, [prompt.images[span.image]])
        found = _part(prompt.ready[2], span)
        if found is None:
            # Some projectors make something else of an image in another place: then the whole prompt has to be there.
            prompt.ready = self._parts(prompt, span.image, prompt.text, prompt.images)
            found = _part(prompt.ready[2], span)
        return found

    def _parts(self, prompt: MediaPrompt, image: int, text: str, bitmaps: list[Any]) -> tuple[int, "_Owner", list[Any]]:
        """The chunks of one image in a text."""
        chunks = self._tokenize(text, bitmaps, "messages", add_special=prompt.add_special, parse_special=prompt.parse_special)
        found = [M.mtmd_input_chunks_get(chunks, index) for index in range(M.mtmd_input_chunks_size(chunks))]
        return (
            image,
            _Owner(M.mtmd_input_chunks_free, chunks),
            [c for c in found if M.mtmd_input_chunk_get_type(c) != _TEXT and _shown(c)[0] == image],
        )

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


def _shown(chunk: Any) -> tuple[int, str]:
    """Which of a prompt's images or recordings a chunk is of, and its digest."""
    number, _, digest = M.mtmd_input_chunk_get_id(chunk).decode().partition(" ")
    return int(number), digest


def _part(chunks: list[Any], span: Span) -> Any:
    found = chunks[span.part] if span.part < len(chunks) else None
    return found if found is not None and int(M.mtmd_input_chunk_get_n_tokens(found)) == span.count else None


class _Owner:
    """Frees something of the library's when nobody holds this any more."""

    def __init__(self, free: Any, held: Any) -> None:
        weakref.finalize(self, free, held)


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
    return _copied(item, data[item["at"] : item["at"] + item["bytes"]])


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
