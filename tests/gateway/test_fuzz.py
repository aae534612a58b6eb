"""Thousands of requests that are nearly right, each on a connection of its own: whatever comes in, what reaches the pod is HTTP that another parser
reads in the same way, every answer is whole and documented, and nothing is left over.

`CORRAL_FUZZ=10000` runs more of them; `CORRAL_FUZZ_SEED` others.
"""

import asyncio
import hashlib
import json
import os
import random

import h11
import pytest
from tests.gateway.conftest import model
from tests.gateway.peers import RawClient, RawPod

from corral.gateway.settings import GatewaySettings

ROUNDS = int(os.environ.get("CORRAL_FUZZ", "1000"))
SEED = int(os.environ.get("CORRAL_FUZZ_SEED", "1"))
DOCUMENTED = {200, 400, 404, 405, 408, 413, 415, 431}
CHAT = {"model": "small", "messages": [{"role": "user", "content": "h\u00e9llo"}], "max_tokens": 3}
BOUNDARY = b"----b1"
KEPT = b"resp_" + hashlib.blake2b(b"pod-raw", digest_size=8).hexdigest().encode() + b"0" * 24
FORM = b"\r\n".join(
    (
        b"--" + BOUNDARY, b'Content-Disposition: form-data; name="file"; filename="a.wav"', b"Content-Type: audio/wav", b"", b"RIFF\x00\xff",
        b"--" + BOUNDARY, b'Content-Disposition: form-data; name="model"', b"", b"small", b"--" + BOUNDARY + b"--", b"",
    )
)  # fmt: skip
WORDS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"\xff", b"%00", b"%2f", b"..", b"#", b"?", b";", b",", b'"', b"{", b"[" * 3000, b"}",
    b"Transfer-Encoding: chunked\r\n", b"transfer-encoding: gzip, chunked\r\n", b"Content-Length: 0\r\n", b"content-length: 999999999\r\n",
    b"Content-Length: 5\r\n", b"Host: y\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n",
    b"Expect: 100-continue\r\n", b"x-corral-adapter: evil\r\n", b"x-corral-served-name: evil\r\n", b"content-encoding: gzip\r\n", b"0\r\n\r\n",
    b"ffffffffffffffff", b"-1", b"1e9", b"HTTP/1.0", b"HTTP/2.0", b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n\r\n", b'"model"', b'"stream": true',
    b"\xed\xa0\x80", b"\\ud800", b"http://evil/", b"a" * 70_000, b"1\r\na\r\n", b"null", b"1" * 400, b"Origin: http://localhost\r\n",
]  # fmt: skip


def whole(first, body, kind=b"application/json", *, chunks=None):
    head = first + b" HTTP/1.1\r\nHost: gateway\r\nContent-Type: " + kind + b"\r\nUser-Agent: fuzz\r\n"
    if chunks is None:
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    pieces = [body[at : at + chunks] for at in range(0, len(body), chunks)]
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces) + b"0\r\n\r\n"


def seeds():
    chat, streamed = json.dumps(CHAT).encode(), json.dumps({**CHAT, "stream": True}).encode()
    yield whole(b"POST /v1/chat/completions", chat)
    yield whole(b"POST /v1/chat/completions", streamed)
    yield whole(b"POST /v1/chat/completions?autoload=1", chat, chunks=7)
    yield whole(b"POST /v1/messages", streamed, chunks=1000)
    yield whole(b"POST /v1/responses", chat) + whole(b"POST /tokenize", chat)
    yield whole(b"POST /v1/audio/transcriptions", FORM, b"multipart/form-data; boundary=" + BOUNDARY)
    yield whole(b"POST /models/load", b'{"model": "small"}')
    for path in (b"/v1/models", b"/v1/models/small", b"/models", b"/props", b"/slots?model=small", b"/health", b"/"):
        yield b"GET " + path + b" HTTP/1.1\r\nHost: gateway\r\n\r\n"
    for method, rest in ((b"GET", b"?include[]=x"), (b"DELETE", b""), (b"POST", b"/cancel"), (b"GET", b"/input_items?limit=2")):
        yield method + b" /v1/responses/" + KEPT + rest + b" HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n"
    yield b"OPTIONS * HTTP/1.1\r\nHost: gateway\r\n\r\n"
    yield b"GET /v1/models HTTP/1.0\r\n\r\n"


def mutate(data, chance):
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        at = chance.randrange(len(data) + 1) if data else 0
        match chance.randrange(8):
            case 0:
                data[at:at] = chance.choice(WORDS)
            case 1:
                del data[at : at + chance.choice((1, 2, 10, 100))]
            case 2 if at < len(data):
                data[at] = chance.randrange(256)
            case 3:
                data[at:at] = data[at : at + chance.choice((1, 5, 50))]
            case 4:  # a line twice, or elsewhere
                lines = bytes(data).split(b"\r\n")
                lines.insert(chance.randrange(len(lines)), chance.choice(lines))
                data = bytearray(b"\r\n".join(lines))
            case 5:  # a whole line of a header's
                ends = [place for place in range(len(data)) if data.startswith(b"\r\n", place)]
                if ends:
                    place = chance.choice(ends) + 2
                    data[place:place] = chance.choice(WORDS)
            case 6:
                del data[at:]
            case 7 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
    return bytes(data)


class StrictPod:
    """Reads with h11 what the gateway sends, and answers; anything that h11 does not take is a fault of the gateway."""

    def __init__(self):
        self.faults = []
        self.seen = 0

    async def __call__(self, reader, writer, _number):
        peer = h11.Connection(h11.SERVER)
        headers: dict[bytes, bytes] = {}
        body = b""
        while True:
            try:
                event = peer.next_event()
            except h11.RemoteProtocolError as error:
                if not writer.is_closing():
                    self.faults.append(f"{error}: {bytes(peer.trailing_data[0])[:200]!r}")
                return
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                if not data and peer.their_state is not h11.IDLE:
                    return  # the client left in the middle, and so did the gateway
                peer.receive_data(data)
            elif isinstance(event, h11.Request):
                names = [name for name, _ in event.headers]
                headers, body = dict(event.headers), b""
                if {b"x-corral-adapter", b"cookie", b"transfer-encoding", b"upgrade", b"origin"} & headers.keys() or len(names) != len(set(names)):
                    doubled = {name for name in names if names.count(name) > 1}
                    if doubled & {b"host", b"content-length", b"authorization", b"x-corral-served-name"} or not doubled:
                        self.faults.append(f"headers {names}")
                if headers.get(b"x-corral-served-name", b"small") != b"small":
                    self.faults.append("a served name of the client's")
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self.seen += 1
                await self._answer(writer, peer, body, headers)
                peer.start_next_cycle()
            else:
                return

    @staticmethod
    async def _answer(writer, peer, body, headers):
        streamed = b'"stream": true' in body
        kind = b"text/event-stream" if streamed else b"application/json"
        text = [b"data: {}\n\n", b"data: [DONE]\n\n"] if streamed else [b'{"ok": true}']
        framing = (b"transfer-encoding", b"chunked") if streamed else (b"content-length", b"%d" % len(text[0]))
        writer.write(peer.send(h11.Response(status_code=200, headers=[(b"content-type", kind), framing])))
        for piece in text:
            writer.write(peer.send(h11.Data(data=piece)))
        writer.write(peer.send(h11.EndOfMessage()))
        await writer.drain()


def statuses_of(data, sent):
    """Of every answer, read by h11 as a client that sent one request for each; every one must be whole."""
    found = []
    peer = h11.Connection(h11.CLIENT)
    heads = [line for line in sent.split(b"\r\n") if line.startswith(b"HEAD ")]
    while data:
        peer = h11.Connection(h11.CLIENT)
        peer.send(h11.Request(method="HEAD" if heads else "POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
        peer.send(h11.EndOfMessage())
        peer.receive_data(data)
        status = 0
        while True:
            event = peer.next_event()
            if event is h11.NEED_DATA:
                peer.receive_data(b"")
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.EndOfMessage):
                break
        found.append(status)
        data = peer.trailing_data[0]
    return found


@pytest.mark.timeout(900)
async def test_mutated_requests(stand_up):
    # A client that means nothing more says so by waiting: an end of its own would count as having left.
    limits = {"header_timeout": 0.4, "body_timeout": 0.4, "keep_alive": 0.4}
    stand = await stand_up(GatewaySettings(host="127.0.0.1", port=0, admin_host="127.0.0.1", admin_port=0, grace=2, **limits))
    pod = StrictPod()
    chance = random.Random(SEED)
    sources = list(seeds())
    counts: dict[int, int] = {}
    async with RawPod(pod) as peer:
        stand.directory.put_model(model(state="Loaded"))
        stand.directory.put_replica(peer.view())
        gate = asyncio.Semaphore(64)

        async def one(data):
            async with gate, RawClient(stand.server.port) as client:
                client.writer.write(data)
                async with asyncio.timeout(20):
                    answer = await client.reader.read()
                try:
                    found = statuses_of(answer, data)
                except h11.RemoteProtocolError as error:
                    raise AssertionError(f"{data!r} was answered with {answer!r}: {error}") from error
                assert set(found) <= DOCUMENTED, (found, data, answer)
                for status in found:
                    counts[status] = counts.get(status, 0) + 1

        for _ in range(0, ROUNDS, 200):
            await asyncio.gather(*(one(mutate(chance.choice(sources), chance)) for _ in range(200)))
            await stand.at_rest()
            assert not pod.faults, pod.faults[:3]
        await stand.until(lambda: not stand.server.connections)
        assert counts[200]
        assert counts[400]
        assert pod.seen
