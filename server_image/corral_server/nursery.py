"""The supervisor's side of the zygote: starts it, asks it for engines and renderers, learns of every child's end.

Owns the process handles. A child's end is known by the zygote's report of its exit, never by silence.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from dataclasses import dataclass, field

import orjson

from corral_server.channel import AsyncChannel
from corral_server.reasons import LOAD_FAILED, Failure
from corral_server.zygote import send_order


@dataclass
class Child:
    """A process forked from the zygote, its channel, its last words."""

    pid: int
    channel: AsyncChannel
    exited: asyncio.Future[int]
    stderr: deque[str] = field(default_factory=lambda: deque(maxlen=20))

    def kill(self) -> None:
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, 9)

    def last_words(self) -> str:
        return " | ".join(list(self.stderr)[-5:])


class Nursery:
    def __init__(self, environ: dict[str, str], threads_hint: int) -> None:
        self._environ = environ
        self._threads_hint = threads_hint
        self._process: asyncio.subprocess.Process | None = None
        self._sock: socket.socket | None = None
        self._orders: dict[int, asyncio.Future[int]] = {}
        self._children: dict[int, Child] = {}
        self._early_exits: dict[int, int] = {}
        self._next = 0
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        async with self._starting:
            if self.pid is not None and self._reader is not None and not self._reader.done():
                return
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            # Read by the libraries when they load, so they have to be there before the process is.
            env = {
                "OPENBLAS_NUM_THREADS": "1",
                "GGML_NO_BACKTRACE": "1",
                "MALLOC_ARENA_MAX": "2",
                # Large buffers in huge pages: a KV cache is cleared when it is made, and page by page that takes longer than all the rest of a load.
                "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
                **(self._environ or os.environ),
            }
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "corral_server.zygote",
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    env=env,
                )
            self._sock = ours
            ready = asyncio.get_running_loop().create_future()
            self._reader = asyncio.create_task(self._read(ours, ready))
            await ready

    async def fork(self, kind: str, *, keep: str = "") -> Child:
        """A new child; Failure when the zygote cannot give one. `keep`: a model file that the zygote opens first, once, and its children have."""
        await self.start()
        sock = self._sock
        if sock is None:
            raise Failure(LOAD_FAILED, "the process that engines are forked from is gone")
        ours, theirs = socket.socketpair()
        read_fd, write_fd = os.pipe()
        self._next += 1
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._orders[self._next] = answer
        try:
            send_order(sock, {"id": self._next, "kind": kind, "keep": keep}, [theirs.fileno(), write_fd])
        except OSError as error:
            ours.close()
            os.close(read_fd)
            raise Failure(LOAD_FAILED, f"the process that engines are forked from cannot be reached: {error}") from None
        finally:
            theirs.close()
            os.close(write_fd)
        try:
            pid = await answer
        except Failure:
            ours.close()
            os.close(read_fd)
            raise
        child = Child(pid, await AsyncChannel.open(ours), asyncio.get_running_loop().create_future())
        if pid in self._early_exits:
            child.exited.set_result(self._early_exits.pop(pid))
        else:
            self._children[pid] = child
        task = asyncio.create_task(_collect(read_fd, child.stderr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return child

    async def stop(self) -> None:
        for child in list(self._children.values()):
            child.kill()
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, sock: socket.socket, ready: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(sock, 65536):
                message = orjson.loads(data)
                kind = message["t"]
                if kind == "ready":
                    ready.set_result(None)
                elif kind == "forked":
                    self._orders.pop(message["id"]).set_result(message["pid"])
                elif kind == "refused":
                    self._orders.pop(message["id"]).set_exception(Failure(LOAD_FAILED, message["message"]))
                elif kind == "exited":
                    child = self._children.pop(message["pid"], None)
                    if child is None:
                        self._early_exits[message["pid"]] = message["code"]
                    else:
                        child.exited.set_result(message["code"])
        except OSError:
            pass
        finally:
            self._lost(ready)

    def _lost(self, ready: asyncio.Future[None]) -> None:
        """The zygote is gone, and with it, by the kernel's hand, every child."""
        gone = Failure(LOAD_FAILED, "the process that engines are forked from ended")
        if not ready.done():
            ready.set_exception(gone)
        for answer in self._orders.values():
            if not answer.done():
                answer.set_exception(gone)
        self._orders.clear()
        for child in self._children.values():
            child.kill()
            if not child.exited.done():
                child.exited.set_result(-9)
        self._children.clear()
        if self._sock is not None:
            self._sock.close()
            self._sock = None


async def _collect(fd: int, lines: deque[str]) -> None:
    """Keep the last lines of a child's stderr for the report of its end."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 16)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0))
    try:
        while True:
            try:
                line = await reader.readline()
            except ValueError:
                continue
            if not line:
                return
            lines.append(line.decode("utf-8", "replace").strip()[:500])
    finally:
        transport.close()
