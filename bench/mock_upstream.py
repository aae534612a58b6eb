"""A pod that costs as little as Python can: answers at once with 1 KB of JSON, or streams events at a fixed pace. Prints its port.

`python bench/mock_upstream.py [--chunks 64] [--every 0.01]`
"""

import argparse
import asyncio

import httptools
import uvloop

ANSWER = b'{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"' + b"a" * 880 + b'"}}]}'
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER
MODELS = b'{"object":"list","data":[{"id":"bench","object":"model","created":1,"owned_by":"x"}]}'
LISTED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(MODELS) + MODELS
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"bench","choices":[{"index":0,"delta":{"content":" token"}}]}\n\n'
)
CHUNK = b"%x\r\n" % len(EVENT) + EVENT + b"\r\n"
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Pod(asyncio.Protocol):
    def __init__(self, loop, chunks, every):
        self.loop, self.chunks, self.every = loop, chunks, every
        self.parser = httptools.HttpRequestParser(self)
        self.timer = None

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, _):
        if self.timer:
            self.timer.cancel()

    def on_message_begin(self):
        self.body = b""

    def on_url(self, url):
        self.url = url

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        if self.parser.get_method() == b"GET":
            self.transport.write(LISTED)
        elif b'"stream":true' in self.body:
            self.transport.write(HEAD)
            self.left = self.chunks
            self.step()
        else:
            self.transport.write(WHOLE)

    def step(self):
        if not self.left:
            self.transport.write(END)
            return
        self.left -= 1
        self.transport.write(CHUNK)
        self.timer = self.loop.call_later(self.every, self.step)

    def data_received(self, data):
        self.parser.feed_data(data)


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--every", type=float, default=0.01)
    options = parser.parse_args()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Pod(loop, options.chunks, options.every), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


uvloop.run(main())
