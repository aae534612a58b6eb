"""Responses that a pod keeps: what their ids say of the pod that has them. Pure.

An id is `resp_` and 40 hex digits. The first 16 are a hash of the uid of the pod that made the response, so that any gateway finds it, whoever passed
the request on, and nothing has to be remembered here. The ids of a response's items begin with the same 40 digits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from corral.gateway.effects import Rejection
from corral.gateway.keys import ApiKey
from corral.gateway.ports import ModelView, ReplicaView, names_of

_PATH = re.compile(r"(?:/v1)?/responses/([^/]+)(/input_items|/cancel)?")
_ID = re.compile(r"resp_([0-9a-f]{16})[0-9a-f]{24}")
_ITEM = re.compile(r"[a-z]+_([0-9a-f]{16})[0-9a-f]{24}[0-9a-f]*")
"""Of a response or of one of its items."""


class _Item(msgspec.Struct):
    type: Any = None
    id: Any = None


class _References(msgspec.Struct):
    previous_response_id: Any = None
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_references = msgspec.json.Decoder(_References)
_items = msgspec.json.Decoder(list[_Item])


def pattern_of(path: str) -> str:
    """The path with its id's place left open, as the table of routes has it; empty when it is none of a kept response."""
    matched = _PATH.fullmatch(path)
    return f"/v1/responses/{{id}}{matched[2] or ''}" if matched else ""


def target_of(path: str) -> tuple[str, bytes] | None:
    """The digits of the pod, and the path's name there; None when the id is none."""
    matched = _PATH.fullmatch(path)
    known = _ID.fullmatch(matched[1]) if matched else None
    if matched is None or known is None:
        return None
    return known[1], f"/v1/responses/{matched[1]}{matched[2] or ''}".encode()


@lru_cache(maxsize=4096)
def digits_of(uid: str) -> str:
    """How the ids of what this pod keeps begin."""
    return hashlib.blake2b(uid.encode(), digest_size=8).hexdigest()


def keeper(digits: str, replicas: Mapping[str, ReplicaView]) -> ReplicaView | None:
    return next((replica for uid, replica in replicas.items() if digits_of(uid) == digits), None)


def referred(data: bytes) -> str:
    """The digits of the pod that a body needs something of: the response before it, else the first item that it only names. Empty when nothing."""
    try:
        body = _references.decode(data)
        digits = _digits(body.previous_response_id)
        if digits or isinstance(body.input, msgspec.UnsetType):
            return digits
        items = _items.decode(body.input)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""  # a text, mostly; of anything else the pod says what is wrong with it
    return next((digits for item in items if item.type in ("item_reference", None) and (digits := _digits(item.id))), "")


def _digits(told: Any) -> str:
    matched = _ITEM.fullmatch(told) if isinstance(told, str) else None
    return matched[1] if matched else ""


def home_of(data: bytes, replicas: Mapping[str, ReplicaView]) -> str:
    """The uid of the replica that has what a body refers to; empty when it refers to nothing, or to what is gone."""
    digits = referred(data)
    found = keeper(digits, replicas) if digits else None
    return found.uid if found is not None else ""


def name_for(key: ApiKey | None, model: ModelView) -> str:
    """The name by which a key may use the model. A response does not tell by which it was asked for, so one of an adapter's or preset's will do."""
    names = names_of(model)
    if key is None or key.may_use(*names):
        return model.key
    return next((called for name in names for adapter in model.adapters if key.may_use(called := f"{name}:{adapter}")), model.key)


def not_kept() -> Rejection:
    message = "there is no such response here: a response is kept by the server that made it, and is gone when that server is"
    return Rejection(404, "response_not_found", message)
