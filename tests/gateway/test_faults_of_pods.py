"""Pods that misbehave. Each case ends in the right status or a cut stream, and the stand's teardown asserts that nothing was leaked."""

import asyncio
import contextlib
import json

import pytest
from tests.gateway.conftest import model
from tests.gateway.peers import Pod, RawClient, RawPod, post, read_request

from corral.gateway.pods import ConnectFailed
from corral.gateway.settings import GatewaySettings

LOCAL = {"host": "127.0.0.1", "port": 0, "admin_host": "127.0.0.1", "admin_port": 0}
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def says(*pieces, pause=0.0, linger=False):
    """A script: read one request, write the pieces, and close."""

    async def script(reader, writer, _):
        await read_request(reader)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        if linger:
            await reader.read()

    return script


@contextlib.asynccontextmanager
async def pod_of(stand, script):
    async with RawPod(script) as pod:
        stand.directory.put_model(model(state="Loaded"))
        stand.directory.put_replica(pod.view())
        yield pod
        await stand.at_rest()
        await stand.until(lambda: stand.gateway.upstream.open_connections <= 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTT",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"hello, I am not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-pad: " + b"a" * 70_000 + b"\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    ],
    ids=["nothing", "three-bytes", "inside-headers", "not-http", "two-lengths", "length-and-chunked", "negative", "huge-headers", "upgrade"],
)
async def test_no_answer_is_a_502_and_is_never_sent_again(stand, answer):
    async with pod_of(stand, says(answer)) as pod:
        status, headers, body = await stand.chat()
        assert (status, json.loads(body)["error"]["code"], headers["x-should-retry"]) == (502, "upstream_failed", "false")
        assert pod.connections == 1


@pytest.mark.parametrize(
    "pieces",
    [
        (b"content-length: 10\r\n\r\n", b"{}"),
        (b"transfer-encoding: chunked\r\n\r\n", b"2\r\n{}\r\n"),
        (b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", b"zz\r\n"),
        (b"transfer-encoding: chunked\r\n\r\n2\r\n{}", b"XX0\r\n\r\n"),
    ],
    ids=["short", "no-end", "bad-size", "bad-chunk"],
)
async def test_an_answer_that_breaks_off_is_cut_and_never_looks_whole(stand, pieces):
    async with pod_of(stand, says(b"HTTP/1.1 200 OK\r\n", *pieces, pause=0.05)) as pod, RawClient(stand.server.port) as client:
        await client.send(post())
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.answer()
        assert pod.connections == 1


@pytest.mark.parametrize(
    ("path", "start"),
    [("/v1/chat/completions", b'data: {"error"'), ("/v1/messages", b"event: error\n"), ("/v1/responses", b"event: error\n")],
)
@pytest.mark.parametrize("rest", [b"", b"zz\r\n"])
async def test_a_stream_that_breaks_off_ends_with_an_error_event(stand, path, start, rest):
    script = says(STREAM, b"9\r\ndata: x\n\n\r\n", b"6\r\ndata: \r\n", rest, pause=0.02)
    async with pod_of(stand, script), RawClient(stand.server.port) as client:
        await client.send(post(path, stream=True))
        status, _, body = await client.answer()
        events = body.split(b"\n\n")
        assert (status, events[0], events[1]) == (200, b"data: x", b"data: ")
        assert events[2].startswith(start)
        assert b"upstream_failed" in events[2]


async def test_headers_byte_by_byte_end_at_the_first_byte_limit(stand_up):
    stand = await stand_up(GatewaySettings(**LOCAL, first_byte_timeout=0.3))
    async with pod_of(stand, says(*(bytes((byte,)) for byte in OK), pause=0.05)):
        status, _, body = await stand.chat()
        assert (status, json.loads(body)["error"]["code"]) == (504, "upstream_timeout")


async def test_silence_inside_a_stream_ends_at_the_idle_limit(stand_up):
    stand = await stand_up(GatewaySettings(**LOCAL, idle_timeout=0.2))
    async with pod_of(stand, says(STREAM + b"9\r\ndata: x\n\n\r\n", linger=True)):
        status, _, body = await stand.chat(stream=True)
        assert (status, body.startswith(b"data: x\n\n"), b"upstream_timeout" in body) == (200, True, True)


async def test_connecting_has_its_own_limit(stand_up):
    stand = await stand_up(GatewaySettings(**LOCAL, connect_timeout=0.2))
    with contextlib.ExitStack() as stack:
        import socket

        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        fillers = []
        for _ in range(4):  # a full backlog: further connections are neither taken nor refused
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
            fillers.append(filler)
        async with Pod("pod-b") as pod:
            stand.directory.put_model(model(state="Loaded"))
            stand.directory.put_replica(pod.view(uid="pod-deaf", pod="pod-deaf", inference_port=deaf.getsockname()[1]))
            asked = asyncio.ensure_future(stand.chat())
            await stand.until(lambda: stand.gateway.machine.waiting() == 1)  # it was not sent, so it may go elsewhere
            stand.directory.put_replica(pod.view())
            assert (await asked)[0] == 200


async def test_a_stale_connection_is_replaced_once(stand):
    async def script(reader, writer, number):
        await read_request(reader)
        if number != 3:
            writer.write(OK)
        if number == 1:
            await read_request(reader)  # takes the second request, and closes without a byte

    async with pod_of(stand, script) as pod:
        assert (await stand.chat())[0] == 200
        assert (await stand.chat())[0] == 200
        assert (pod.connections, stand.gateway.upstream.retries) == (2, 1)
        await stand.until(lambda: not stand.gateway.upstream.open_connections)
        assert (await stand.chat())[0] == 502
        assert (pod.connections, stand.gateway.upstream.retries) == (3, 1)


async def test_a_client_that_leaves_while_a_stale_connection_is_replaced(stand, monkeypatch):
    async def script(reader, writer, _number):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1")
        await reader.readuntil(b"\r\n\r\n")

    refuse = asyncio.Event()

    async def connect(target):
        await refuse.wait()
        raise ConnectFailed("no")

    async with RawPod(script) as pod:
        stand.directory.put_model(model(state="Loaded"))
        stand.directory.put_replica(pod.view())
        async with RawClient(stand.server.port) as client:
            await client.send(post())
            await client.answer()
            monkeypatch.setattr(stand.gateway.upstream, "connect", connect)
            await client.send(post())
            await stand.until(lambda: stand.gateway.upstream.retries == 1)
        await asyncio.sleep(0.05)
        refuse.set()
        await stand.at_rest()


async def test_a_reused_connection_that_gave_a_byte_is_not_replaced(stand):
    async def script(reader, writer, _):
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        writer.write(b"H")

    async with pod_of(stand, script) as pod:
        assert (await stand.chat())[0] == 200
        assert (await stand.chat())[0] == 502
        assert pod.connections == 1


@pytest.mark.parametrize("extra", [OK, b"garbage", b"HTTP/1.1 200 OK\r\n"])
async def test_bytes_after_an_answer_never_become_the_next_one(stand, extra):
    async def script(reader, writer, number):
        await read_request(reader)
        mine = b'{"n": %d}' % number
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(mine) + mine + extra)
        await reader.read()

    async with pod_of(stand, script) as pod:
        for number in (1, 2, 3):
            status, _, body = await stand.chat()
            assert (status, json.loads(body)) == (200, {"n": number})
        assert pod.connections == 3


async def test_bytes_that_come_while_idle_close_the_connection(stand):
    async def script(reader, writer, number):
        await read_request(reader)
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.02)
        if number == 1:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await reader.read()

    async with pod_of(stand, script) as pod:
        assert (await stand.chat())[2] == b"{}"
        await stand.until(lambda: not stand.gateway.upstream.open_connections)
        assert (await stand.chat())[2] == b"{}"
        assert pod.connections == 2


async def test_interim_answers_are_passed_over(stand):
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    async with pod_of(stand, says(interim + OK)):
        status, headers, body = await stand.chat()
        assert (status, body, "link" in headers) == (200, b"{}", False)


async def test_an_answer_that_ends_with_its_connection(stand):
    async with pod_of(stand, says(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n", b"one ", b"two", pause=0.01)):
        status, _, body = await stand.chat()
        assert (status, body) == (200, b"one two")


async def test_an_answer_without_a_body(stand):
    async with pod_of(stand, says(b"HTTP/1.1 204 No Content\r\n\r\n", linger=True)):
        assert (await stand.chat())[0] == 204


async def test_a_half_closed_pod_may_still_be_read(stand):
    async def script(reader, writer, _):
        await read_request(reader)
        writer.write(OK)
        writer.write_eof()
        await reader.read()

    async with pod_of(stand, script):
        assert (await stand.chat())[2] == b"{}"


async def test_repeated_headers_pass_and_hop_by_hop_ones_do_not(stand):
    answer = (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-a: 1\r\nx-a: 2\r\nconnection: x-secret\r\nx-secret: 1\r\n"
        b"keep-alive: timeout=5\r\nx-request-id: pods\r\n\r\n{}"
    )
    async with pod_of(stand, says(answer)):
        status, headers, _ = await stand.chat(headers={"x-request-id": "mine"})
        assert (status, headers.getall("x-a"), headers.getall("x-request-id")) == (200, ["1", "2"], ["mine"])
        assert not {"x-secret", "keep-alive"} & {name.lower() for name in headers}


async def test_a_pods_own_errors_pass_unchanged(stand):
    body = b'{"error": {"code": "overloaded"}}'
    answer = b"HTTP/1.1 503 Busy\r\nretry-after: 3\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    async with pod_of(stand, says(answer)):
        status, headers, got = await stand.chat()
        assert (status, headers["retry-after"], got) == (503, "3", body)


async def test_an_early_answer_ends_the_upload(stand):
    async def script(reader, writer, _):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.1)

    async with pod_of(stand, script), RawClient(stand.server.port) as client:
        await client.send(post(text="x" * 20_000_000))
        assert (await client.answer())[0] == 413


async def test_a_killed_pod_gives_its_unanswered_request_back_when_it_is_known_to_go(stand):
    asked = asyncio.Event()
    kill = asyncio.Event()

    async def script(reader, writer, _):
        await read_request(reader)
        asked.set()
        await kill.wait()

    async with Pod("pod-b", state="Sleeping") as heir, pod_of(stand, script) as pod:
        answer = asyncio.ensure_future(stand.chat())
        await asked.wait()
        stand.directory.put_replica(pod.view(deleting=True))
        kill.set()
        await stand.until(lambda: stand.gateway.machine.waiting() == 1)
        stand.directory.put_replica(heir.view())
        await heir.become("Loaded")
        assert (await answer)[0] == 200


async def test_a_stopped_reader_stops_the_pod_and_costs_no_memory(stand):
    written = 0

    async def script(reader, writer, _):
        nonlocal written
        await read_request(reader)
        writer.write(STREAM)
        piece = b"data: " + b"x" * 65_528 + b"\n\n"
        while True:
            writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await writer.drain()
            written += len(piece)

    async with pod_of(stand, script) as pod:
        async with RawClient(stand.server.port, receive_buffer=4096) as client:
            await client.send(post(stream=True))
            await client.reader.readuntil(b"\r\n\r\n")
            client.writer.transport.pause_reading()
            before = -1
            while before != written:
                before = written
                await asyncio.sleep(0.2)
            (connection,) = stand.gateway.upstream._active
            assert connection.paused
            (reader,) = stand.server._data.connections
            assert reader.transport.get_write_buffer_size() < 1 << 20
            assert written < 32 << 20  # what the kernel's buffers take
        await stand.until(lambda: pod.open == 0)


async def test_many_requests_share_few_connections(stand):
    async def script(reader, writer, _):
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await read_request(reader)
                writer.write(OK)

    async with pod_of(stand, script) as pod:
        for _ in range(50):
            assert (await stand.chat())[0] == 200
        assert pod.connections == 1
        await asyncio.gather(*(stand.chat() for _ in range(20)))
        assert pod.connections <= 20
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(stand.chat())
        assert pod.connections <= 20
        stand.gateway.upstream.close()


async def test_idle_connections_are_given_up_before_the_pod_does(stand_up):
    stand = await stand_up(GatewaySettings(**LOCAL, pool_idle=0.1))
    async with pod_of(stand, says(OK, linger=True)) as pod:
        assert (await stand.chat())[0] == 200
        await stand.until(lambda: pod.open == 0)
        assert stand.gateway.upstream.open_connections == 0
