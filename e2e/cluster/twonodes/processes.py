"""Starting the cluster's processes, and finding and stopping them by the mark that each carries."""

import contextlib
import os
import signal
import subprocess
import time
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


def recorded(state: Path, name: str) -> int:
    return int((state / "pids" / name).read_text())


def members(state: Path) -> dict[int, str]:
    """Every living process with our mark, by id, with its program's name; containers are not among them (they hold no such variable)."""
    mark = f"{MEMBER}={state}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in _environment(entry).split(b"\0"):
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


def _environment(process: Path) -> bytes:
    """It reads as empty for a moment while a process becomes another program (`exec`); one that has a program is asked again."""
    for _ in range(20):
        if text := (process / "environ").read_bytes():
            return text
        (process / "exe").readlink()  # OSError: it has ended, or is the kernel's own
        time.sleep(0.001)
    return b""


def all_recorded_alive(state: Path) -> bool:
    alive = members(state)
    recorded = [int(file.read_text()) for file in (state / "pids").iterdir()] if (state / "pids").is_dir() else []
    return bool(recorded) and all(pid in alive for pid in recorded)


def stop(state: Path, patience: float = 10) -> None:
    """Kills every member until none is left: nothing of the cluster is kept, so nothing needs a farewell."""
    end = time.monotonic() + patience
    while found := members(state):
        if time.monotonic() > end:
            raise ClusterError(f"these processes do not end: {found}")
        for pid in found:
            send(pid, signal.SIGKILL)
        time.sleep(0.02)


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
