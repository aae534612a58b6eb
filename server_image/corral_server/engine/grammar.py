"""A grammar that constrains one answer, over llama.cpp's grammar sampler.

Bounds what reaches the parser: deep nesting overflows its stack and ends the process. A token is accepted only after the grammar was asked about it:
accepting a forbidden one aborts the process.
"""

import ctypes
from typing import Any

import numpy as np

from corral_server.engine.library import FloatArray, L
from corral_server.engine.vocabulary import Vocabulary

MAX_BYTES = 64 << 10
MAX_NESTING = 200
_NEGATIVE = float("-inf")
_OPENING = {'"': '"', "[": "]", "#": "\n"}


class GrammarError(ValueError):
    """The grammar is not one that llama.cpp can use."""


def check_grammar(text: str) -> None:
    if len(text.encode()) > MAX_BYTES:
        raise GrammarError(f"the grammar is longer than {MAX_BYTES} bytes")
    if _nesting(text) > MAX_NESTING:
        raise GrammarError(f"the grammar nests deeper than {MAX_NESTING}")


def _nesting(text: str) -> int:
    """The deepest group, outside of literals, character classes and comments."""
    depth = deepest = 0
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
        elif character == "(":
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
        self._all: Any = None

    def allows(self, token: int) -> bool:
        self._one[0] = L.llama_token_data(token, 1.0, 0.0)
        self._one_array.size = 1
        L.llama_sampler_apply(self._sampler, ctypes.byref(self._one_array))
        return bool(self._one[0].logit != _NEGATIVE)

    def masked(self, row: FloatArray) -> FloatArray:
        """The row with every forbidden token at minus infinity: the expensive way, asked only after a refusal."""
        size = len(row)
        if self._all is None:
            self._all = (L.llama_token_data * size)()
        view = np.frombuffer(self._all, dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        view["id"] = np.arange(size, dtype=np.int32)
        view["logit"] = row
        array = L.llama_token_data_array(self._all, size, -1, False)
        L.llama_sampler_apply(self._sampler, ctypes.byref(array))
        return view["logit"].copy()

    def accept(self, token: int) -> None:
        if self._sampler and self.allows(token):
            L.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        if self._sampler:
            L.llama_sampler_free(self._sampler)
            self._sampler = None
