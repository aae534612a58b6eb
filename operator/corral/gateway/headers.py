"""The heads of what goes to a pod and of what comes back, from the headers that may pass. Pure."""

from __future__ import annotations

from collections.abc import Mapping

_PLAIN = frozenset({b"", b"keep-alive", b"close", b"Keep-Alive", b"Close", b"close,keep-alive"})
_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
STREAM_LINES = b"".join(b"%b: %b\r\n" % entry for entry in _STREAM_HEADERS)
EVENT_STREAM = b"text/event-stream"


def passing(lines: list[bytes], known: Mapping[bytes, bytes]) -> list[bytes]:
    """`lines` (name, colon, value, end of line, and so forth) without those that `Connection` calls hop by hop."""
    named = known.get(b"connection")
    if named is None or named in _PLAIN:
        return lines
    dropped = {token.strip().lower() for token in named.split(b",")}
    kept: list[bytes] = []
    for at in range(0, len(lines), 4):
        if lines[at] not in dropped:
            kept += lines[at : at + 4]
    return kept


def without(lines: list[bytes], *names: bytes) -> list[bytes]:
    kept: list[bytes] = []
    for at in range(0, len(lines), 4):
        if lines[at] not in names:
            kept += lines[at : at + 4]
    return kept


def stream_lines(known: Mapping[bytes, bytes]) -> bytes:
    """What an event stream says to proxies in front, as far as the pod did not."""
    if b"cache-control" not in known and b"x-accel-buffering" not in known:
        return STREAM_LINES
    return b"".join(b"%b: %b\r\n" % entry for entry in _STREAM_HEADERS if entry[0] not in known)


def header_text(text: str) -> bytes:
    """A name as a header value; what a header cannot carry is percent-encoded."""
    raw = text.encode()
    if raw.isascii() and raw.isalnum():
        return raw
    return b"".join(bytes((byte,)) if 0x20 < byte < 0x7F and byte != 0x25 else b"%%%02X" % byte for byte in raw)
