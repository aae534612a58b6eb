"""By which byte each token of a vocabulary begins: what a grammar refuses after one byte it refuses with all tokens that begin so.

Made once for a vocabulary, by reading every token of it; pure from then on.
"""

import ctypes
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from corral_server.engine.library import LIB

_ROOM = 512
_TURN = 256


class FirstBytes:
    def __init__(self, vocabulary: Any, size: int) -> None:
        # Called with the interpreter's lock kept, and given away now and then: a hand-over for each of half a million calls would hold up whoever
        # generates meanwhile, and so would none.
        library = ctypes.PyDLL(LIB._name)  # noqa: SLF001  the library's path
        library.llama_token_to_piece.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_bool]
        library.llama_vocab_is_eog.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        library.llama_vocab_is_eog.restype = ctypes.c_bool
        handle = ctypes.cast(vocabulary, ctypes.c_void_p)
        buffer = ctypes.create_string_buffer(_ROOM)
        singles: dict[int, int] = {}
        self._first = np.zeros(size, dtype=np.uint8)
        # Those without text, ends of an answer, and the few that are longer than any word: their first byte says nothing.
        self._always = np.zeros(size, dtype=bool)
        for token in range(size):
            if token % _TURN == 0:
                time.sleep(0)
            length = library.llama_token_to_piece(handle, token, buffer, _ROOM, 0, True)
            if length <= 0 or library.llama_vocab_is_eog(handle, token):
                self._always[token] = True
                continue
            first = self._first[token] = buffer[0][0]
            if length == 1:
                singles.setdefault(first, token)
        self.singles: npt.NDArray[np.int64] = np.fromiter(singles.values(), dtype=np.int64, count=len(singles))
        """Tokens that are one byte, a token for each such byte."""

    def beginning_with(self, allowed: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The tokens that can be allowed when of `singles` only these are."""
        possible = np.ones(256, dtype=bool)
        possible[self._first[self.singles]] = False
        possible[self._first[allowed]] = True
        return np.flatnonzero(possible[self._first] | self._always)
