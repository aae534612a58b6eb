"""Clients that misbehave: nothing of theirs may reach a pod in a form that another parser could read differently, and nothing may be leaked."""

import asyncio
import json

import pytest
from tests.gateway.conftest import model
from tests.gateway.peers import Pod, RawClient, post

from corral.gateway.settings import GatewaySettings

LOCAL = {"host": "127.0.0.1", "port": 0, "admin_host": "127.0.0.1", "admin_port": 0}
BODY = b'{"model": "small"}'
SMUGGLED = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 18\r\n\r\n" + BODY


def request(*lines, body=BODY):
    return b"\r\n".join((b"POST /v1/chat/completions HTTP/1.1", *lines)) + b"\r\n\r\n" + body


@pytest.fixture
async def pod(stand):
    async with Pod() as pod:
        stand.directory.put_model(model(state="Loaded"))
        stand.directory.put_replica(pod.view())
        yield pod


@pytest.mark.parametrize(
    "data",
    [
        request(b"host: x", b"content-length: 18", b"transfer-encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
        request(b"host: x", b"transfer-encoding: chunked", b"content-length: 5", body=b"0\r\n\r\n" + SMUGGLED),
        request(b"host: x", b"content-length: 18", b"content-length: 18"),
        request(b"host: x", b"content-length: 18", b"content-length: 0"),
        request(b"host: x", b"content-length: 18, 18"),
        request(b"host: x", b"content-length: +18"),
        request(b"host: x", b"content-length: -1"),
        request(b"host: x", b"content-length: 0x12"),
        request(b"host: x", b"transfer-encoding: chunked", b"transfer-encoding: chunked", body=b"0\r\n\r\n"),
        request(b"host: x", b"transfer-encoding: gzip, chunked", body=b"0\r\n\r\n"),
        request(b"host: x", b"transfer-encoding: identity", body=b"0\r\n\r\n"),
        request(b"host: x", b"transfer-encoding: xchunked", body=b"0\r\n\r\n"),
        request(b"host: x", b"transfer-encoding : chunked", body=b"0\r\n\r\n"),
        request(b"host: x", b"transfer-encoding: chunked", body=b"zz\r\n\r\n"),
        request(b"host: x", b"transfer-encoding: chunked", body=b"-1\r\n\r\n"),
        request(b"host: x", b"transfer-encoding: chunked", body=b"12\r\n" + BODY + b"XX0\r\n\r\n"),
        request(b"host: x", b"transfer-encoding: chunked", body=b"fffffffffffffffff\r\n\r\n"),
        request(b"host: x", b"host: y", b"content-length: 18"),
        request(b"content-length: 18"),
        request(b"host: x", b"x-a: 1\r\n folded: 2", b"content-length: 18"),
        request(b"host: x", b"x-a\x00b: 1", b"content-length: 18"),
        request(b"host: x", b"x-a: 1\x00", b"content-length: 18"),
        request(b"host: x", b"x-a: 1\nx-corral-adapter: evil", b"content-length: 18"),
        request(b"host: x", b"x-a: 1\rx-corral-adapter: evil", b"content-length: 18"),
        b"POST /v1/chat/completions HTTP/3.7\r\nhost: x\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_ambiguous_requests_are_refused_and_reach_no_pod(stand, pod, data):
    async with RawClient(stand.server.port) as client:
        await client.send(data)
        client.writer.write_eof()
        answer = await asyncio.wait_for(client.reader.read(), 5)
        statuses = [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        assert all(line.split()[1][:1] == b"4" for line in statuses), answer
        assert len(statuses) <= 1
    await stand.at_rest()
    assert not [seen for seen in pod.seen if seen[3] != BODY or "x-corral-adapter" in seen[2]]
    assert len(pod.seen) <= (0 if statuses else 1)


async def test_a_request_inside_a_body_stays_there(stand, pod):
    body = json.dumps({"model": "small", "text": SMUGGLED.decode()}).encode()
    async with RawClient(stand.server.port) as client:
        await client.send(post(body=body))
        assert (await client.answer())[0] == 200
    assert [seen[3] for seen in pod.seen] == [body]


async def test_pipelined_requests_are_answered_in_their_order(stand, pod):
    async with RawClient(stand.server.port) as client:
        await client.send(b"".join(post(n=number) for number in range(5)))
        for number in range(5):
            status, _, _ = await client.answer()
            assert (status, json.loads(pod.seen[number][3])["n"]) == (200, number)


async def test_a_client_that_pipelines_and_leaves(stand, pod):
    pod.gate = asyncio.Event()
    async with RawClient(stand.server.port) as client:
        await client.send(post(n=1) + post(n=2))
        await stand.until(lambda: pod.in_flight == 1)
    await stand.until(lambda: pod.in_flight == 0)
    await stand.at_rest()


async def test_headers_that_are_ours_or_for_one_hop_do_not_pass(stand, pod):
    lines = [
        "x-corral-adapter: evil", "X-Corral-Served-Name: evil", "x-corral-hold: loud", "connection: x-mine, keep-alive", "x-mine: 1",
        "te: trailers", "cookie: a=b", "x-api-key: secret", "accept-encoding: gzip", "x-fine: yes",
    ]  # fmt: skip
    async with RawClient(stand.server.port) as client:
        await client.send(post(headers=lines))
        assert (await client.answer())[0] == 200
    sent = pod.seen[0][2]
    assert sent["x-fine"] == "yes"
    assert sent.getall("x-corral-served-name") == ["small"]
    assert not {"x-corral-adapter", "x-corral-hold", "x-mine", "te", "cookie", "x-api-key", "accept-encoding"} & {name.lower() for name in sent}


async def test_continue_is_said_when_the_body_is_wanted(stand, pod):
    async with RawClient(stand.server.port) as client:
        await client.send(request(b"host: x", b"content-length: 18", b"expect: 100-continue", body=b""))
        assert (await client.reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(BODY)
        assert (await client.answer())[0] == 200
    assert "expect" not in pod.seen[0][2]


@pytest.mark.parametrize("sent", [b"POST /v1/chat", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"])
async def test_slow_headers_end(stand_up, sent):
    stand = await stand_up(GatewaySettings(**LOCAL, header_timeout=0.2))
    async with RawClient(stand.server.port) as client:
        await client.send(sent)
        assert (await asyncio.wait_for(client.reader.read(), 5)).startswith(b"HTTP/1.1 408 ")
    await stand.until(lambda: stand.server.connections == 0)


async def test_slow_bodies_end(stand_up):
    stand = await stand_up(GatewaySettings(**LOCAL, body_timeout=0.2, header_timeout=0.3))
    async with RawClient(stand.server.port) as client:
        await client.send(request(b"host: x", b"content-length: 100", body=b"{"))
        status, _, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
        assert await asyncio.wait_for(client.reader.read(), 5) == b""  # what may still come is no request


async def test_huge_headers_are_refused(stand):
    async with RawClient(stand.server.port) as client:
        client.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + b"x-a: " + b"a" * 100_000)
        assert (await asyncio.wait_for(client.reader.read(), 5)).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("chunked", [True, False])
async def test_bodies_beyond_the_bound_are_refused(stand_up, chunked):
    stand = await stand_up(GatewaySettings(**LOCAL, max_body=100_000))
    async with RawClient(stand.server.port) as client:
        if chunked:
            client.writer.write(request(b"host: x", b"transfer-encoding: chunked", body=b"30000\r\n" + b"x" * 0x30000 + b"\r\n"))
        else:
            client.writer.write(request(b"host: x", b"content-length: 200000", body=b""))
        status, _, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")


async def test_bodies_in_memory_are_bounded_in_sum(stand_up):
    stand = await stand_up(GatewaySettings(**LOCAL, bodies_max=100_000))
    async with RawClient(stand.server.port) as first, RawClient(stand.server.port) as second:
        await first.send(request(b"host: x", b"content-length: 90000", body=b"x" * 70_000))
        await stand.until(lambda: stand.gateway.bodies.in_memory >= 60_000)
        await second.send(request(b"host: x", b"content-length: 60000", body=b"x" * 50_000))
        assert (await second.answer())[0] == 503
    await stand.at_rest()


@pytest.mark.parametrize("sent", [b"", b"POST /v1", post()[:-20], post()[:-1]])
async def test_clients_that_leave_early(stand, pod, sent):
    async with RawClient(stand.server.port) as client:
        await client.send(sent)
    await stand.until(lambda: stand.server.connections == 0)
    await stand.at_rest()
    assert not pod.seen


async def test_a_half_closed_client_counts_as_gone(stand, pod):
    pod.gate = asyncio.Event()
    async with RawClient(stand.server.port) as client:
        await client.send(post())
        await stand.until(lambda: pod.in_flight == 1)
        client.writer.write_eof()
        await stand.until(lambda: pod.in_flight == 0)


async def test_a_reader_that_stops_for_good_is_cut(stand_up):
    stand = await stand_up(GatewaySettings(**LOCAL, client_stall=0.5))
    async with Pod() as pod:
        pod.chunks = [b"x" * 100_000] * 1000
        stand.directory.put_model(model(state="Loaded"))
        stand.directory.put_replica(pod.view())
        async with RawClient(stand.server.port, receive_buffer=4096) as client:
            await client.send(post(stream=True))
            await client.reader.readuntil(b"\r\n\r\n")
            client.writer.transport.pause_reading()
            await stand.until(lambda: stand.server.connections == 0, 10)
        await stand.at_rest()
        await stand.until(lambda: pod.in_flight == 0)


async def test_the_wish_for_another_protocol_is_not_granted_and_the_request_is_answered(stand, pod):
    lines = (b"host: x", b"content-length: 18", b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAMAAABk")
    async with RawClient(stand.server.port) as client:
        await client.send(request(*lines))
        assert (await client.answer())[0] == 200
        await client.send(request(*lines, body=BODY[:7]))
        await client.send(BODY[7:] + post(n=3))  # what follows the body is the next request, and nothing else
        assert (await client.answer())[0] == 200
        assert (await client.answer())[0] == 200
    assert [seen[3] for seen in pod.seen[:2]] == [BODY, BODY]
    assert json.loads(pod.seen[2][3])["n"] == 3
    assert not {"upgrade", "http2-settings"} & {name.lower() for name in pod.seen[0][2]}


async def test_an_old_client_gets_no_chunks(stand, pod):
    body = b'{"model": "small", "stream": true}'
    async with RawClient(stand.server.port) as client:
        await client.send(b"POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        head, _, rest = (await asyncio.wait_for(client.reader.read(), 5)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert rest == b"".join(pod.chunks)


async def test_a_head_request_has_no_body(stand):
    async with RawClient(stand.server.port) as client:
        await client.send(b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = await asyncio.wait_for(client.reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")
