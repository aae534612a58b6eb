"""GGUF headers: read in full or refused, whatever the bytes are."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.gguf_files import sentence_model

from corral_server.gguf_header import NeedMoreError, parse_header
from corral_server.reasons import Failure

DATA = sentence_model().read_bytes()


def test_a_header_is_read():
    header = parse_header(DATA, "m")
    assert header.architecture == "llama"
    assert header.keys["llama.block_count"] == 1
    assert {t.name for t in header.tensors} >= {"token_embd.weight", "output.weight", "blk.0.attn_q.weight"}
    assert header.length <= header.data_start < len(DATA)


def test_a_header_that_goes_on_asks_for_more():
    length = parse_header(DATA, "m").length
    for cut in range(4, length, 997):
        with pytest.raises(NeedMoreError):
            parse_header(DATA[:cut], "m")
    parse_header(DATA[:length], "m")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(4, parse_header(DATA, "m").length - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_header_is_read_or_refused(changes: list[tuple[int, int]]):
    data = bytearray(DATA)
    for at, value in changes:
        data[at] = value
    with contextlib.suppress(Failure, NeedMoreError):
        parse_header(bytes(data), "m")
