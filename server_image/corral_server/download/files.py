"""Files of the cache: where they are, who may write them now, and whether what is there is a model.

Layout: CACHE/models/KEY/NAME, beside it NAME.part while it comes, NAME.json with what is known of it, one .lock of whoever fetches and one .use
of all who use it (see `keep`). A file that has its final name is complete: it got it by a rename.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from corral_server.reasons import CHECKSUM_MISMATCH, NO_SPACE, NOT_A_GGUF, Failure

MAGIC = b"GGUF"
_BLOCK = 8 << 20


def folder(cache: Path, source: str, cache_key: str) -> Path:
    """Private sources are kept apart by their key: who cannot read a source must not find it in a shared cache."""
    digest = hashlib.sha256(f"{cache_key}\n{source}".encode()).hexdigest()[:32]
    return cache / "models" / digest


@contextlib.contextmanager
def locked(directory: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the folder's lock; two pods that share a cache do not fetch the same file twice."""
    with space_checked(directory):
        directory.mkdir(parents=True, exist_ok=True)
        handle = (directory / ".lock").open("w")
    with handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(0.2)
        yield


@contextlib.contextmanager
def space_checked(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Failure(NO_SPACE, f"the cache {where} is full: {os.statvfs(where).f_bavail * os.statvfs(where).f_frsize} bytes are free") from None
        if error.errno in (errno.EROFS, errno.EACCES):
            raise Failure(NO_SPACE, f"the cache {where} cannot be written: {error.strerror}") from None
        raise


def check_magic(file: Path, what: str) -> None:
    """Refuse what is plainly no model before anything parses it."""
    with file.open("rb") as handle:
        head = handle.read(8)
    if head[:4] != MAGIC:
        found = "an HTML page" if head.lstrip()[:1] == b"<" else f"the bytes {head[:4]!r}" if head else "an empty file"
        raise Failure(NOT_A_GGUF, f"{what} is not a GGUF file: it begins with {found}" if head else f"{what} is not a GGUF file: it is empty")
    version = struct.unpack("<I", head[4:8])[0] if len(head) == 8 else 0
    if version not in (2, 3):
        raise Failure(NOT_A_GGUF, f"{what} is a GGUF file of version {version}; versions 2 and 3 can be read")


def sha256_of(file: Path, progress: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    done = 0
    with file.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
            done += len(block)
            progress(done)
    return digest.hexdigest()


def check_sum(file: Path, expected: str, actual: str, what: str) -> None:
    if expected and expected != actual:
        raise Failure(CHECKSUM_MISMATCH, f"{what} has the sha256 {actual}; model.sha256 says {expected} ({file.stat().st_size} bytes)")
