"""The API keys of a gateway: Secrets of one namespace, each a key whose id is the Secret's name, followed by a watch.

It owns the watch; what a key may is the gateway's. Where a namespace is named, keys are asked for from the first request on, key or no key.
A Secret that is no key is skipped and said so: one typing error must not lock everybody out, nor let anybody in.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Mapping
from typing import Any

from corral.gateway.keys import KeyRecordError, MemoryKeys, parse_key
from corral.kube.client import SECRETS, KubeClient
from corral.kube.watch import Object, Reflector, Target

log = logging.getLogger(__name__)


def trim(obj: Object) -> Object:
    metadata = obj["metadata"]
    return {"metadata": {key: metadata.get(key, "") for key in ("name", "namespace", "uid")}, "data": obj.get("data") or {}}


def fields_of(secret: Mapping[str, Any]) -> dict[str, str]:
    """The entries of a Secret as text; raises KeyRecordError."""
    try:
        return {name: base64.b64decode(value, validate=True).decode().strip() for name, value in (secret.get("data") or {}).items()}
    except (binascii.Error, UnicodeDecodeError) as error:
        raise KeyRecordError(f"key {secret['metadata']['name']}: an entry is not text: {error}") from error


class KubeKeys:
    """Keeps `store` as the namespace has it."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.store = MemoryKeys(required=True)
        self.listed = asyncio.Event()
        self.reflector = Reflector(client, SECRETS.path(namespace), Target(self._put, self._remove, self.listed.set), trim=trim)

    def _put(self, obj: Object) -> None:
        name = str(obj["metadata"]["name"])
        try:
            self.store.put(parse_key(name, fields_of(obj)))
        except KeyRecordError as error:
            self.store.remove(name)  # what it was before does not hold any more
            log.warning("%s; nobody gets in with it", error)

    def _remove(self, _namespace: str, name: str, _uid: str) -> None:
        self.store.remove(name)
