"""API keys as Secrets: they come, change and go, and what is no key lets nobody in."""

from __future__ import annotations

import base64

import pytest

from corral.gateway.keys import new_key, verify
from corral.kube.keystore import KubeKeys, trim


def secret(name: str, **fields: str) -> dict:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in fields.items()}
    return trim({"metadata": {"name": name, "namespace": "keys", "uid": f"u-{name}", "annotations": {"a": "b"}}, "data": data})


@pytest.fixture
async def keys():
    return KubeKeys(None, "keys")


async def test_a_key_comes_changes_and_goes(keys):
    assert not keys.store.open  # before any list, and without any key, nobody is let in
    presented, fields = new_key("team-a")
    keys._put(secret("team-a", **fields))
    found = verify(keys.store, presented)
    assert found is not None
    assert found.may_use("anything")
    keys._put(secret("team-a", **fields, models="small,models/*"))
    found = verify(keys.store, presented)
    assert found is not None
    assert (found.may_use("small"), found.may_use("large")) == (True, False)
    keys._remove("keys", "team-a", "u-team-a")
    assert verify(keys.store, presented) is None
    assert not keys.store.open


@pytest.mark.parametrize("broken", [{"hash": "00"}, {"scopes": "everything"}, {"waitingShare": "2"}])
async def test_a_key_that_became_unreadable_is_no_key(keys, broken):
    presented, fields = new_key("team-a")
    keys._put(secret("team-a", **fields))
    keys._put(secret("team-a", **(fields | broken)))
    assert verify(keys.store, presented) is None


async def test_a_secret_that_is_something_else_is_borne(keys):
    keys._put({"metadata": {"name": "tls", "namespace": "keys", "uid": "u"}, "data": {"tls.key": base64.b64encode(b"\xff\xfe").decode()}})
    keys._put(secret("token", token="x"))
    assert keys.store.find("tls") is None
    assert keys.store.find("token") is None
