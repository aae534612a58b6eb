"""A grammar that constrains one answer, over llama.cpp's grammar sampler.

Bounds what reaches the parser: deep nesting overflows its stack and ends the process. A token is accepted only after the grammar was asked about it:
accepting a forbidden one aborts the process.
"""

import ctypes
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from corral_server.engine.library import FloatArray, L
from corral_server.engine.vocabulary import Vocabulary

MAX_BYTES = 64 << 10
MAX_NESTING = 200
_NEGATIVE = float("-inf")
_LIKELIEST = 512
_ROW = [("id", np.int32), ("logit", np.float32), ("p", np.float32)]
_OPENING = {'"': '"', "[": "]", "#": "\n"}


class GrammarError(ValueError):
    """The grammar is not one that llama.cpp can use."""


def check_grammar(text: str) -> None:
    if len(text.encode()) > MAX_BYTES:
        raise GrammarError(f"the grammar is longer than {MAX_BYTES} bytes")
    if _nesting(text) > MAX_NESTING:
        raise GrammarError(f"the grammar nests deeper than {MAX_NESTING}")


def _outside(text: str) -> Iterator[str]:
    """The characters that are not in literals, character classes or comments."""
    closing = ""
    skip = False
    for character in text:
        if skip:
            skip = False
        elif closing:
            skip = character == "\\" and closing != "\n"
            if character == closing:
                closing = ""
        elif character in _OPENING:
            closing = _OPENING[character]
        else:
            yield character


def _nesting(text: str) -> int:
    """The deepest group."""
    depth = deepest = 0
    for character in _outside(text):
        if character == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif character == ")":
            depth -= 1
    return deepest


def _check_triggers(vocabulary: Vocabulary, text: str, triggers: list[int]) -> None:
    """The token that starts a grammar is the first that it reads: one that it forbids would end the process."""
    probe = Grammar(vocabulary, text)
    try:
        # The end of an answer is allowed where a grammar is complete, but it is no word that one could read.
        wrong = next((t for t in triggers if vocabulary.ends(t) or not probe.allows(t)), None)
    finally:
        probe.close()
    if wrong is not None:
        raise GrammarError(f"the grammar does not begin with {vocabulary.text(wrong)!r}, the word that is to start it")


class Grammar:
    def __init__(self, vocabulary: Vocabulary, text: str, *, triggers: list[int] | None = None, root: str = "root") -> None:
        check_grammar(text)
        if triggers:
            _check_triggers(vocabulary, text, triggers)
            tokens = (L.llama_token * len(triggers))(*triggers)
            self._sampler = L.llama_sampler_init_grammar_lazy_patterns(
                vocabulary.handle, text.encode(), root.encode(), None, 0, tokens, len(triggers)
            )
        else:
            self._sampler = L.llama_sampler_init_grammar(vocabulary.handle, text.encode(), root.encode())
        if not self._sampler:
            raise GrammarError("the grammar could not be parsed")
        self._one = (L.llama_token_data * 1)()
        self._one_array = L.llama_token_data_array(self._one, 1, -1, False)
        self._vocabulary = vocabulary
        # A rule may name tokens themselves (`<|think|>`, `<[42]>`): then their text says nothing.
        self._by_text = "<" not in _outside(text)

    def allows(self, token: int) -> bool:
        self._one[0] = L.llama_token_data(token, 1.0, 0.0)
        self._one_array.size = 1
        L.llama_sampler_apply(self._sampler, ctypes.byref(self._one_array))
        return bool(self._one[0].logit != _NEGATIVE)

    def masked(self, row: FloatArray, enough: int = 0) -> FloatArray:
        """The row with every forbidden token at minus infinity. `enough`: so many of the best are all that matters; 0: all of them.

        To ask about a whole vocabulary takes tens of milliseconds. So the likeliest are asked about first; when too few of them are allowed, each
        byte that a token can begin with, and then only the tokens that begin with an allowed one.
        """
        found = np.full_like(row, _NEGATIVE)
        if 0 < enough <= _LIKELIEST < len(row):
            best = np.argpartition(row, -_LIKELIEST)[-_LIKELIEST:]
            kept = self._allowed(best)
            if len(kept) >= enough:
                found[kept] = row[kept]
                return found
        if self._by_text:
            first = self._vocabulary.first_bytes
            kept = self._allowed(first.beginning_with(self._allowed(first.singles)))
        else:
            kept = self._allowed(np.arange(len(row)))
        found[kept] = row[kept]
        return found

    def _allowed(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those of the tokens that may come next."""
        asked = np.zeros(len(tokens), dtype=_ROW)
        asked["id"] = tokens
        array = L.llama_token_data_array(asked.ctypes.data_as(ctypes.POINTER(L.llama_token_data)), len(tokens), -1, False)
        L.llama_sampler_apply(self._sampler, ctypes.byref(array))
        kept: npt.NDArray[np.int64] = tokens[asked["logit"] != _NEGATIVE]
        return kept

    def accept(self, token: int) -> None:
        if self._sampler and self.allows(token):
            L.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        if self._sampler:
            L.llama_sampler_free(self._sampler)
            self._sampler = None
