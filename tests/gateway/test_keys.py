"""Keys and limits: the records, the buckets, and what a client sees of them."""

import asyncio
import json

import pytest
from tests.gateway.conftest import model
from tests.gateway.peers import Pod

from corral.gateway.keys import KeyRecordError, MemoryKeys, load_keys, new_key, parse_key, verify
from corral.gateway.limits import Admission, Limiter
from corral.gateway.usage import estimate, found, told


def make(key_id="team", **fields):
    presented, stored = new_key(key_id)
    return presented, parse_key(key_id, {**stored, **fields})


def adding(keys):
    """A function that adds a key and gives the headers of whoever has it."""

    def add(key_id, **fields):
        presented, key = make(key_id, **fields)
        keys.put(key)
        return {"authorization": f"Bearer {presented}"}

    return add


def test_only_the_whole_key_opens():
    presented, key = make()
    store = MemoryKeys(required=True)
    store.put(key)
    assert verify(store, presented) is key
    for wrong in ("", "team", presented[:-1], presented + "x", presented.replace("team", "other"), presented.upper()):
        assert verify(store, wrong) is None
    store.remove("team")
    assert verify(store, presented) is None
    assert not store.open


def test_the_secret_is_not_what_is_stored(tmp_path):
    presented, stored = new_key("a.b-c")
    assert presented.split("_", 2)[2] not in json.dumps(stored)
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"a.b-c": {**stored, "requestsPerMinute": 5}}))
    key = verify(load_keys(path), presented)
    assert (key.id, key.requests_per_minute, key.models, key.scopes) == ("a.b-c", 5, ("*",), {"infer", "wake"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hash": "xyz"}, "hash is 'xyz'; use hexadecimal digits"),
        ({"hash": "00"}, "hash has 1 bytes; SHA-256 has 32"),
        ({"salt": ""}, "salt is ''"),
        ({"scopes": "infer, root"}, "scopes has 'root'; there are infer, wake, admin"),
        ({"concurrent": "0"}, "concurrent is '0'; use a whole number above 0"),
        ({"tokensPerMinute": "many"}, "tokensPerMinute is 'many'"),
        ({"waitingShare": "2"}, "waitingShare is '2'; use a number above 0 and at most 1"),
    ],
)
def test_bad_records_name_the_field(fields, message):
    _, stored = new_key("team")
    with pytest.raises(KeyRecordError, match="key team") as caught:
        parse_key("team", {**stored, **fields})
    assert message in str(caught.value)


def test_requests_per_minute_refill_and_are_divided_among_gateways():
    _, key = make(requestsPerMinute="60")
    live = [1]
    limiter = Limiter(lambda: live[0])
    for _ in range(60):
        limiter.end(limiter.admit(key, 0, 100), None)
    rejection, headers = limiter.admit(key, 0, 100)
    assert (rejection.status, rejection.code, rejection.retry_after) == (429, "rate_limited", 1)
    assert (b"x-ratelimit-remaining-requests", b"0") in headers
    assert isinstance(limiter.admit(key, 0, 101), Admission)
    live[0] = 4
    granted = 0
    while isinstance(limiter.admit(key, 0, 1000), Admission):
        granted += 1
    assert granted == 15


def test_tokens_are_reserved_and_settled():
    _, key = make(tokensPerMinute="600")
    limiter = Limiter(lambda: 1)
    first = limiter.admit(key, 500, 0)
    assert (b"x-ratelimit-remaining-tokens", b"100") in first.headers
    rejection, _ = limiter.admit(key, 200, 0)
    assert rejection.retry_after == 10
    limiter.end(first, 100)
    limiter.end(first, 100)  # a second end is none
    assert (b"x-ratelimit-remaining-tokens", b"300") in limiter.admit(key, 200, 0).headers
    assert isinstance(limiter.admit(key, 10_000, 60), Admission)  # more than there can ever be: a full bucket is enough


def test_concurrent_requests():
    _, key = make(concurrent="2")
    limiter = Limiter(lambda: 1)
    first, _second = limiter.admit(key, 0, 0), limiter.admit(key, 0, 0)
    rejection, _ = limiter.admit(key, 0, 0)
    assert "concurrent 2" in rejection.message
    limiter.end(first, None)
    assert isinstance(limiter.admit(key, 0, 0), Admission)


def test_usage_is_read_from_header_comment_or_answer():
    assert told(b"12,30") == 42
    assert told(b"x") is None
    assert found(b'data: {"usage":{"total_tokens":9}}\n\n: corral-usage 3,4\n\ndata: [DONE]\n\n') == 7
    assert found(b'{"choices": [], "usage": {"prompt_tokens": 1, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 1}}}') == 9
    assert found(b'{"usage":{"input_tokens":5,"output_tokens":6}}') == 11
    assert found(b'{"usage": null}') is None
    assert estimate(b'{"max_tokens": 10, "n": 3}', 40) == 40
    assert estimate(b"{}", 40) == 266
    assert estimate(None, 40) == 10


@pytest.fixture
async def keyed(stand_up):
    keys = MemoryKeys(required=True)
    stand = await stand_up(keys=keys)
    stand.add = adding(keys)
    stand.keys = keys
    async with Pod() as pod:
        stand.pod = pod
        stand.directory.put_model(model())
        stand.directory.put_model(model("secret"))
        stand.directory.put_replica(pod.view())
        yield stand
        await stand.at_rest()
        assert not stand.gateway.access._limiter._running


def code(answer):
    return answer[0], json.loads(answer[2])["error"].get("code", json.loads(answer[2])["error"]["type"])


async def test_no_key_and_wrong_keys(keyed):
    assert code(await keyed.chat()) == (401, "invalid_api_key")
    assert code(await keyed.chat(headers={"authorization": "Bearer corral_team_x"})) == (401, "invalid_api_key")
    status, _, body = await keyed.chat(path="/v1/messages", headers={"x-api-key": "no"})
    assert (status, json.loads(body)["error"]["type"]) == (401, "authentication_error")
    async with keyed.client.get(keyed.url + "/v1/models") as response:
        assert response.status == 401
    async with keyed.client.get(keyed.url + "/health") as response:
        assert response.status == 200
    assert not keyed.pod.seen


async def test_a_key_reaches_its_models_only(keyed):
    headers = keyed.add("team", models="small, other-*")
    assert (await keyed.chat(headers=headers))[0] == 200
    assert (await keyed.chat(headers={"x-api-key": headers["authorization"][7:]}, path="/v1/messages"))[0] == 200
    assert (await keyed.chat(model="models/small", headers=headers))[0] == 200  # another name of the same model
    assert code(await keyed.chat(model="secret", headers=headers)) == (403, "model_not_allowed")
    assert keyed.gateway.machine.waiting() == 0
    async with keyed.client.get(keyed.url + "/v1/models", headers=headers) as response:
        assert {entry["id"] for entry in (await response.json())["data"]} == {"models/small", "small"}
    async with keyed.client.get(keyed.url + "/v1/models/secret", headers=headers) as response:
        assert response.status == 404
    assert "x-api-key" not in keyed.pod.seen[-1][2]


async def test_a_key_may_be_for_what_follows_the_colon_alone(keyed):
    keyed.directory.put_model(model(adapters=("sql", "poet")))
    headers = keyed.add("team", models="small:sql")
    assert (await keyed.chat(model="small:sql", headers=headers))[0] == 200
    for other in ("small", "small:poet"):
        assert code(await keyed.chat(model=other, headers=headers)) == (403, "model_not_allowed")
    async with keyed.client.get(keyed.url + "/v1/models", headers=headers) as response:
        assert [entry["id"] for entry in (await response.json())["data"]] == ["small:sql"]
    for name, status in (("small:sql", 200), ("small:poet", 404), ("small", 404)):
        async with keyed.client.get(keyed.url + f"/v1/models/{name}", headers=headers) as response:
            assert response.status == status


async def test_scopes(keyed):
    reader = keyed.add("reader", scopes="infer")
    assert (await keyed.chat(headers=reader))[0] == 200
    assert code(await keyed.chat(model="secret", headers=reader)) == (403, "model_not_loaded")
    admin = keyed.add("admin", scopes="admin")
    assert code(await keyed.chat(headers=admin)) == (403, "scope_missing")
    async with keyed.client.post(keyed.url + "/models/load", json={"model": "secret"}, headers=reader) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (403, "scope_missing")
    async with keyed.client.post(keyed.url + "/models/load", json={"model": "secret"}, headers=admin) as response:
        assert response.status == 200


async def test_limits_are_told_and_kept(keyed):
    headers = keyed.add("team", requestsPerMinute="2")
    _, answered, _ = await keyed.chat(headers=headers)
    assert (answered["x-ratelimit-limit-requests"], answered["x-ratelimit-remaining-requests"]) == ("2", "1")
    await keyed.chat(headers=headers)
    status, answered, body = await keyed.chat(headers=headers)
    assert (status, json.loads(body)["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(answered["retry-after"]) <= 30
    assert len(keyed.pod.seen) == 2


async def test_tokens_are_settled_by_what_the_pod_tells(keyed):
    headers = keyed.add("team", tokensPerMinute="10000")
    keyed.pod.chunks = [b'data: {"x": 1}\n\n', b": corral-usage 1000,500\n\n", b"data: [DONE]\n\n"]
    await keyed.chat(headers=headers, stream=True, max_tokens=4000)
    assert keyed.pod.seen[-1][2]["x-corral-usage"] == "1"
    await keyed.at_rest()
    keyed.pod.extra_headers = {"x-corral-usage": "400,100"}
    _, answered, _ = await keyed.chat(headers=headers, max_tokens=1000)
    assert "x-corral-usage" not in answered
    left = int(answered["x-ratelimit-remaining-tokens"])
    assert 7400 <= left <= 7600  # 10,000 less 1,500 used and about 1,020 reserved


async def test_concurrency_and_the_share_of_the_waiting_room(keyed):
    headers = keyed.add("team", concurrent="1")
    keyed.pod.gate = asyncio.Event()
    asked = asyncio.ensure_future(keyed.chat(headers=headers))
    await keyed.until(lambda: keyed.pod.in_flight == 1)
    assert code(await keyed.chat(headers=headers)) == (429, "rate_limited")
    keyed.pod.gate.set()
    assert (await asked)[0] == 200
    small = keyed.add("small", waitingShare="0.01")
    asked = asyncio.ensure_future(keyed.chat(model="secret", headers=small))
    await keyed.until(lambda: keyed.gateway.machine.waiting() == 1)
    assert code(await keyed.chat(model="secret", headers=small)) == (429, "hold_full")
    keyed.directory.remove_model("models/secret")
    assert (await asked)[0] == 404
