"""The process that engines, renderers and decoders are forked from: llama.cpp imported, one thread, nothing ever decoded in it.

Spawned by the supervisor (`python -m corral_server.zygote FD`). It forks on request, hands the child its socket, and reports every child's end.
It must never start a thread or run a decode: a fork after either hangs the child.
"""

import array
import ctypes
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable

import orjson

from corral_server.channel import ClosedError

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, so that no engine outlives its supervisor."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main(control_fd: int) -> None:
    die_with_parent()
    control = socket.socket(fileno=control_fd)
    from corral_server import decoder, machine, renderer  # noqa: PLC0415  the imports are what a fork saves
    from corral_server.engine import kept, process  # noqa: PLC0415

    process.prepare()
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    control.send(orjson.dumps({"t": "ready"}))
    entries = {"engine": process.main, "renderer": renderer.main, "decoder": decoder.main}
    while True:
        readable, _, _ = select.select([control.fileno(), wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 4096)
            _report_children(control)
        if control.fileno() not in readable:
            continue
        data, fds, _, _ = socket.recv_fds(control, 65536, 4)
        if not data:
            return
        order = orjson.loads(data)
        if order.get("keep"):
            kept.keep(order["keep"])
        if machine.threads() != 1:
            control.send(orjson.dumps({"t": "refused", "id": order["id"], "message": "the zygote has more than one thread; a fork would hang"}))
            continue
        channel_fd, stderr_fd = fds
        pid = os.fork()
        if pid == 0:
            _child(entries[order["kind"]], control, (wake_read, wake_write), channel_fd, stderr_fd)
        os.close(channel_fd)
        os.close(stderr_fd)
        control.send(orjson.dumps({"t": "forked", "id": order["id"], "pid": pid}))


def _report_children(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        control.send(orjson.dumps({"t": "exited", "pid": pid, "code": os.waitstatus_to_exitcode(status)}))


def _child(entry: Callable[[socket.socket], None], control: socket.socket, pipes: tuple[int, int], channel_fd: int, stderr_fd: int) -> None:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent()
        control.close()
        for fd in pipes:
            os.close(fd)
        os.dup2(stderr_fd, 2)
        os.close(stderr_fd)
        entry(socket.socket(fileno=channel_fd))
        code = 0
    except ClosedError:
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def send_order(sock: socket.socket, order: dict[str, object], fds: list[int]) -> None:
    """The supervisor's half of a fork: the order and the child's descriptors in one message."""
    sock.sendmsg([orjson.dumps(order)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


if __name__ == "__main__":
    main(int(sys.argv[1]))
