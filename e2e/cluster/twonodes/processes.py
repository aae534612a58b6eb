"""Starting the cluster's processes, and finding and stopping them by the mark that each carries."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from twonodes.state import MEMBER, ClusterError


def start(state: Path, name: str, command: list[str], environment: dict[str, str] | None = None) -> None:
    """Starts `command` in a session of its own, its output in `logs/<name>.log`, its process id in `pids/<name>`."""
    for folder in ("logs", "pids"):
        (state / folder).mkdir(exist_ok=True)
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    with (state / "logs" / f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=state,
            env=kept | {MEMBER: str(state)} | (environment or {}),
        )
    (state / "pids" / name).write_text(f"{process.pid}\n")


def members(state: Path) -> dict[int, str]:
    """Every living process with our mark, by id, with its program's name; containers are not among them (they hold no such variable)."""
    mark = f"{MEMBER}={state}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


def all_recorded_alive(state: Path) -> bool:
    alive = members(state)
    recorded = [int(file.read_text()) for file in (state / "pids").iterdir()] if (state / "pids").is_dir() else []
    return bool(recorded) and all(pid in alive for pid in recorded)


def stop(state: Path, patience: float = 5) -> None:
    """Kubelets first, so that nothing is started again; then the rest, then the shims; whoever does not go is killed."""
    _end(members(state), lambda name: name == "kubelet", patience)
    _end(members(state), lambda name: not name.startswith("containerd-shim"), patience)
    for pid in members(state):
        send(pid, signal.SIGKILL)
    end = time.monotonic() + patience
    while members(state):
        if time.monotonic() > end:
            raise ClusterError(f"these processes do not end: {members(state)}")
        for pid in members(state):
            send(pid, signal.SIGKILL)
        time.sleep(0.05)


def _end(found: dict[int, str], chosen: Callable[[str], bool], patience: float) -> None:
    pids = [pid for pid, name in found.items() if chosen(name)]
    for pid in pids:
        send(pid, signal.SIGTERM)
    end = time.monotonic() + patience
    while pids and time.monotonic() < end:
        time.sleep(0.02)
        pids = [pid for pid in pids if alive(pid)]
    for pid in pids:
        send(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether it still runs; a zombie that waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
