"""What is kept of thousands of objects and seldom read: as JSON text, a fifth of the memory that dicts take; and equal parts once.

It owns the packed form only, and must never say what an object means.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import orjson

from corral.api.base import Part

P = TypeVar("P", bound=Part)

ESSENTIAL = ("uid", "generation", "deletionTimestamp", "creationTimestamp")


def pack(value: Any) -> bytes:
    """JSON. What JSON does not have (a date in a local manifest) becomes its text."""
    try:
        # Copied: what orjson returns keeps the four times larger buffer that it was written into.
        return bytes(memoryview(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)))
    except TypeError:  # an integer of more than 64 bits
        return json.dumps(value, default=str).encode()


def unpack(packed: bytes) -> Any:
    return orjson.loads(packed)


@dataclass(frozen=True, slots=True)
class Packed:
    """One object of the API."""

    rest: bytes  # all but the status
    packed_status: bytes
    essence: bytes  # a digest of what its owner wrote

    @classmethod
    def of(cls, obj: Mapping[str, Any]) -> Packed:
        rest = {key: value for key, value in obj.items() if key != "status"}
        return cls(pack(rest), pack(obj.get("status") or {}), _essence(obj))

    def same_but_status(self, other: Packed) -> bool:
        """Whether the other differs in its status, and the bookkeeping of writing it, at most."""
        return self.essence == other.essence

    @property
    def whole(self) -> dict[str, Any]:
        """The object."""
        return {**unpack(self.rest), "status": self.status}

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = unpack(self.packed_status)
        return found


def _essence(obj: Mapping[str, Any]) -> bytes:
    metadata = obj.get("metadata") or {}
    return hashlib.blake2b(pack([[metadata.get(part) for part in ESSENTIAL], obj.get("spec")]), digest_size=16).digest()


class Shared:
    """Of equal parts the first one: most models leave most of their settings as they are."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[type[Part], str], Part] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._known)

    def parts(self, whole: P) -> P:
        """The same, made of shared parts."""
        found = {name: value for name, value in whole if isinstance(value, Part)}
        return whole.model_copy(update={name: self._shared(part) for name, part in found.items()})

    def _shared(self, part: Part) -> Part:
        return self._known.setdefault((type(part), part.model_dump_json()), part)
