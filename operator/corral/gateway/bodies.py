# ruff: noqa: TRY301 - a refusal is raised where its cause is seen
"""Request bodies: read within bounds, looked into for `model`, kept unchanged, and moved to disk when many wait.

A body is sent exactly as it came. What the gateway needs of it is decoded with a type that names those fields only.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl

import msgspec
from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header

from corral.gateway.errors import refuse
from corral.gateway.settings import MIB, GatewaySettings

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every malformed body, which is the client's affair
Read = Callable[[], Awaitable[tuple[bytes, bool]]]
"""The next bytes of a body, and whether more come; `Request.read`."""
Known = Mapping[bytes, bytes]
"""Headers by their names in lower case."""
FIELD_MAX = 4096
PART_HEADER_MAX = 16_384


class ClientGone(Exception):  # noqa: N818 - an event of the world, not a fault
    """The client closed its connection."""


class KeptBody:
    """Implements `upstream.Body`."""

    __slots__ = ("_budget", "_data", "_file", "size")

    def __init__(self, data: bytes | None, file: IO[bytes] | None, size: int, budget: BodyBudget) -> None:
        self._data = data
        self._file = file
        self.size = size
        self._budget = budget

    @property
    def in_memory(self) -> bytes | None:
        return self._data

    async def piece(self, offset: int, length: int) -> bytes:
        if self._data is not None:
            return self._data[offset : offset + length]
        file = self._file
        if file is None:
            raise ValueError("the body is closed")

        def read() -> bytes:
            file.seek(offset)
            return file.read(length)

        return await asyncio.get_running_loop().run_in_executor(None, read)

    def spill(self) -> None:
        """Move it to disk: it waits, and others wait as well."""
        if self._data is None:
            return
        file = self._budget.temporary()
        file.write(self._data)
        file.flush()
        self._file = file
        self._data = None
        self._budget.in_memory -= self.size

    def close(self) -> None:
        if self._data is not None:
            self._budget.in_memory -= self.size
            self._data = None
        if self._file is not None:
            self._file.close()
            self._file = None


class BodyBudget:
    """Bytes of bodies in memory, of all requests together."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.in_memory = 0

    def temporary(self) -> IO[bytes]:
        folder: Path | None = self.settings.spool_dir
        return tempfile.TemporaryFile(dir=folder)


class _Peek(msgspec.Struct):
    model: str | msgspec.UnsetType = msgspec.UNSET
    stream: Any = None


class _Conversation(msgspec.Struct):
    prompt_cache_key: Any = None
    system: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    instructions: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    prompt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Turn(msgspec.Struct):
    role: Any = None


_BEGINNING = 8
"""Turns that are looked at for the first of a user."""
_peek = msgspec.json.Decoder(_Peek)
_conversation = msgspec.json.Decoder(_Conversation)
_turns = msgspec.json.Decoder(list[msgspec.Raw])
_turn = msgspec.json.Decoder(_Turn)


class Asked:
    """What the gateway needs to know of a body."""

    __slots__ = ("model", "stream")

    def __init__(self, model: str, stream: bool) -> None:
        self.model = model
        self.stream = stream


def peek(data: bytes) -> Asked:
    """`model` and `stream` of a JSON body. Of a key that is there twice the last one counts, as for every common parser."""
    try:
        asked = _peek.decode(data)
    except msgspec.ValidationError as error:
        raise refuse(400, "invalid_request", f"the body must be a JSON object whose `model` is a string: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refuse(400, "invalid_json", f"the body is not JSON: {error}") from None
    if isinstance(asked.model, msgspec.UnsetType) or not asked.model:
        raise refuse(400, "missing_model", "`model` is missing: it names which model answers; GET /v1/models lists them")
    return Asked(asked.model, asked.stream is True)


def affinity_of(data: bytes) -> int:
    """A hash of how a conversation begins, the same in all its turns: its cache key if it names one, else all up to its user's first message."""
    try:
        talk = _conversation.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(talk.prompt_cache_key, str) and talk.prompt_cache_key:
        digest.update(talk.prompt_cache_key.encode())
    else:
        if not isinstance(talk.system, msgspec.UnsetType):
            digest.update(talk.system)
        for text in (talk.instructions, talk.prompt):
            if not isinstance(text, msgspec.UnsetType):
                digest.update(bytes(text)[:1024])
        for turns in (talk.messages, talk.input):
            if not isinstance(turns, msgspec.UnsetType):
                _add_beginning(digest, turns)
    return int.from_bytes(digest.digest(), "little") or 1


def _add_beginning(digest: hashlib.blake2b, turns: msgspec.Raw) -> None:
    try:
        listed = _turns.decode(turns)
    except msgspec.DecodeError:
        digest.update(bytes(turns)[:1024])
        return
    for turn in listed[:_BEGINNING]:
        digest.update(turn)
        try:
            if _turn.decode(turn).role == "user":
                break
        except msgspec.DecodeError:
            break


def query_model(query: bytes) -> str:
    for name, value in parse_qsl(query.decode("latin-1")):
        if name == "model" and value:
            return value
    raise refuse(400, "missing_model", "`?model=` is missing: it names which model is meant; GET /v1/models lists them")


def _text(folder: Path | None) -> str | None:
    return None if folder is None else str(folder)


def declared_length(known: Known) -> int | None:
    value = known.get(b"content-length", b"")
    return int(value) if value.isdigit() else None


def keep(data: bytes, budget: BodyBudget) -> KeptBody:
    """A body that is all there."""
    if len(data) > budget.settings.max_body:
        raise refuse(413, "body_too_large", f"the body has {len(data)} bytes; at most {budget.settings.max_body // MIB} MiB are taken")
    budget.in_memory += len(data)
    return KeptBody(data, None, len(data), budget)


async def read_whole(read: Read, known: Known, budget: BodyBudget) -> KeptBody:
    """A body for memory."""
    settings = budget.settings
    limit = settings.max_body
    declared = declared_length(known)
    if declared is not None and declared > limit:
        raise refuse(413, "body_too_large", f"the body has {declared} bytes; at most {limit // MIB} MiB are taken")
    if budget.in_memory + (declared or 0) > settings.bodies_max:
        raise refuse(503, "overloaded", "too many bytes of requests are in memory; try again", retry_after=1)
    pieces: list[bytes] = []
    size = 0
    more = True
    try:
        while more:
            data, more = await _timed(read, settings.body_timeout)
            pieces.append(data)
            size += len(data)
            budget.in_memory += len(data)
            if size > limit:
                raise refuse(413, "body_too_large", f"the body has more than {limit // MIB} MiB")
            if budget.in_memory > settings.bodies_max:
                raise refuse(503, "overloaded", "too many bytes of requests are in memory; try again", retry_after=1)
    finally:
        budget.in_memory -= size
    return keep(pieces[0] if len(pieces) == 1 else b"".join(pieces), budget)


async def _timed(read: Read, seconds: float) -> tuple[bytes, bool]:
    try:
        async with asyncio.timeout(seconds):
            return await read()
    except TimeoutError:
        raise refuse(408, "request_timeout", f"nothing of the body came for {seconds:g}s") from None


async def read_multipart(read: Read, known: Known, budget: BodyBudget) -> tuple[KeptBody, Asked]:
    """A multipart body: to disk as it comes, with its `model` and `stream` fields read on the way."""
    settings = budget.settings
    declared = declared_length(known)
    if declared is not None and declared > settings.max_upload:
        raise refuse(413, "body_too_large", f"the body has {declared} bytes; at most {settings.max_upload // MIB} MiB are taken")
    kind, options = parse_options_header(known.get(b"content-type", b""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise refuse(400, "invalid_request", "the body must be multipart/form-data with a boundary")
    fields = _Fields()
    parser = MultipartParser(boundary, fields.callbacks())
    file = tempfile.SpooledTemporaryFile(max_size=settings.held_in_memory, dir=_text(settings.spool_dir))  # noqa: SIM115 - KeptBody closes it
    size = 0
    try:
        more = True
        while more:
            data, more = await _timed(read, settings.body_timeout)
            size += len(data)
            if size > settings.max_upload:
                raise refuse(413, "body_too_large", f"the body has more than {settings.max_upload // MIB} MiB")
            try:
                parser.write(data)
            except MultipartParseError as error:
                raise refuse(400, "invalid_request", f"the multipart body is malformed: {error}") from None
            file.write(data)
        if not fields.finished:
            raise refuse(400, "invalid_request", "the multipart body ends before its last boundary")
        model = fields.values.get("model", "")
        if not model:
            raise refuse(400, "missing_model", "the form field `model` is missing: it names which model answers")
    except BaseException:
        file.close()
        raise
    return KeptBody(None, file, size, budget), Asked(model, fields.values.get("stream", "").lower() in ("true", "1"))


class _Fields:
    """The small text fields of a form; files pass by."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.finished = False
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._name = ""
        self._value: bytearray | None = None

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._part_begin,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._name, self._value = "", None

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._extend(self._header[0], data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._extend(self._header[1], data[start:end])

    @staticmethod
    def _extend(header: bytearray, data: bytes) -> None:
        header.extend(data)
        if len(header) > PART_HEADER_MAX:
            raise MultipartParseError(f"a part's header has more than {PART_HEADER_MAX} bytes")

    def _header_end(self) -> None:
        name, value = bytes(self._header[0]).lower(), bytes(self._header[1])
        self._header[0].clear()
        self._header[1].clear()
        if name == b"content-disposition":
            _, options = parse_options_header(value)
            if b"filename" not in options:
                self._name = options.get(b"name", b"").decode("utf-8", "replace")
                self._value = bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._value is not None and len(self._value) <= FIELD_MAX:
            self._value.extend(data[start:end])

    def _part_end(self) -> None:
        if self._value is not None and self._name in ("model", "stream") and len(self._value) <= FIELD_MAX:
            self.values[self._name] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self.finished = True


def wants_autoload(query: bytes) -> bool:
    """llama.cpp's `?autoload=`: nothing, `true` and `1` mean yes, anything else no."""
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name == "autoload":
            return value in ("", "true", "1")
    return True
