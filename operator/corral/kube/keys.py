"""The installation's signing key: a Secret that the operator makes when there is none, and that only operator and gateways read."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from corral.kube.client import SECRETS, AlreadyExists, KubeClient
from corral.kube.ports import Gone, Refused, Unavailable
from corral.tokens import KeyFileError, load_private_key, private_key_pem

log = logging.getLogger(__name__)

ENTRY = "ed25519.pem"
POLL = 1.0


async def read_key(client: KubeClient, namespace: str, name: str) -> Ed25519PrivateKey:
    """Raises Gone when there is no such Secret, KeyFileError when it holds no key."""
    secret = await client.get(SECRETS.path(namespace, name))
    where = f"entry {ENTRY} of Secret {namespace}/{name}"
    try:
        pem = base64.b64decode((secret.get("data") or {})[ENTRY], validate=True)
    except (KeyError, binascii.Error) as error:
        raise KeyFileError(f"{where} is missing or not base64; a PKCS#8 PEM of an Ed25519 key is needed") from error
    return load_private_key(pem, where)


async def ensure_key(client: KubeClient, namespace: str, name: str) -> Ed25519PrivateKey:
    """The key, made and stored when it is missing. Of two that make it at once, the API server lets one win for both."""
    try:
        return await read_key(client, namespace, name)
    except Gone:
        body = {
            "apiVersion": SECRETS.api_version,
            "kind": SECRETS.kind,
            "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "corral"}},
            "type": "Opaque",
            "data": {ENTRY: base64.b64encode(private_key_pem(Ed25519PrivateKey.generate())).decode()},
        }
        try:
            await client.create(SECRETS.path(namespace), body)
            log.info("made the signing key, Secret %s/%s", namespace, name)
        except AlreadyExists:
            pass
        return await read_key(client, namespace, name)


async def await_key(client: KubeClient, namespace: str, name: str) -> Ed25519PrivateKey:
    """For a gateway, which may be there before the first operator is."""
    while True:
        try:
            return await read_key(client, namespace, name)
        except Gone:
            log.info("Secret %s/%s is not there yet; the operator makes it", namespace, name)
        except (Unavailable, Refused) as error:
            log.warning("Secret %s/%s cannot be read: %s", namespace, name, error)
        await asyncio.sleep(POLL)


async def await_key_file(path: Path) -> Ed25519PrivateKey:
    """For a gateway with the Secret mounted; a mount that is optional may come later than the process."""
    while (pem := _read_if_there(path)) is None:
        log.info("%s is not there yet; the operator makes the Secret that it comes from", path)
        await asyncio.sleep(POLL)
    return load_private_key(pem, str(path))


def _read_if_there(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
