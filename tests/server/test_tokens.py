"""Who is let in."""

import time

import jwt
import pytest
from tests.server.harness import POD, Keys

from corral_server.tokens import InvalidTokenError, TokenVerifier

KEYS, OTHER = Keys(), Keys()


def verify(token: str | None, *, now: float | None = None, keys: tuple[str, ...] = (KEYS.public,)):
    return TokenVerifier(keys, POD).verify(f"Bearer {token}" if token is not None else None, time.time() if now is None else now)


def test_a_good_token_says_scope_and_epoch():
    claims = verify(KEYS.sign("control", epoch=7))
    assert (claims.scope, claims.epoch) == ("control", 7)


def test_any_of_several_keys_will_do():
    assert verify(OTHER.sign("infer"), keys=(KEYS.public, OTHER.public)).scope == "infer"


@pytest.mark.parametrize(
    "token",
    [
        None,
        "",
        "nonsense",
        OTHER.sign("control"),
        KEYS.sign("control", audience="another-pod"),
        KEYS.sign("control", issuer="somebody"),
        KEYS.sign("control", lifetime=-60),
        KEYS.sign("admin"),
        jwt.encode({"iss": "corral", "aud": POD, "scope": "control", "epoch": 1, "exp": 4e9}, "x" * 64, algorithm="HS256"),
        jwt.encode({"iss": "corral", "aud": POD, "scope": "control", "epoch": 1, "exp": 4e9}, None, algorithm="none"),
    ],
)
def test_others_are_refused(token: str | None):
    with pytest.raises(InvalidTokenError):
        verify(token)


def test_a_remembered_token_still_expires():
    verifier = TokenVerifier((KEYS.public,), POD)
    header = f"Bearer {KEYS.sign('infer', lifetime=60)}"
    assert verifier.verify(header, time.time()).scope == "infer"
    with pytest.raises(InvalidTokenError, match="expired"):
        verifier.verify(header, time.time() + 61)


def test_keys_that_are_none_are_named():
    with pytest.raises(ValueError, match="CORRAL_PUBLIC_KEYS is empty"):
        TokenVerifier((), POD)
    with pytest.raises(ValueError, match="not a base64url Ed25519"):
        TokenVerifier(("abc",), POD)
    with pytest.raises(ValueError, match="CORRAL_POD_UID"):
        TokenVerifier((KEYS.public,), "")
