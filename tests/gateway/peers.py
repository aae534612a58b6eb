"""What the gateway talks to in these tests: a pod that behaves, peers that do not, and a raw client. All over real sockets."""

import asyncio
import contextlib
import json
import socket

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from corral.gateway.ports import ReplicaView
from corral.tokens import TokenSigner

SIGNER = TokenSigner(Ed25519PrivateKey.generate())


class Pod:
    """A server pod with the two ports and the manners of docs/contracts.md, and an echo for a model."""

    def __init__(self, uid="pod-a", model="models/small", *, state="Loaded", hint=None):
        self.uid = uid
        self.model = model
        self.state = state
        self.hint = state if hint is None else hint
        self.admitting = state == "Loaded"
        self.progress = 0.0
        self.error = None
        self.version = 1
        self.seen = []
        self.asked = []
        """What came for responses that it keeps: method, target, headers."""
        self.polls = 0
        self.in_flight = 0
        self.served = 0
        self.refusals = 0
        self.chunks = [b'data: {"n": 1}\n\n', b'data: {"n": 2}\n\n', b"data: [DONE]\n\n"]
        self.pause = 0.0
        self.gate = None
        self.extra_headers = {}
        self._changed = asyncio.Condition()
        self._runners = []

    async def __aenter__(self):
        self.inference_port = await self._listen([web.route("*", "/{tail:.*}", self._infer)])
        self.control_port = await self._listen([web.get("/control/status", self._status)])
        return self

    async def __aexit__(self, *_):
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(self, routes):
        app = web.Application(client_max_size=1 << 30)
        app.add_routes(routes)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner.addresses[0][1]

    async def become(self, state, *, admitting=None, progress=0.0, error=None):
        async with self._changed:
            self.state = state
            self.admitting = state == "Loaded" if admitting is None else admitting
            self.progress = progress
            self.error = error
            self.version += 1
            self._changed.notify_all()

    def view(self, **changes):
        fields = {
            "model": self.model,
            "pod": self.uid,
            "uid": self.uid,
            "host": "127.0.0.1",
            "inference_port": self.inference_port,
            "control_port": self.control_port,
            "state": self.hint,
        }
        return ReplicaView(**(fields | changes))

    def _authorized(self, request):
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            jwt.decode(token, SIGNER._key.public_key(), algorithms=["EdDSA"], audience=self.uid, issuer="corral")
        except jwt.InvalidTokenError:
            return False
        return True

    async def _status(self, request):
        if not self._authorized(request):
            return web.json_response({"error": {"code": "invalid_token"}}, status=401)
        self.polls += 1
        after = request.query.get("after")
        if after is not None and int(after) == self.version:
            async with self._changed:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 30)
        return web.json_response(
            {
                "version": self.version,
                "state": self.state,
                "admitting": self.admitting,
                "progress": self.progress,
                "inFlight": self.in_flight,
                "error": self.error,
            }
        )

    async def _infer(self, request):
        if not self._authorized(request):
            return web.json_response({"error": {"code": "invalid_token", "message": "no"}}, status=401)
        if "/responses/resp_" in request.path:
            return await self._kept(request)
        if not self.admitting:
            self.refusals += 1
            return web.Response(status=503, headers={"x-corral-draining": "true", "Retry-After": "1", "Connection": "close"})
        self.in_flight += 1
        try:
            body = await request.read()
            self.seen.append((request.method, request.path_qs, request.headers.copy(), body))
            if self.gate is not None:
                await self.gate.wait()
            if request.content_type == "application/json" and body and json.loads(body).get("stream") is True:
                response = web.StreamResponse(headers={"content-type": "text/event-stream", **self.extra_headers})
                await response.prepare(request)
                for chunk in self.chunks:
                    await response.write(chunk)
                    if self.pause:
                        await asyncio.sleep(self.pause)
                await response.write_eof()
                return response
            self.served += 1
            return web.json_response({"echo": len(body), "pod": self.uid}, headers=self.extra_headers)
        finally:
            self.in_flight -= 1

    async def _kept(self, request):
        """Whatever its state, and no use of the model."""
        self.asked.append((request.method, request.raw_path, request.headers.copy()))
        if request.query.get("stream") != "true":
            return web.json_response({"pod": self.uid, "usage": {"total_tokens": 1000}}, headers=self.extra_headers)
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **self.extra_headers})
        await response.prepare(request)
        for chunk in self.chunks:
            await response.write(chunk)
            if self.gate is not None:
                await self.gate.wait()
        await response.write_eof()
        return response


class RawPod:
    """A peer that does with each connection what its script says. `script(reader, writer, number)`."""

    def __init__(self, script, uid="pod-raw", model="models/small"):
        self.script = script
        self.uid = uid
        self.model = model
        self.connections = 0
        self.open = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()

    def view(self, **changes):
        fields = {
            "model": self.model,
            "pod": self.uid,
            "uid": self.uid,
            "host": "127.0.0.1",
            "inference_port": self.port,
            "control_port": self.port,
            "state": "Loaded",
        }
        return ReplicaView(**(fields | changes))

    async def _serve(self, reader, writer):
        self.connections += 1
        self.open += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.script(reader, writer, self.connections)
        finally:
            self.open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def read_request(reader):
    """Head and body of one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    return head, await reader.readexactly(length)


class RawClient:
    """Bytes out, bytes in."""

    def __init__(self, port, *, receive_buffer=None):
        self.port = port
        self.receive_buffer = receive_buffer

    async def __aenter__(self):
        connection = socket.socket()
        if self.receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        self.reader, self.writer = await asyncio.open_connection(sock=connection, limit=1 << 24)
        return self

    async def __aexit__(self, *_):
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self):
        """Status, headers and body of one answer; the body as far as it came."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        status = int(lines[0].split()[1])
        body = b""
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while True:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                body += (await self.reader.readexactly(size + 2))[:-2]
                if not size:
                    break
        return status, headers, body


def post(path="/v1/chat/completions", body=None, headers=(), **fields):
    """The bytes of a request."""
    if body is None:
        body = json.dumps({"model": "small", "messages": [], **fields}).encode()
    lines = [f"POST {path} HTTP/1.1", "host: gateway", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
