"""The header of a GGUF file from its first bytes: keys, tensors, and where the header ends. Pure.

Reads what strangers made: every length is checked against what is there before it is used, arrays of the vocabulary are stepped over.
"""

import struct
from dataclasses import dataclass, field
from typing import Any

from corral_server.reasons import NOT_A_GGUF, Failure

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_KEPT_ARRAY = 1024
_MAX_COUNT = 1 << 20


class NeedMoreError(Exception):
    """The header goes on after the bytes that were given."""


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass
class Header:
    version: int
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    length: int = 0
    data_start: int = 0

    @property
    def architecture(self) -> str:
        return str(self.keys.get("general.architecture", ""))


class _Cursor:
    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self.at = 0
        self.what = what

    def take(self, count: int) -> bytes:
        if count > 1 << 32:
            raise Failure(NOT_A_GGUF, f"{self.what} is damaged: at byte {self.at} it claims a length of {count}")
        end = self.at + count
        if end > len(self.data):
            raise NeedMoreError
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def skip(self, count: int) -> None:
        if count > 1 << 34:
            raise Failure(NOT_A_GGUF, f"{self.what} is damaged: at byte {self.at} it claims a length of {count}")
        self.at += count
        if self.at > len(self.data):
            raise NeedMoreError

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "replace")


def parse_header(data: bytes, what: str) -> Header:
    """The header; NeedMoreError when `data` ends before it does, Failure when it is not one."""
    cursor = _Cursor(data, what)
    if cursor.take(4) != b"GGUF":
        raise Failure(NOT_A_GGUF, f"{what} is not a GGUF file: it begins with {data[:4]!r}")
    version = cursor.number("<I")
    if version not in (2, 3):
        raise Failure(NOT_A_GGUF, f"{what} is a GGUF file of version {version}; versions 2 and 3 can be read")
    tensor_count, key_count = cursor.number("<Q"), cursor.number("<Q")
    if tensor_count > _MAX_COUNT or key_count > _MAX_COUNT:
        raise Failure(NOT_A_GGUF, f"{what} is damaged: it claims {tensor_count} tensors and {key_count} keys")
    header = Header(version)
    for _ in range(key_count):
        key = cursor.string()
        header.keys[key] = _value(cursor, cursor.number("<I"))
    for _ in range(tensor_count):
        name = cursor.string()
        dimensions = cursor.number("<I")
        if dimensions > 8:
            raise Failure(NOT_A_GGUF, f"{what} is damaged: tensor {name[:80]!r} claims {dimensions} dimensions")
        shape = tuple(cursor.number("<Q") for _ in range(dimensions))
        header.tensors.append(Tensor(name, shape, cursor.number("<I"), cursor.number("<Q")))
    header.length = cursor.at
    alignment = header.keys.get("general.alignment", 32)
    alignment = alignment if isinstance(alignment, int) and 0 < alignment <= 1 << 20 else 32
    header.data_start = -(-cursor.at // alignment) * alignment
    return header


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.string()
    if kind != _ARRAY:
        raise Failure(NOT_A_GGUF, f"{cursor.what} is damaged: at byte {cursor.at} it has a value of the unknown type {kind}")
    inner, count = cursor.number("<I"), cursor.number("<Q")
    if inner in _SCALARS:
        form = _SCALARS[inner]
        if count > _KEPT_ARRAY:
            cursor.skip(struct.calcsize(form) * count)
            return None
        return [cursor.number(form) for _ in range(count)]
    if inner != _STRING:
        raise Failure(NOT_A_GGUF, f"{cursor.what} is damaged: at byte {cursor.at} it has an array of the type {inner}")
    if count > 1 << 28:
        raise Failure(NOT_A_GGUF, f"{cursor.what} is damaged: it claims an array of {count} strings")
    kept: list[str] | None = [] if count <= _KEPT_ARRAY else None
    for _ in range(count):
        if kept is not None:
            kept.append(cursor.string())
        else:
            cursor.skip(cursor.number("<Q"))
    return kept if kept is not None else count
