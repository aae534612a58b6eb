"""Text to tokens and back, over llama.cpp's vocabulary of one model."""

import ctypes
import functools
from typing import Any

from corral_server.engine.first_bytes import FirstBytes
from corral_server.engine.library import L


class Vocabulary:
    def __init__(self, model: Any) -> None:
        self._vocab = L.llama_model_get_vocab(model)
        self.size: int = L.llama_vocab_n_tokens(self._vocab)
        self.kind: int = L.llama_vocab_type(self._vocab)
        self.add_bos: bool = bool(L.llama_vocab_get_add_bos(self._vocab))
        self.add_eos: bool = bool(L.llama_vocab_get_add_eos(self._vocab))
        self.bos: int = L.llama_vocab_bos(self._vocab)
        self.add_sep: bool = bool(L.llama_vocab_get_add_sep(self._vocab))
        self.eos: int = L.llama_vocab_eos(self._vocab)
        self.sep: int = L.llama_vocab_sep(self._vocab)
        self.fim = {name: getattr(L, f"llama_vocab_fim_{name}")(self._vocab) for name in ("pre", "suf", "mid", "pad", "rep", "sep")}
        self._buffer = ctypes.create_string_buffer(256)
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._end_tokens: list[int] | None = None

    @property
    def handle(self) -> Any:
        return self._vocab

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode("utf-8", "replace")
        room = len(raw) + 8
        buffer = (ctypes.c_int32 * room)()
        count = L.llama_tokenize(self._vocab, raw, len(raw), buffer, room, add_special, parse_special)
        if count < 0:
            buffer = (ctypes.c_int32 * -count)()
            count = L.llama_tokenize(self._vocab, raw, len(raw), buffer, -count, add_special, parse_special)
        return list(buffer[: max(count, 0)])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of a token; control tokens are empty unless `special`."""
        key = -token - 1 if special else token
        known = self._pieces.get(key)
        if known is not None:
            return known
        if not 0 <= token < self.size:
            return b""
        length = L.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, special)
        if length < 0:
            self._buffer = ctypes.create_string_buffer(-length)
            length = L.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, special)
        piece = self._buffer.raw[: max(length, 0)]
        self._pieces[key] = piece
        return piece

    def text(self, token: int) -> str:
        """A token as templates name it, control tokens included; empty for none."""
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    @functools.cached_property
    def suppressed(self) -> list[int]:
        """Tokens that the model's file says must never come."""
        count = ctypes.c_int32()
        found = L.llama_vocab_get_suppress_tokens(self._vocab, ctypes.byref(count))
        return list(found[: count.value]) if count.value > 0 else []

    @functools.cached_property
    def first_bytes(self) -> FirstBytes:
        """Looked for once, when a grammar first has to search: reading a big vocabulary takes a tenth of a second."""
        return FirstBytes(self._vocab, self.size)

    def end_tokens(self) -> list[int]:
        """All tokens that end an answer; looked for once, because a vocabulary is long."""
        if self._end_tokens is None:
            self._end_tokens = [t for t in range(self.size) if L.llama_vocab_is_eog(self._vocab, t)]
        return self._end_tokens

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""
        known = self._ends.get(token)
        if known is None:
            known = self._ends[token] = bool(L.llama_vocab_is_eog(self._vocab, token))
        return known
