"""The run directory of one `corral up`: where its lock, key, logs, estimates and notes of running processes are.

One instance owns a run directory at a time (an exclusive lock that dies with the process). This module owns the names inside it and must never start
or stop anything.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any


class RunDirBusyError(RuntimeError):
    """Another instance owns the run directory."""


def cache_root() -> Path:
    """`$CORRAL_CACHE`, or `~/.cache/corral`."""
    return Path(os.environ.get("CORRAL_CACHE") or Path.home() / ".cache" / "corral").expanduser().absolute()


def default_run_dir() -> Path:
    """`$CORRAL_RUN_DIR`, or `run` inside the cache."""
    chosen = os.environ.get("CORRAL_RUN_DIR")
    return Path(chosen).expanduser().absolute() if chosen else cache_root() / "run"


def write_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file so that a reader sees all of it or the former one."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


@dataclass(frozen=True, slots=True)
class RunDir:
    root: Path

    @property
    def key(self) -> Path:
        return self.root / "ed25519.pem"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def ports(self) -> Path:
        return self.root / "ports"

    @property
    def estimates(self) -> Path:
        return self.root / "estimates"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def processes(self) -> Path:
        """One file per live process group, so that what a killed instance left can be found."""
        return self.root / "processes"

    @property
    def admin(self) -> Path:
        """Where the running instance can be asked, and with which token."""
        return self.root / "admin.json"

    def log_of(self, pod: str) -> Path:
        return self.logs / f"{pod.replace('/', '.')}.log"

    def claim(self) -> IO[str]:
        """Own this directory until the returned file is closed or the process ends."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.logs, self.ports, self.estimates, self.secrets, self.processes):
            folder.mkdir(exist_ok=True, mode=0o700)
        lock = (self.root / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            told = self.instance() or {}
            raise RunDirBusyError(
                f"another corral up (pid {told.get('pid', 'unknown')}, {told.get('endpoint', 'still starting')}) owns {self.root}; "
                "stop it, or choose another directory with --run-dir"
            ) from None
        self.admin.unlink(missing_ok=True)  # a killed owner's; from now on its readers would be sent to nobody
        return lock

    def next_epoch(self) -> int:
        """A number that grows with every instance that owned this directory."""
        path = self.root / "epoch"
        try:
            last = int(path.read_text())
        except (OSError, ValueError):
            last = 0
        write_whole(path, f"{last + 1}\n")
        return last + 1

    def instance(self) -> dict[str, Any] | None:
        """What the running instance says of itself (`admin.json`); None when none runs."""
        try:
            told = json.loads(self.admin.read_text())
            with (self.root / "lock").open("a+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return told if isinstance(told, dict) else None
        except (OSError, ValueError):
            return None
        return None
