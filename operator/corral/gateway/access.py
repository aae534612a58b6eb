"""Who may do what: turns a request's key into a yes, a refusal, or an admission under limits. Asked before any model may be woken."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from corral.gateway.errors import Refused, refuse
from corral.gateway.keys import ApiKey, KeyStore, verify
from corral.gateway.limits import Admission, Limiter
from corral.gateway.origins import allowing
from corral.gateway.ports import ModelView, names_of

log = logging.getLogger("corral.gateway")


VERIFIED_MAX = 4096


class Access:
    def __init__(self, store: KeyStore, limiter: Limiter, *, exposed: bool = True) -> None:
        """`exposed`: whether others than this machine's users reach the gateway."""
        self._store = store
        self._verified: dict[bytes, ApiKey] = {}
        self._limiter = limiter
        if store.open and exposed:
            log.warning("no API keys are configured: whoever reaches this gateway may use, wake and unload every model")

    def authenticate(self, known: Mapping[bytes, bytes]) -> ApiKey | None:
        """The request's key, from its headers; None when no keys are configured."""
        if self._store.open:
            return None
        presented = known.get(b"x-api-key") or _bearer(known.get(b"authorization", b""))
        if not presented:
            raise refuse(401, "invalid_api_key", "no API key was given; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`")
        # A key that was verified is remembered by its bytes, for as long as its record is the one that it was verified against.
        seen = self._verified.get(presented)
        if seen is not None and self._store.find(seen.id) is seen:
            return seen
        key = verify(self._store, presented.decode("latin-1"))
        if key is None:
            raise refuse(401, "invalid_api_key", "this API key is not known here")
        if len(self._verified) >= VERIFIED_MAX:
            self._verified.clear()
        self._verified[presented] = key
        return key

    def allow_origin(self, origin: bytes) -> bytes:
        """What an answer to a web page of this origin says."""
        return allowing(origin, everybody=not self._store.open)

    @staticmethod
    def need(key: ApiKey | None, scope: str) -> None:
        if key is not None and not key.may(scope):
            raise refuse(403, "scope_missing", f"key {key.id} lacks the scope {scope}")

    @staticmethod
    def need_model(key: ApiKey | None, model: ModelView, asked: str) -> None:
        if key is not None and not key.may_use_all and not key.may_use(*names_of(model), asked):
            raise refuse(403, "model_not_allowed", f"key {key.id} may not use {asked!r}")

    def admit(self, key: ApiKey, tokens: int, now: float) -> Admission:
        outcome = self._limiter.admit(key, tokens, now)
        if isinstance(outcome, Admission):
            return outcome
        rejection, headers = outcome
        raise Refused(rejection, tuple(headers))

    def end(self, admission: Admission, used: int | None) -> None:
        self._limiter.end(admission, used)


def _bearer(value: bytes) -> bytes:
    return value[7:].strip() if value[:7].lower() == b"bearer " else b""
