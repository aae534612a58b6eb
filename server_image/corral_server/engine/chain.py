"""llama.cpp's own samplers, in the order that a request wants: what the fast way of choosing does not know.

Dry, mirostat, adaptive-p, dynamic temperatures and orders of one's own go over the whole vocabulary, some milliseconds a token for those who ask.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from corral_server.engine.library import FloatArray, L
from corral_server.engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from corral_server.engine.sampling import SamplingParams

ORDER = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
"""llama.cpp's default order."""
_MIROSTAT_MOST = 100
_RANDOM = 0xFFFFFFFF
_ROW = [("id", np.int32), ("logit", np.float32), ("p", np.float32)]
_REMEMBER = ("penalties", "dry", "adaptive_p")
_INFILL_MOST = 256
"""Tokens that the infill sampler compares with each other."""


class Chain:
    """The samplers of one answer. `close` frees them."""

    def __init__(self, params: "SamplingParams", vocabulary: Vocabulary) -> None:
        self._params = params
        self._vocabulary = vocabulary
        self._samplers: list[Any] = []
        self._learning: list[Any] = []
        self.left: tuple[Any, Any] = (np.empty(0, dtype=np.int64), np.empty(0))
        """The tokens that the filters left, with their probabilities."""
        self._row: Any = None
        for name in self._names():
            if name == "infill":
                # It compares each token with each.
                self._samplers.append(L.llama_sampler_init_top_k(_INFILL_MOST))
            made = self._made(name)
            self._samplers.append(made)
            if name in _REMEMBER:
                self._learning.append(made)

    def choose(self, row: FloatArray) -> int:
        if self._row is None:
            self._row = (L.llama_token_data * self._vocabulary.size)()
        view = np.frombuffer(self._row, dtype=_ROW)
        view["id"] = np.arange(len(row), dtype=np.int32)
        view["logit"] = row
        view["p"] = 0.0
        array = L.llama_token_data_array(self._row, len(row), -1, False)
        for sampler in self._samplers:
            L.llama_sampler_apply(sampler, ctypes.byref(array))
        kept = view[: array.size]
        self.left = kept["id"].astype(np.int64), kept["p"].astype(np.float64)
        return int(kept["id"][array.selected]) if 0 <= array.selected < array.size else int(row.argmax())

    def accept(self, token: int) -> None:
        for sampler in self._learning:
            L.llama_sampler_accept(sampler, token)

    def prime(self, prompt: Sequence[int]) -> None:
        """Penalties look back into the prompt."""
        longest = max(self._back(self._params.repeat_last_n), self._back(self._params.dry_penalty_last_n))
        for token in prompt[-longest:] if longest else ():
            self.accept(token)

    def close(self) -> None:
        samplers, self._samplers, self._learning = self._samplers, [], []
        for sampler in samplers:
            L.llama_sampler_free(sampler)

    def _names(self) -> list[str]:
        p = self._params
        if p.mirostat:
            return ["temp", "mirostat" if p.mirostat == 1 else "mirostat_v2"]
        wanted = list(p.samplers or ORDER)
        return [*(n for n in wanted if n != "adaptive_p"), "adaptive_p" if "adaptive_p" in wanted else "dist"]

    def _back(self, last: int) -> int:
        """How many tokens a penalty looks back; -1 is everything, which for llama.cpp is a number too."""
        return last if last >= 0 else self._params.context

    def _made(self, name: str) -> Any:
        p, vocabulary = self._params, self._vocabulary
        seed = _RANDOM if p.seed is None else p.seed & _RANDOM
        breakers = [b.encode() for b in p.dry_sequence_breakers]
        make: dict[str, Callable[[], Any]] = {
            "penalties": lambda: L.llama_sampler_init_penalties(
                vocabulary.size, self._back(p.repeat_last_n), p.repeat_penalty, p.frequency_penalty, p.presence_penalty
            ),
            "dry": lambda: L.llama_sampler_init_dry(
                vocabulary.handle, p.dry_multiplier, p.dry_base, p.dry_allowed_length, self._back(p.dry_penalty_last_n),
                (ctypes.c_char_p * len(breakers))(*breakers), len(breakers),
            ),
            "top_n_sigma": lambda: L.llama_sampler_init_top_n_sigma(p.top_n_sigma),
            "top_k": lambda: L.llama_sampler_init_top_k(p.top_k),
            "typ_p": lambda: L.llama_sampler_init_typical(p.typical_p, p.min_keep),
            "top_p": lambda: L.llama_sampler_init_top_p(p.top_p, p.min_keep),
            "min_p": lambda: L.llama_sampler_init_min_p(p.min_p, p.min_keep),
            "xtc": lambda: L.llama_sampler_init_xtc(p.xtc_probability, p.xtc_threshold, p.min_keep, seed),
            "temperature": lambda: L.llama_sampler_init_temp_ext(p.temperature, p.dynatemp_range, p.dynatemp_exponent),
            "infill": lambda: L.llama_sampler_init_infill(vocabulary.handle),
            "temp": lambda: L.llama_sampler_init_temp(p.temperature),
            "mirostat": lambda: L.llama_sampler_init_mirostat(vocabulary.size, seed, p.mirostat_tau, p.mirostat_eta, _MIROSTAT_MOST),
            "mirostat_v2": lambda: L.llama_sampler_init_mirostat_v2(seed, p.mirostat_tau, p.mirostat_eta),
            "adaptive_p": lambda: L.llama_sampler_init_adaptive_p(p.adaptive_target, p.adaptive_decay, seed),
            "dist": lambda: L.llama_sampler_init_dist(seed),
        }  # fmt: skip
        return make[name]()
