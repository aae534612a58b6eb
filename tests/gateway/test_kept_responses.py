"""Responses that pods keep: their ids lead to the pod that has them, and asking for them is no use of its model."""

import asyncio
import hashlib
import json
import random
import re

import aiohttp
import pytest
from tests.gateway.conftest import model
from tests.gateway.peers import Pod, RawClient, RawPod, post, read_request
from tests.gateway.test_keys import adding
from yarl import URL

from corral.gateway import kept_responses
from corral.gateway.keys import MemoryKeys
from corral.gateway.settings import GatewaySettings

FORMS = [("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")]
REST = "0123456789abcdef01234567"


def digits(uid):
    return hashlib.blake2b(uid.encode(), digest_size=8).hexdigest()


def kept(uid, kind="resp", more=""):
    """An id of what the pod with this uid made."""
    return f"{kind}_{digits(uid)}{REST}{more}"


async def ask(stand, path, method="GET", headers=None):
    async with stand.client.request(method, URL(stand.url + path, encoded=True), headers=headers) as response:
        body = await response.read()
        return response.status, response.headers, json.loads(body) if body and response.content_type == "application/json" else body


@pytest.fixture
async def two(stand):
    """A model with two open replicas."""
    async with Pod("pod-a") as first, Pod("pod-b") as second:
        stand.directory.put_model(model(state="Loaded"))
        for pod in (first, second):
            stand.directory.put_replica(pod.view())
        yield {"pod-a": first, "pod-b": second}


def test_what_an_id_says():
    assert kept_responses.digits_of("pod-a") == digits("pod-a")
    assert kept_responses.target_of(f"/responses/{kept('u')}/cancel") == (digits("u"), f"/v1/responses/{kept('u')}/cancel".encode())
    malformed = ["", "resp_", "msg" + kept("u")[4:], kept("u")[:-1], kept("u") + "0", kept("u").upper(), kept("u") + "\n", "input_tokens", "{id}"]
    assert [kept_responses.target_of(f"/v1/responses/{wrong}") for wrong in malformed] == [None] * len(malformed)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"previous_response_id": kept("u")}, "u"),
        ({"previous_response_id": kept("u"), "input": [{"type": "item_reference", "id": kept("v", "msg", "00")}]}, "u"),
        ({"previous_response_id": None, "input": [{"role": "user"}, {"type": "item_reference", "id": kept("v", "msg", "00")}]}, "v"),
        ({"input": [{"id": kept("v", "ctc", "a7")}]}, "v"),  # its `type` may be left out
        ({"input": [{"type": "item_reference", "id": kept("v", kind, "1f")} for kind in ("rs", "fc")]}, "v"),
        ({"input": [{"type": "message", "id": kept("v", "msg", "00"), "content": []}]}, None),  # whole, so whoever gets it needs nothing else
        ({"previous_response_id": 7, "input": "hello"}, None),
        ({"previous_response_id": "resp_x", "input": [{"type": "item_reference", "id": ["msg_x"]}]}, None),
        ({"input": [3, {"type": "item_reference", "id": kept("v", "msg", "00")}]}, None),
        ({"input": {"type": "item_reference", "id": kept("v", "msg", "00")}}, None),
        ({}, None),
        ([], None),
    ],
)
def test_what_a_body_refers_to(body, found):
    assert kept_responses.referred(json.dumps(body).encode()) == (digits(found) if found else "")


def test_bodies_that_are_no_json_refer_to_nothing():
    for body in (b"", b"{", b'{"input": [{"type": "\xff"}]}', b'{"input": [{"type": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}"):
        assert kept_responses.referred(body) == ""


@pytest.mark.parametrize("prefix", ["/v1", ""])
@pytest.mark.parametrize(("method", "rest"), FORMS)
async def test_each_form_reaches_the_pod_that_keeps_it(stand, two, prefix, method, rest):
    for uid, pod in two.items():
        headers = {"x-request-id": "mine-1", "authorization": "Bearer mine", "x-corral-adapter": "made up"}
        path = f"{prefix}/responses/{kept(uid)}{rest}"
        status, answered, body = await ask(stand, path + "?limit=2&order=asc&after=msg_1&include[]=a&include[]=b%20c", method, headers)
        assert (status, body["pod"]) == (200, uid)
        assert (answered["x-corral-model"], answered["x-corral-replica"], answered["x-request-id"]) == ("models/small", uid, "mine-1")
        assert "x-corral-waited-ms" not in answered
        (got,) = pod.asked
        assert got[:2] == (method, f"/v1/responses/{kept(uid)}{rest}?limit=2&order=asc&after=msg_1&include[]=a&include[]=b%20c")
        assert got[2]["x-request-id"] == "mine-1"
        assert "mine" not in got[2]["authorization"]
        assert "x-corral-adapter" not in got[2]


async def test_a_query_passes_as_it_was_written(stand, two):
    for number, query in enumerate(("", "?", "?include%5B%5D=a+b&x=%2F", "?autoload=false&model=nobody")):
        async with RawClient(stand.server.port) as client:
            await client.send(f"GET /responses/{kept('pod-a')}{query} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert (await client.answer())[0] == 200
        assert two["pod-a"].asked[number][1] == f"/v1/responses/{kept('pod-a')}{query.rstrip('?')}"


async def test_a_pod_that_sleeps_is_asked_without_a_wake(stand):
    async with Pod(state="Sleeping") as pod:
        stand.directory.put_model(model(stalled=True, stalled_reason="DoesNotFit"))
        stand.directory.put_replica(pod.view())
        for method, rest in FORMS:
            assert (await ask(stand, f"/v1/responses/{kept(pod.uid)}{rest}", method))[0] == 200
        await asyncio.sleep(0.1)  # as long as a report takes that would be due
        machine = stand.gateway.machine
        assert (machine.in_flight(), machine.waiting(), pod.polls, pod.refusals) == (0, 0, 0, 0)
        assert not machine._busy
        assert machine._models["models/small"].last_used is None
        assert not stand.sink.reports
        page = stand.gateway.metrics_page().decode()
        assert 'corral_gateway_requests_total{code="200",model="models/small"} 4.0' in page
        assert "corral_gateway_misses_total{" not in page
        assert "corral_gateway_hits_total{" not in page
        assert "corral_gateway_cold_start_seconds_count{" not in page


async def test_a_stream_passes_as_it_comes_and_ends_with_its_client(stand):
    async with Pod(state="Sleeping") as pod:
        pod.gate = asyncio.Event()
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        path = f"/v1/responses/{kept(pod.uid)}?stream=true&starting_after=3"
        async with stand.client.get(stand.url + path) as response:
            assert response.headers["x-accel-buffering"] == "no"
            assert await response.content.readany() == pod.chunks[0]
            assert (stand.gateway.open_requests, stand.gateway.machine.in_flight()) == (1, 0)
        await stand.at_rest()  # the client left
        pod.gate.set()
        assert (await ask(stand, path))[2] == b"".join(pod.chunks)


async def test_what_nobody_keeps_is_not_found(stand, two):
    gone = two["pod-a"].view(uid="pod-c", pod="pod-c", host="")
    stand.directory.put_replica(gone)  # it has no address, so it never made anything
    orphan = two["pod-a"].view(uid="pod-d", pod="pod-d", model="models/deleted")
    stand.directory.put_replica(orphan)
    ids = [
        kept("nobody"),
        kept("pod-c"),
        kept("pod-d"),
        "resp_1",
        kept("pod-a")[:-1],
        kept("pod-a") + "0",
        kept("pod-a").upper(),
        "%0d%0ax",
        "input_items",
    ]
    for wrong in ids:
        for method, rest in FORMS:
            status, headers, body = await ask(stand, f"/v1/responses/{wrong}{rest}", method)
            error = body["error"]
            assert (status, error["code"], error["type"], error["param"]) == (404, "response_not_found", "not_found_error", None)
            assert "kept by the server that made it" in error["message"]
            assert headers["x-request-id"]
    assert not two["pod-a"].asked


async def test_a_gateway_that_knows_no_pods_yet_does_not_say_that_one_is_gone(stand):
    stand.directory.synced = False
    assert (await ask(stand, f"/v1/responses/{kept('pod-a')}"))[2]["error"]["code"] == "not_ready"
    assert (await ask(stand, "/v1/responses/resp_1"))[0] == 404


async def test_a_pod_that_is_gone_or_away(stand):
    async with Pod() as pod:
        view = pod.view()
    stand.directory.put_model(model())
    stand.directory.put_replica(view)
    path = f"/v1/responses/{kept(pod.uid)}"
    status, headers, body = await ask(stand, path)
    assert (status, body["error"]["code"], headers["x-corral-model"]) == (502, "upstream_failed", "models/small")
    assert "127.0.0.1" not in body["error"]["message"]
    stand.directory.put_replica(pod.view(deleting=True))
    assert (await ask(stand, path))[2]["error"]["code"] == "response_not_found"
    stand.directory.remove_replica(pod.uid)
    assert (await ask(stand, path))[2]["error"]["code"] == "response_not_found"


async def test_a_pod_that_goes_is_asked_for_as_long_as_it_answers(stand):
    async with Pod() as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view(deleting=True))
        assert (await ask(stand, f"/v1/responses/{kept(pod.uid)}"))[0] == 200


@pytest.mark.parametrize("end", ["close", "silence"])
@pytest.mark.parametrize(("gone", "status"), [(False, {"close": 502, "silence": 504}), (True, {"close": 404, "silence": 404})])
async def test_a_pod_that_does_not_answer(stand_up, end, gone, status):
    stand = await stand_up(GatewaySettings(host="127.0.0.1", port=0, admin_host="127.0.0.1", admin_port=0, grace=2, first_byte_timeout=0.2))

    async def script(reader, _writer, _number):
        await read_request(reader)
        if gone:
            stand.directory.remove_replica("pod-raw")
        if end == "silence":
            await asyncio.sleep(1)

    async with RawPod(script) as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        assert (await ask(stand, f"/v1/responses/{kept(pod.uid)}"))[0] == status[end]
        assert pod.connections == 1


async def test_a_stale_connection_is_replaced_once(stand):
    async def script(reader, writer, number):
        for _ in range(1 if number == 1 else 9):
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d" % number)
        if number == 1:
            await reader.readuntil(b"\r\n\r\n")  # the next one ends without a byte

    async with RawPod(script) as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        path = f"/v1/responses/{kept(pod.uid)}"
        assert [(await ask(stand, path))[2] for _ in range(2)] == [b"1", b"2"]
        assert stand.gateway.upstream.retries == 1


async def test_a_pod_that_has_no_such_routes_keeps_nothing(stand):
    async def script(reader, writer, _number):
        await read_request(reader)
        writer.write(b"HTTP/1.1 503 No\r\nx-corral-draining: true\r\ncontent-length: 0\r\n\r\n")

    async with RawPod(script) as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        assert (await ask(stand, f"/v1/responses/{kept(pod.uid)}"))[2]["error"]["code"] == "response_not_found"
        assert (stand.gateway.machine.waiting(), pod.connections) == (0, 1)


async def test_wrong_methods_and_the_routes_beside_them(stand, two):
    for prefix in ("/v1", ""):
        for rest, wrong, allow in (
            ("", "POST", "DELETE, GET"),
            ("", "HEAD", "DELETE, GET"),
            ("/input_items", "DELETE", "GET"),
            ("/cancel", "GET", "POST"),
        ):
            status, headers, _ = await ask(stand, f"{prefix}/responses/{kept('pod-a')}{rest}", wrong)
            assert (status, headers["allow"]) == (405, allow)
        status, headers, _ = await ask(stand, f"{prefix}/responses/input_tokens")
        assert (status, headers["allow"]) == (405, "POST")
        assert (await stand.chat(path=f"{prefix}/responses/input_tokens"))[0] == 200
        assert (await stand.chat(path=f"{prefix}/responses"))[0] == 200
        assert (await ask(stand, f"{prefix}/responses"))[1]["allow"] == "POST"
        for nothing in (f"/responses/{kept('pod-a')}/other", f"/responses/{kept('pod-a')}/cancel/x", "/responses/"):
            status, _, body = await ask(stand, prefix + nothing)
            assert (status, body["error"]["code"]) == (404, "not_found")
    assert not two["pod-a"].asked
    assert {path for pod in two.values() for _, path, _, _ in pod.seen} == {"/v1/responses", "/v1/responses/input_tokens"}


async def test_a_cancellation_may_have_a_body(stand, two):
    async with RawClient(stand.server.port) as client:
        for _ in range(3):
            await client.send(post(f"/v1/responses/{kept('pod-b')}/cancel", b"{}"))
            assert (await client.answer())[0] == 200
    assert len(two["pod-b"].asked) == 3


async def test_keys_are_asked_for_as_elsewhere(stand_up):
    keys = MemoryKeys(required=True)
    stand, add = await stand_up(keys=keys), adding(keys)

    async def code(headers):
        status, _, body = await ask(stand, f"/v1/responses/{kept('pod-a')}", headers=headers)
        return status, body["error"]["code"] if status != 200 else ""

    async with Pod(state="Sleeping") as pod:
        stand.directory.put_model(model(adapters=("poet",)))
        stand.directory.put_replica(pod.view())
        assert await code({}) == (401, "invalid_api_key")
        assert await code(add("elsewhere", models="other-*")) == (403, "model_not_allowed")
        assert await code(add("admin", scopes="admin")) == (403, "scope_missing")
        assert not pod.asked
        assert await code(add("small", models="small", scopes="infer")) == (200, "")  # to wake it is not asked for
        assert await code(add("poet", models="small:poet")) == (200, "")
        limited = add("limited", requestsPerMinute="1", tokensPerMinute="100", concurrent="1")
        for _ in range(3):  # a limit is of what models do
            assert await code(limited) == (200, "")
        assert not stand.gateway.access._limiter._tokens
        assert "x-corral-usage" not in pod.asked[-1][2]


@pytest.mark.parametrize("path", ["/v1/responses", "/responses", "/v1/responses/input_tokens", "/responses/input_tokens"])
async def test_a_request_goes_to_the_pod_that_keeps_what_it_refers_to(stand, two, path):
    for uid, pod in two.items():
        for fields in (
            {"previous_response_id": kept(uid), "input": "and then?"},
            {"input": [{"role": "user", "content": "x"}, {"type": "item_reference", "id": kept(uid, "fc", "01")}]},
        ):
            pod.seen.clear()
            assert {(await stand.chat(path=path, **fields))[1]["x-corral-replica"] for _ in range(8)} == {uid}
            assert len(pod.seen) == 8


async def test_other_routes_are_not_looked_into(stand, two, monkeypatch):
    monkeypatch.setattr(kept_responses, "home_of", None)
    assert (await stand.chat(previous_response_id=kept("pod-b")))[0] == 200
    stand.directory.remove_replica("pod-a")  # there is no choice any more
    assert (await stand.chat(path="/v1/responses", previous_response_id=kept("pod-b")))[0] == 200


async def test_another_answers_when_the_pod_that_keeps_it_does_not_admit(stand, two):
    two["pod-b"].admitting = False  # the pod says so first, then it is known
    for _ in range(2):
        status, headers, _ = await stand.chat(path="/v1/responses", previous_response_id=kept("pod-b"))
        assert (status, headers["x-corral-replica"]) == (200, "pod-a")
    assert two["pod-b"].refusals == 1
    for unknown in (kept("pod-z"), "resp_1", None, 5):
        assert (await stand.chat(path="/v1/responses", previous_response_id=unknown))[1]["x-corral-replica"] == "pod-a"


async def test_mutated_ids_and_paths_are_never_a_fault_of_the_gateway(stand, two):
    chance = random.Random(7)
    letters = "0123456789abcdefABCDEF_-/%?#&=.{}[]~\"'<>;:,+é"
    seen = set()
    for number in range(400):
        text = list(f"/v1/responses/{kept('pod-a')}{chance.choice(['', '/cancel', '/input_items'])}")
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.randrange(len("/v1/responses/"), len(text))
            text[at : at + chance.choice((0, 1))] = chance.choice([*letters, "%00", "%0d%0a", "%2f", "%", "..", "resp_", "a" * 50])
        async with RawClient(stand.server.port) as client:
            method = ("GET", "DELETE", "POST", "PUT")[number % 4]
            await client.send(f"{method} {''.join(text)} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
            seen.add((await client.answer())[0])
    assert seen <= {200, 400, 404, 405}
    assert 404 in seen
    whole = re.compile(rf"/v1/responses/resp_{digits('pod-a')}[0-9a-f]{{24}}(/cancel|/input_items)?(\?.*)?")
    assert all(whole.fullmatch(target) for _, target, _ in two["pod-a"].asked)


async def test_a_page_may_ask_to_delete(stand):
    async with stand.client.options(stand.url + f"/v1/responses/{kept('pod-a')}", headers={"origin": "http://localhost"}) as response:
        assert "DELETE" in response.headers["access-control-allow-methods"]


async def test_a_client_that_leaves_before_an_answer(stand):
    came = asyncio.Event()

    async def script(reader, _writer, _number):
        await read_request(reader)
        came.set()
        await reader.read()

    async with RawPod(script) as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        asked = asyncio.ensure_future(ask(stand, f"/v1/responses/{kept(pod.uid)}"))
        await came.wait()
        asked.cancel()
        with pytest.raises((asyncio.CancelledError, aiohttp.ClientError)):
            await asked
        await stand.at_rest()
        await stand.until(lambda: pod.open == 0)
