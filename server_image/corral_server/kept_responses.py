"""Answers of the responses API that may be asked for again: files in this pod's folder, bounded in bytes, the least recently used go first.

An id tells which pod keeps it, so that a gateway finds it there. It knows nothing of HTTP or of what is in a record, and never lets a full or broken
disk fail an answer: what cannot be kept is not kept. Calls block on the disk: not for the event loop.
"""

import contextlib
import hashlib
import logging
import os
import re
import secrets
import tempfile
import threading
from pathlib import Path
from typing import Any

import orjson

LIMIT = 64 << 20
"""Bytes of all records together."""
LARGEST = 16 << 20
"""Bytes of one."""
_ID = re.compile(r"resp_([0-9a-f]{40})")
_ITEM = re.compile(r"[a-z]{2,4}_([0-9a-f]{40})[0-9a-f]{4}")
log = logging.getLogger("corral.server")


def tag_of(pod: str) -> str:
    """The digits with which the ids of a pod's responses begin; the gateway makes the same of the pod's uid."""
    return hashlib.blake2b(pod.encode(), digest_size=8).hexdigest()


def item_id(kind: str, response: str, number: int) -> str:
    """The id of an item of a response, which leads to that response. Below 0x8000 they count what was answered, above what was asked."""
    return f"{kind}_{response.removeprefix('resp_')}{number:04x}"


def response_of(item: str) -> str | None:
    """The id of the response that an item belongs to; None for an id of somebody else's making."""
    found = _ITEM.fullmatch(item)
    return f"resp_{found[1]}" if found else None


class KeptResponses:
    def __init__(self, folder: Path, pod: str, limit: int = LIMIT) -> None:
        self._folder = folder
        self._tag = tag_of(pod)
        self._limit = limit
        self._lock = threading.Lock()
        self._sizes: dict[str, int] | None = None
        """Bytes by id, the least recently used first; None before anybody asked."""

    def new_id(self) -> str:
        return f"resp_{self._tag}{secrets.token_hex(12)}"

    def put(self, name: str, record: dict[str, Any]) -> bool:
        """Whether it is kept."""
        data = orjson.dumps(record)
        if len(data) > min(LARGEST, self._limit):
            return False
        with self._lock:
            sizes = self._known()
            sizes.pop(name, None)
            total = sum(sizes.values()) + len(data)
            for oldest in list(sizes):
                if total <= self._limit:
                    break
                total -= sizes[oldest]
                self._forget(oldest)
            try:
                self._write(name, data)
            except OSError as error:
                log.warning("a response is not kept: %s", error.strerror)
                return False
            sizes[name] = len(data)
        return True

    def get(self, name: str) -> dict[str, Any] | None:
        with self._lock:
            sizes = self._known()
            if name not in sizes:
                return None
            path = self._path(name)
            try:
                record = orjson.loads(path.read_bytes())
                os.utime(path)
            except (OSError, ValueError):
                self._forget(name)
                return None
            sizes[name] = sizes.pop(name)
            return dict(record)

    def remove(self, name: str) -> bool:
        """Whether it was there."""
        with self._lock:
            found = name in self._known()
            self._forget(name)
            return found

    def _known(self) -> dict[str, int]:
        """What an earlier process of this pod left counts too."""
        if self._sizes is None:
            found = []
            with contextlib.suppress(OSError):
                for path in self._folder.glob("*.json"):
                    if _ID.fullmatch(path.stem):
                        state = path.stat()
                        found.append((state.st_mtime_ns, path.stem, state.st_size))
            self._sizes = {name: size for _, name, size in sorted(found)}
        return self._sizes

    def _write(self, name: str, data: bytes) -> None:
        """All of it or nothing, under its name, for this user alone."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
            try:
                file.write(data)
                file.flush()
                Path(file.name).replace(self._path(name))
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise

    def _forget(self, name: str) -> None:
        if self._sizes is not None and self._sizes.pop(name, None) is not None:
            with contextlib.suppress(OSError):
                self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
