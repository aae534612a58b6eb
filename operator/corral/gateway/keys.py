"""API keys: who may ask for which model, how much, and whether a model may be woken for them.

A key is written `corral_ID_SECRET`. ID names the record (on Kubernetes the Secret), SECRET is 256 random bits; only a salted hash of it is stored,
and because it is long and random one fast hash and a comparison in constant time are enough. This module never reads a Secret or a file system
by itself but for `load_keys`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import orjson

PREFIX = "corral_"
SCOPES = ("infer", "wake", "admin")
_ID = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class KeyRecordError(ValueError):
    """A stored key that cannot be used; says which field of which key and what would be right."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: str
    salt: bytes
    digest: bytes
    models: tuple[str, ...] = ("*",)
    """Globs over served names and `namespace/name`."""
    scopes: frozenset[str] = frozenset({"infer", "wake"})
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    waiting_share: float = 1.0
    """The part of a model's places in the waiting room that this key may take."""

    @property
    def limited(self) -> bool:
        return not (self.requests_per_minute is None and self.tokens_per_minute is None and self.concurrent is None)

    @property
    def may_use_all(self) -> bool:
        return "*" in self.models

    def may_use(self, *names: str) -> bool:
        """Whether one of a model's names is allowed."""
        return "*" in self.models or any(fnmatch.fnmatchcase(name, glob) for glob in self.models for name in names)

    def may(self, scope: str) -> bool:
        return scope in self.scopes


class KeyStore(Protocol):
    @property
    def open(self) -> bool:
        """No keys are configured: everybody may do everything."""
        ...

    def find(self, key_id: str) -> ApiKey | None: ...


class MemoryKeys:
    """Implements `KeyStore`; who watches Secrets or a file fills it. `required`: without any key nobody may do anything."""

    def __init__(self, *, required: bool = False) -> None:
        self._keys: dict[str, ApiKey] = {}
        self._required = required

    @property
    def open(self) -> bool:
        return not self._required and not self._keys

    def find(self, key_id: str) -> ApiKey | None:
        return self._keys.get(key_id)

    def put(self, key: ApiKey) -> None:
        self._keys[key.id] = key

    def remove(self, key_id: str) -> None:
        self._keys.pop(key_id, None)


def verify(store: KeyStore, presented: str) -> ApiKey | None:
    """The key that was presented, or None. Takes as long for an unknown id as for a wrong secret."""
    if not presented.startswith(PREFIX):
        return None
    key_id, _, secret = presented[len(PREFIX) :].partition("_")
    key = store.find(key_id)
    salt, expected = (key.salt, key.digest) if key is not None else (b"", b"\0" * 32)
    given = hashlib.sha256(salt + secret.encode()).digest()
    return key if hmac.compare_digest(given, expected) and key is not None else None


def new_key(key_id: str) -> tuple[str, dict[str, str]]:
    """A new key: what its owner presents, and the fields to store (`salt` and `hash`; add limits to taste)."""
    if not _ID.fullmatch(key_id):
        raise KeyRecordError(f"key id {key_id!r}: use lower-case letters, digits, dots and hyphens, as in a Kubernetes name")
    secret = secrets.token_urlsafe(32)
    salt = secrets.token_bytes(16)
    digest = hashlib.sha256(salt + secret.encode()).hexdigest()
    return f"{PREFIX}{key_id}_{secret}", {"salt": salt.hex(), "hash": digest}


def parse_key(key_id: str, fields: Mapping[str, str]) -> ApiKey:
    """A stored key: `salt`, `hash`, and optionally `models`, `scopes`, `requestsPerMinute`, `tokensPerMinute`, `concurrent`, `waitingShare`."""
    scopes = frozenset(_list(fields.get("scopes", "infer,wake")))
    unknown = sorted(scopes - set(SCOPES))
    if unknown:
        raise KeyRecordError(f"key {key_id}: scopes has {unknown[0]!r}; there are {', '.join(SCOPES)}")
    share = fields.get("waitingShare", "1")
    try:
        waiting_share = float(share)
    except ValueError:
        waiting_share = -1.0
    if not 0 < waiting_share <= 1:
        raise KeyRecordError(f"key {key_id}: waitingShare is {share!r}; use a number above 0 and at most 1")
    digest = _hex(key_id, fields, "hash")
    if len(digest) != 32:
        raise KeyRecordError(f"key {key_id}: hash has {len(digest)} bytes; SHA-256 has 32")
    return ApiKey(
        id=key_id,
        salt=_hex(key_id, fields, "salt"),
        digest=digest,
        models=_list(fields.get("models", "*")) or ("*",),
        scopes=scopes,
        requests_per_minute=_count(key_id, fields, "requestsPerMinute"),
        tokens_per_minute=_count(key_id, fields, "tokensPerMinute"),
        concurrent=_count(key_id, fields, "concurrent"),
        waiting_share=waiting_share,
    )


def load_keys(path: Path) -> MemoryKeys:
    """The keys of a JSON file: `{"ID": {"salt": "…", "hash": "…", …}}`."""
    try:
        stored = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise KeyRecordError(f"{path} is not JSON: {error}") from error
    if not isinstance(stored, dict) or not all(isinstance(fields, dict) for fields in stored.values()):
        raise KeyRecordError(f"{path} must be an object of objects, one for each key")
    keys = MemoryKeys(required=True)
    for key_id, fields in stored.items():
        keys.put(parse_key(key_id, {name: str(value) for name, value in fields.items()}))
    return keys


def _list(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())


def _hex(key_id: str, fields: Mapping[str, str], name: str) -> bytes:
    text = fields.get(name, "")
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if not value:
        raise KeyRecordError(f"key {key_id}: {name} is {text!r}; use hexadecimal digits")
    return value


def _count(key_id: str, fields: Mapping[str, str], name: str) -> int | None:
    text = fields.get(name, "")
    if not text:
        return None
    if not text.isdigit() or int(text) == 0:
        raise KeyRecordError(f"key {key_id}: {name} is {text!r}; use a whole number above 0")
    return int(text)
