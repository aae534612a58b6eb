"""Short-lived tokens for the server pods: Ed25519 JWTs bound to one pod, one scope and one epoch.

The gateway signs `infer`, the operator `control`. The private key never leaves the installation's namespace (a Secret there, a file of the
run directory in local mode); pods hold the public key only. Nothing in here verifies: that is the supervisor's.
"""

from __future__ import annotations

import base64
import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

LIFETIME = 600
"""Seconds that a token is good for."""
RENEW_BEFORE = 60
"""Seconds before its expiry at which a token is no longer reused."""


class KeyFileError(ValueError):
    """The private key's file is there and is not usable."""


def load_private_key(pem: bytes, where: str = "the private key") -> Ed25519PrivateKey:
    """Read a PKCS#8 PEM; `where` names its origin in the error."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"{where} is not an unencrypted PKCS#8 PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{where} is a {type(key).__name__}; an Ed25519 key is needed (openssl genpkey -algorithm ed25519)")
    return key


def private_key_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """The key of `path`, made there (mode 0600) when it is missing. Of several processes that make it at once, one wins for all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mkstemp makes it 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(private_key_pem(Ed25519PrivateKey.generate()))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(name, path)  # unlike a rename, a link never replaces a key that another process has just made
        finally:
            Path(name).unlink()
    return load_private_key(path.read_bytes(), str(path))


def public_key_text(key: Ed25519PrivateKey) -> str:
    """The raw public key in base64url without padding: an entry of `CORRAL_PUBLIC_KEYS`."""
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class TokenSigner:
    """Signs, and reuses what it signed until it nears its expiry."""

    def __init__(self, private_key: Ed25519PrivateKey, *, now: Callable[[], float] = time.time) -> None:
        self._key = private_key
        self._now = now
        self._kept: dict[tuple[str, str, int], tuple[str, float]] = {}

    def sign(self, pod_uid: str, scope: str, epoch: int = 0) -> str:
        """A token for this pod. `scope` is `infer` or `control`; `epoch` is the leader's, and 0 for gateways."""
        now = self._now()
        kept = self._kept.get((pod_uid, scope, epoch))
        if kept is not None and now < kept[1] - RENEW_BEFORE:
            return kept[0]
        if len(self._kept) > 4096:
            self._kept = {slot: entry for slot, entry in self._kept.items() if now < entry[1] - RENEW_BEFORE}
        issued = int(now)
        claims = {"iss": "corral", "aud": pod_uid, "scope": scope, "epoch": epoch, "iat": issued, "exp": issued + LIFETIME}
        token = jwt.encode(claims, self._key, algorithm="EdDSA")
        self._kept[(pod_uid, scope, epoch)] = (token, issued + LIFETIME)
        return token

    def infer_token(self, pod_uid: str) -> str:
        return self.sign(pod_uid, "infer", 0)

    def public_key_text(self) -> str:
        return public_key_text(self._key)
