"""Requests from the corners of HTTP/1.1: each is answered as the standard wants it or refused, and none costs memory that grows."""

import asyncio

import pytest
from tests.gateway.conftest import model
from tests.gateway.peers import Pod, RawClient

from corral.gateway.connections import PIPELINE_MAX
from corral.gateway.settings import KIB

BODY = b'{"model": "small"}'
CHUNKED = (b"host: x", b"transfer-encoding: chunked")
SIZED = (b"host: x", b"content-length: 18")
ONE = b"12\r\n" + BODY + b"\r\n0\r\n\r\n"


def request(*lines, body=BODY, first=b"POST /v1/chat/completions HTTP/1.1"):
    return b"\r\n".join((first, *lines)) + b"\r\n\r\n" + body


def get(target, version=b"HTTP/1.1", method=b"GET"):
    return request(b"host: x", body=b"", first=b" ".join((method, target, version)))


@pytest.fixture
async def pod(stand):
    async with Pod() as pod:
        stand.directory.put_model(model(state="Loaded"))
        stand.directory.put_replica(pod.view())
        yield pod


CASES = {
    "chunk extensions": (request(*CHUNKED, body=b'12;a=b;c="d e"\r\n' + BODY + b"\r\n0;x\r\n\r\n"), 200),
    "trailers": (request(*CHUNKED, body=b"12\r\n" + BODY + b"\r\n0\r\nx-t: 1\r\nx-corral-adapter: evil\r\n\r\n"), 200),
    "zeros before a size": (request(*CHUNKED, body=b"0" * 40 + ONE), 200),
    "a name in capitals": (request(b"HOST: x", b"TRANSFER-ENCODING: CHUNKED", body=ONE), 200),
    "empty lines first": (b"\r\n\r\n" + request(*SIZED), 200),
    "another host's absolute form": (request(*SIZED, first=b"POST http://evil.example/v1/chat/completions HTTP/1.1"), 200),
    "an absolute form with a user": (request(*SIZED, first=b"POST http://u:p@evil/v1/chat/completions HTTP/1.1"), 200),
    "an IPv6 host": (request(b"host: [::1]:8080", b"content-length: 18"), 200),
    "an expectation that nobody knows": (request(*SIZED, b"expect: 200-ok"), 200),
    "bare line feeds": (b"POST /v1/chat/completions HTTP/1.1\nhost: x\ncontent-length: 18\n\n" + BODY, 400),
    "a line feed after a size": (request(*CHUNKED, body=b"12\n" + BODY + b"\r\n0\r\n\r\n"), 400),
    "a line end in a quoted extension": (request(*CHUNKED, body=b'12;a="x\r\ny"\r\n' + BODY + b"\r\n0\r\n\r\n"), 400),
    "a length among the trailers": (request(*CHUNKED, body=b"12\r\n" + BODY + b"\r\n0\r\ncontent-length: 5\r\n\r\n"), 400),
    "chunks in HTTP/1.0": (request(*CHUNKED, body=ONE, first=b"POST /v1/chat/completions HTTP/1.0"), 400),
    "HTTP/2.0 in clear": (get(b"/v1/models", b"HTTP/2.0"), 400),
    "HTTP/1.2": (get(b"/v1/models", b"HTTP/1.2"), 400),
    "HTTP/0.9": (b"GET /v1/models\r\n\r\n", 400),
    "two hosts in one": (request(b"host: x, y", b"content-length: 18"), 400),
    "a host with a path": (request(b"host: x/y@z", b"content-length: 18"), 400),
    "a space before the colon": (request(b"host: x", b"content-length : 18"), 400),
    "a target that is a star": (get(b"*"), 400),
    "a tunnel": (get(b"evil:80", method=b"CONNECT"), 400),
    "a trace": (get(b"/v1/models", method=b"TRACE"), 405),
    "everything's options": (get(b"*", method=b"OPTIONS"), 200),
    "dots": (get(b"/v1/x/../models"), 404),
    "two slashes": (get(b"//v1/models"), 404),
    "a long target": (get(b"/" + b"a" * 70_000), 431),
}


@pytest.mark.parametrize("case", CASES)
async def test_corner(stand, pod, case):
    data, expected = CASES[case]
    async with RawClient(stand.server.port) as client:
        await client.send(data)
        status, headers, _ = await asyncio.wait_for(client.answer(), 5)
        assert status == expected
        if status == 400 and headers["content-type"].startswith("text/plain"):
            assert await client.reader.read() == b""  # nobody knows where the next request begins
    assert all((target, body) == ("/v1/chat/completions", BODY) and "x-corral-adapter" not in sent for _, target, sent, body in pod.seen)
    assert len(pod.seen) == (status == 200 and b"/chat/" in data)


@pytest.mark.parametrize("rest", [b"\r\n", b"garbage\r\n\r\n", request(*SIZED)], ids=["an empty line", "garbage", "another request"])
@pytest.mark.parametrize("apart", [False, True])
async def test_what_follows_the_last_request_does_not_harm_it(stand, pod, rest, apart):
    pod.gate = asyncio.Event()
    async with RawClient(stand.server.port) as client:
        await client.send(request(*SIZED, b"connection: close") + (b"" if apart else rest))
        await stand.until(lambda: pod.in_flight == 1)
        if apart:
            await client.send(rest)
        pod.gate.set()
        assert (await client.answer())[0] == 200
        assert await client.reader.read() == b""
    assert len(pod.seen) == 1


async def test_garbage_behind_a_request_ends_the_connection_after_its_answer(stand, pod):
    pod.gate = asyncio.Event()
    async with RawClient(stand.server.port) as client:
        await client.send(request(*SIZED) + b"GARBAGE / HTTP/1.1\r\n\r\n")
        await stand.until(lambda: pod.in_flight == 1)
        pod.gate.set()
        assert (await client.answer())[0] == 200
        assert await client.reader.read() == b""


@pytest.mark.parametrize("asked", [get(b"/health"), request(*SIZED)], ids=["pages", "answers"])
async def test_answers_that_nobody_reads_do_not_pile_up(stand, pod, asked):
    async with RawClient(stand.server.port, receive_buffer=4096) as client:
        (connection,) = await until_there(stand)
        pod.extra_headers = {"x-much": "a" * 7000}
        client.writer.transport.pause_reading()
        client.writer.write(asked * 40_000)
        await stand.until(lambda: connection.write_paused, 20)
        written = [0, 0]
        while len(set(written[-20:])) > 1 or len(written) < 22:  # until it is at rest
            await asyncio.sleep(0.01)
            written.append(connection.transport.get_write_buffer_size())
        assert written[-1] < 512 * KIB
        assert connection._paused
        assert len(connection._waiting) < 256 * KIB / len(asked) + PIPELINE_MAX  # what one read may bring, and no more
        assert stand.gateway.open_requests <= 1
    await stand.until(lambda: not stand.server.connections)


async def test_pipelined_requests_are_all_answered_when_the_reader_is_slow(stand, pod):
    number = 30_000
    async with RawClient(stand.server.port, receive_buffer=4096) as client:
        (connection,) = await until_there(stand)
        client.writer.transport.pause_reading()
        sending = asyncio.ensure_future(client.send(get(b"/health") * number))
        await stand.until(lambda: connection.write_paused, 20)
        client.writer.transport.resume_reading()
        for _ in range(number):
            assert (await client.answer())[0] == 200
        await sending


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"12\r\n" + BODY + b"\r\n0\r\nx: ", b"a" * 65536),
        (b"12\r\n" + BODY + b"\r\n0\r\n", b"x: y\r\n" * 10_000),
        (b"12;a=", b"a" * 65536),
        (b"", b"0" * 65536),
    ],
    ids=["a trailer", "trailers", "a chunk's extension", "a chunk's size"],
)
async def test_framing_without_end_is_refused(stand, pod, start, more):
    async with RawClient(stand.server.port) as client:
        await client.send(request(*CHUNKED, body=start))

        async def send():
            for _ in range(10_000):
                await client.send(more)

        with pytest.raises(ConnectionError):
            await send()
    await stand.until(lambda: not stand.server.connections)
    await stand.at_rest()
    assert not pod.seen


async def until_there(stand):
    await stand.until(lambda: stand.server.connections == 1)
    return stand.server._data.connections
