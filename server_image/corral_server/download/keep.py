"""What the cache keeps: its limit in bytes, who uses a file, and which files go when room is needed.

Whoever uses a file holds a shared lock on its folder's `.use`, for as long as it may still map it; whoever deletes a folder holds that lock alone.
The kernel gives locks back when a process ends, however it ends, and they reach across the pods of a node. Room is made and promised under one
lock of the whole cache, so that two that fill it at once cannot both be promised the same bytes. It never deletes what is in use.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from corral_server.download.notes import read_notes, write_notes
from corral_server.reasons import NO_SPACE, Failure

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
USE = ".use"
LOCK = ".lock"
_ROOM = ".room"
_TRASH = ".trash-"
_KEYS = 256
"""How many of its files a cache tells of, the last used ones."""


@dataclass(frozen=True)
class Use:
    """Keeps a folder from being deleted until it is dropped or its process ends."""

    directory: Path
    handle: BinaryIO

    def touch(self) -> None:
        """It is used now: whoever looks for room takes others first."""
        with contextlib.suppress(OSError):
            os.utime(self.handle.fileno())

    def drop(self) -> None:
        self.handle.close()


def use(directory: Path) -> Use:
    """Announce the use of a folder, there or not there yet."""
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = (directory / USE).open("ab")
        except FileNotFoundError:
            continue  # it was deleted between the two steps
        except FileExistsError:
            if _is_no_folder(directory):
                raise
            continue  # `mkdir` found it there, and it was deleted before `mkdir` looked what it is
        fcntl.flock(handle, fcntl.LOCK_SH)
        if _is_still(directory / USE, handle):
            found = Use(directory, handle)
            found.touch()
            return found
        handle.close()


def _is_no_folder(path: Path) -> bool:
    """Whether something else has its name now; asked once, so that nothing can change in between."""
    try:
        return not stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _is_still(path: Path, handle: BinaryIO) -> bool:
    """Whether the locked file is the one that others find by this name."""
    try:
        return path.stat().st_ino == os.fstat(handle.fileno()).st_ino
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class Entry:
    """One folder of the cache."""

    directory: Path
    stored: int  # bytes that are there
    promised: int  # bytes that it will have when what comes is there
    used: float  # when it was used last
    complete: bool


def entries(cache: Path) -> list[Entry]:
    """What is there, the least recently used first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for directory in (cache / "models").iterdir():
            with contextlib.suppress(OSError):
                if directory.is_dir() and not directory.name.startswith("."):
                    found.append(_entry(directory))
    return sorted(found, key=lambda entry: entry.used)


def _entry(directory: Path) -> Entry:
    stored = promised = 0
    complete = False
    newest = directory.stat().st_mtime
    for file in directory.iterdir():
        # A file may come to its end, and lose its `.part`, while we look.
        with contextlib.suppress(FileNotFoundError):
            size = file.stat().st_size
            if file.name in (USE, LOCK):
                newest = file.stat().st_mtime if file.name == USE else newest
                continue
            stored += size
            total = read_notes(file).get("total", 0) if file.suffix == ".part" else 0
            promised += max(size, total if isinstance(total, int) else 0)
            complete = complete or file.suffix not in (".part", ".json")
    return Entry(directory, stored, promised, newest, complete)


def keys(cache: Path) -> tuple[str, ...]:
    """The names of the folders that have a complete file, sorted; at most the 256 that were used last."""
    return tuple(sorted(entry.directory.name for entry in entries(cache)[-_KEYS:] if entry.complete))


@contextlib.contextmanager
def _planning(cache: Path) -> Iterator[None]:
    root = cache / "models"
    root.mkdir(parents=True, exist_ok=True)
    with (root / _ROOM).open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in root.glob(f"{_TRASH}*"):  # by somebody who was killed at it
            shutil.rmtree(left, ignore_errors=True)
        yield


def promise(cache: Path, limit: int, part: Path, total: int, what: str) -> None:
    """Room for `part`, which will have `total` bytes; Failure, with the bytes, when files in use leave none. `limit` 0: only the disk's own."""
    with _planning(cache):
        while True:
            others = [entry for entry in entries(cache) if entry.directory != part.parent]
            mine = sum(file.stat().st_size for file in part.parent.iterdir() if file != part)
            have = part.stat().st_size if part.exists() else 0
            taken = mine + sum(_counted(entry) for entry in others)
            coming = sum(_counted(entry) - entry.stored for entry in others)
            free = free_bytes(cache)
            over = max(taken + total - limit if limit else 0, coming + total - have - free)
            if over <= 0:
                write_notes(part, {**read_notes(part), "total": total})
                return
            if not _delete_oldest(others):
                raise Failure(NO_SPACE, _no_room(cache, limit, part, total, what, taken, free))


def _counted(entry: Entry) -> int:
    # What nobody fetches any more will not grow.
    return entry.promised if entry.promised == entry.stored or in_use(entry.directory) else entry.stored


def _no_room(cache: Path, limit: int, part: Path, total: int, what: str, taken: int, free: int) -> str:
    have = part.stat().st_size if part.exists() else 0
    bound = f"its limit is {limit} bytes, of which files in use or on their way take {taken}" if limit else f"files in use take {taken} bytes"
    return f"{what} has {total} bytes and there is no room for it in the cache {cache}: {bound}; {free + have} bytes of the disk are free"


def make_room(cache: Path, part: Path) -> bool:
    """The disk was full before it was expected to be: delete the least recently used folder that nobody uses. False: there is none."""
    with _planning(cache):
        return _delete_oldest([entry for entry in entries(cache) if entry.directory != part.parent])


def free_bytes(cache: Path) -> int:
    found = os.statvfs(cache)
    return found.f_bavail * found.f_frsize


def in_use(directory: Path) -> bool:
    try:
        with (directory / USE).open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _delete_oldest(candidates: list[Entry]) -> bool:
    return any(_delete(entry.directory) for entry in candidates if entry.stored)


def _delete(directory: Path) -> bool:
    """False: somebody uses it, or it may not be deleted."""
    try:
        with (directory / USE).open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # All of it at once: who comes now begins with an empty folder, and never sees half of this one.
            trash = directory.with_name(f"{_TRASH}{uuid.uuid4().hex}")
            directory.rename(trash)
    except OSError:
        return False
    shutil.rmtree(trash, ignore_errors=True)
    return True
