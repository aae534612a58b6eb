"""Process groups of server processes: started on a leash, watched by the warden, ended whole, and found again after a kill.

Three things keep a machine clean when `corral up` dies: the kernel kills each leashed process, the warden kills the groups, and the next instance
kills whatever the notes in the run directory still name. This module owns processes and must never know why one is started or ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from corral.local.rundir import RunDir, write_whole

LEASH = Path(__file__).with_name("leash.py")
WARDEN = Path(__file__).with_name("warden.py")
MARK = "CORRAL_POD_UID"  # in the environment of every process of a group, inherited by forks


class ServerMissingError(RuntimeError):
    """The server's package is not installed beside this one."""


def server_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "corral_server", *arguments]


def server_environment() -> dict[str, str]:
    """The environment that server processes start from: the user's, without our own settings, and able to import the server."""
    found = importlib.util.find_spec("corral_server")
    if found is None or found.origin is None:
        raise ServerMissingError("the package corral_server is not installed beside corral: pip install 'corral[local]'")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CORRAL_") or name == "CORRAL_HF_ENDPOINT"}
    home = str(Path(found.origin).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([home, *filter(None, [environment.get("PYTHONPATH", "")])])
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


class Warden:
    """The process that outlives us for a moment to kill what we could not."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(WARDEN)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a Ctrl-C of the terminal is ours, not its
        )

    def watch(self, group: int) -> None:
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        pipe = self._process.stdin
        if pipe is None:
            return
        with contextlib.suppress(BrokenPipeError, ValueError):
            pipe.write(line)
            pipe.flush()

    def close(self) -> None:
        """Let it kill what is left, and wait for its end."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()


class Group:
    """One process group, led by a process that we are the parent of."""

    def __init__(self, process: asyncio.subprocess.Process, warden: Warden, note: Path) -> None:
        self._process = process
        self._warden = warden
        self._note = note
        self.pid = process.pid

    @classmethod
    async def start(cls, command: Sequence[str], env: Mapping[str, str], log: Path, *, uid: str, run_dir: RunDir, warden: Warden) -> Group:
        leashed = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *command]
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *leashed, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**env, MARK: uid}, start_new_session=True
            )
        warden.watch(process.pid)
        note = run_dir.processes / str(process.pid)
        write_whole(note, json.dumps({"uid": uid}))
        return cls(process, warden, note)

    async def wait(self) -> int:
        """The leader's exit code; whatever else was in the group is killed then."""
        code = await self._process.wait()
        self.kill()
        self._warden.forget(self.pid)
        self._note.unlink(missing_ok=True)
        return code

    def terminate(self) -> None:
        """Ask the leader to end; its engine is its own to end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def kill_leftovers(run_dir: RunDir) -> int:
    """Kill what an earlier instance left behind; how many processes that were. For the owner of the run directory only."""
    noted: dict[int, str] = {}
    for note in run_dir.processes.iterdir():
        with contextlib.suppress(ValueError, KeyError):
            noted[int(note.name)] = json.loads(note.read_text())["uid"]
        note.unlink()
    killed = [process for process, uid in _marked(noted) if _kill(process)]
    psutil.wait_procs(killed, timeout=5)
    return len(killed)


def _marked(noted: Mapping[int, str]) -> Iterator[tuple[psutil.Process, str]]:
    if not noted:
        return
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            uid = noted.get(os.getpgid(process.pid))
            # A group's number may be another's by now; the mark in the environment may not.
            if uid is not None and process.environ().get(MARK) == uid:
                yield process, uid


def _kill(process: psutil.Process) -> bool:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True
