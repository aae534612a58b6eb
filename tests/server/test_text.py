"""Text as it grows: whole characters, and no byte of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from corral_server.engine.text import TextStream


def run(pieces: list[bytes], stops: list[str]) -> tuple[str, list[str], str | None]:
    stream = TextStream(stops)
    out = []
    for piece in pieces:
        out.append(stream.feed(piece))
        if stream.stopped_by is not None:
            return "".join(out), out, stream.stopped_by
    out.append(stream.finish())
    return "".join(out), out, stream.stopped_by


def test_a_character_is_sent_when_it_is_whole():
    _, out, _ = run([b"a", b"\xf0\x9f", b"\x98", b"\x80b"], [])
    assert out == ["a", "", "", "😀b", ""]


def test_a_stop_string_over_several_tokens_is_cut_off():
    text, out, stop = run([b"Hello ", b"wor", b"ld, EN", b"D it"], ["END"])
    assert (text, stop) == ("Hello world, ", "END")
    assert out == ["Hello ", "wor", "ld, ", ""]


def test_what_only_looked_like_a_stop_is_sent():
    text, _, stop = run([b"EN", b"CORE"], ["END"])
    assert (text, stop) == ("ENCORE", None)


def test_the_first_of_several_stops_wins():
    text, _, stop = run([b"one two three"], ["three", "two"])
    assert (text, stop) == ("one ", "two")


def test_a_held_beginning_is_sent_at_the_end():
    text, _, stop = run([b"the EN"], ["END"])
    assert (text, stop) == ("the EN", None)


@given(st.text(alphabet="abé😀", max_size=30), st.lists(st.text(alphabet="abé😀", min_size=1, max_size=3), max_size=3), st.data())
def test_any_split_gives_the_text_up_to_the_first_stop(text: str, stops: list[str], data: st.DataObject):
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    got, _, stop = run(pieces, stops)
    assert text.startswith(got)
    if stop is None:
        assert got == text
        assert not any(s in text for s in stops)
    else:
        assert text[len(got) :].startswith(stop)
        assert not any(s in got for s in stops)
