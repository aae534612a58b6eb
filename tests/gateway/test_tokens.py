import base64
import stat

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from corral.tokens import KeyFileError, TokenSigner, load_or_create_key, load_private_key


class Now:
    def __init__(self):
        self.seconds = 1_800_000_000.0

    def __call__(self):
        return self.seconds


def verify(token, signer, pod):
    raw = base64.urlsafe_b64decode(signer.public_key_text() + "=")
    key = Ed25519PublicKey.from_public_bytes(raw)
    return jwt.decode(token, key, algorithms=["EdDSA"], audience=pod, issuer="corral", options={"verify_exp": False, "verify_iat": False})


def test_claims_are_those_of_the_contract():
    now = Now()
    signer = TokenSigner(Ed25519PrivateKey.generate(), now=now)
    claims = verify(signer.sign("pod-1", "control", 7), signer, "pod-1")
    assert claims == {"iss": "corral", "aud": "pod-1", "scope": "control", "epoch": 7, "iat": 1_800_000_000, "exp": 1_800_000_600}
    assert verify(signer.infer_token("pod-2"), signer, "pod-2")["scope"] == "infer"
    with pytest.raises(jwt.InvalidAudienceError):
        verify(signer.infer_token("pod-2"), signer, "pod-1")


def test_a_token_is_reused_until_a_minute_is_left():
    now = Now()
    signer = TokenSigner(Ed25519PrivateKey.generate(), now=now)
    first = signer.infer_token("pod-1")
    now.seconds += 539
    assert signer.infer_token("pod-1") == first
    assert signer.sign("pod-1", "infer", 1) != first
    now.seconds += 1
    second = signer.infer_token("pod-1")
    assert second != first
    assert verify(second, signer, "pod-1")["exp"] == 1_800_000_000 + 540 + 600


def test_the_key_is_made_once_and_for_its_owner_only(tmp_path):
    path = tmp_path / "run" / "ed25519.pem"
    first = TokenSigner(load_or_create_key(path)).public_key_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert TokenSigner(load_or_create_key(path)).public_key_text() == first
    assert [entry.name for entry in path.parent.iterdir()] == ["ed25519.pem"]


def test_a_key_of_another_kind_is_refused_by_name(tmp_path):
    path = tmp_path / "wrong.pem"
    path.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(KeyFileError, match=r"wrong\.pem is a .*Ed25519 key is needed"):
        load_or_create_key(path)
    with pytest.raises(KeyFileError, match="not an unencrypted PKCS#8 PEM"):
        load_private_key(b"nonsense")
