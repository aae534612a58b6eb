"""Who may call: verifies the installation's signed tokens. Holds public keys only; never signs.

A token is verified once and remembered by its bytes until it expires, so a stream of requests costs one signature check.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

INFER = "infer"
CONTROL = "control"
_REMEMBERED = 1024


@dataclass(frozen=True)
class Claims:
    scope: str
    epoch: int
    expires: float


class InvalidTokenError(Exception):
    """The token is missing, malformed, expired, for another pod, or signed by nobody known."""


class TokenVerifier:
    def __init__(self, public_keys: tuple[str, ...], audience: str) -> None:
        if not public_keys:
            raise ValueError("CORRAL_PUBLIC_KEYS is empty; without a key nobody could ever call this server")
        if not audience:
            raise ValueError("CORRAL_POD_UID is empty; tokens are made for one pod and this one has no name")
        self._keys = [_public_key(text) for text in public_keys]
        self._audience = audience
        self._known: dict[str, Claims] = {}

    def verify(self, authorization: str | None, now: float) -> Claims:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise InvalidTokenError("no bearer token was sent")
        token = token.strip()
        claims = self._known.get(token)
        if claims is None:
            claims = self._check(token)
            if len(self._known) >= _REMEMBERED:
                self._known = {t: c for t, c in self._known.items() if c.expires > now}
            if len(self._known) < _REMEMBERED:
                self._known[token] = claims
        if claims.expires <= now:
            self._known.pop(token, None)
            raise InvalidTokenError("the token has expired")
        return claims

    def _check(self, token: str) -> Claims:
        problem: Exception | None = None
        for key in self._keys:
            try:
                body: dict[str, Any] = jwt.decode(
                    token, key, algorithms=["EdDSA"], audience=self._audience, issuer="corral", leeway=5, options={"require": ["exp", "aud", "iss"]}
                )
            except jwt.InvalidTokenError as error:
                problem = error
                continue
            scope, epoch = body.get("scope"), body.get("epoch", 0)
            if scope not in (INFER, CONTROL) or isinstance(epoch, bool) or not isinstance(epoch, int):
                raise InvalidTokenError("the token names no scope of this server")
            return Claims(scope, epoch, float(body["exp"]))
        raise InvalidTokenError(f"the token was refused: {problem}")


def _public_key(text: str) -> Ed25519PublicKey:
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return Ed25519PublicKey.from_public_bytes(raw)
    except (binascii.Error, ValueError):
        raise ValueError(f"CORRAL_PUBLIC_KEYS holds {text!r}, which is not a base64url Ed25519 public key of 32 bytes") from None
