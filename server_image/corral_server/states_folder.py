"""The folder of what one pod keeps inside a cache that pods may share: claimed by a lock, cleaned of those whose pod is gone.

What people wrote is in there: saved states, which the engine of one start makes and reads, and responses, which outlive a restart. A pod that was
killed cannot clean up; whoever starts next in the same cache does it for it.
"""

import contextlib
import fcntl
import os
import shutil
from pathlib import Path


class StatesFolder:
    def __init__(self, cache: Path, pod: str) -> None:
        self._root = cache / "states"
        self.path = self._root / (pod or "pod")
        self.responses = self.path / "responses"
        self._lock = -1

    def claim(self) -> None:
        """Make it ours, without the states of an earlier start; remove what dead pods left."""
        with contextlib.suppress(OSError):
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _try_lock(self._lock_of(self.path))
            for old in self.path.iterdir() if self.path.is_dir() else ():
                if old != self.responses:
                    _remove(old)
            for other in self._root.iterdir():
                if other.is_dir() and other != self.path:
                    self._remove_if_dead(other)

    def release(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            self._lock_of(self.path).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def _remove_if_dead(self, folder: Path) -> None:
        lock = self._lock_of(folder)
        fd = _try_lock(lock)
        if fd >= 0:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
            os.close(fd)

    @staticmethod
    def _lock_of(folder: Path) -> Path:
        return folder.with_name(folder.name + ".lock")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _try_lock(path: Path) -> int:
    """The descriptor that holds the lock, or -1: somebody alive has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return -1
    return fd
