"""One source made into a file on disk: the steps of a download.

Resumes by Range and If-Range, checks before the rename, and keeps a broken download's part for the next attempt.
"""

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from corral_server.download import files, keep
from corral_server.download.hub import locate
from corral_server.download.notes import read_notes, write_notes
from corral_server.download.sources import Source, parse_source, split_parts
from corral_server.download.web import Web, credentials
from corral_server.reasons import (
    NO_SPACE,
    SOURCE_NOT_FOUND,
    SOURCE_REFUSED,
    SOURCE_UNREACHABLE,
    Failure,
)

_BLOCK = 1 << 20
_ATTEMPTS = 5
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Where:
    """What a download needs to know beside the source."""

    cache: Path
    cache_key: str = ""
    secret_dir: Path | None = None
    claims_dir: Path = Path("/claims")
    hub_endpoint: str = ""
    allow_local: bool = False
    limit: int = 0
    """Bytes that the cache may take; 0: what its disk has."""


class _DiskFullError(Exception):
    pass


def get(source: str, sha256: str, where: Where, progress: Progress) -> Path:
    """The file of a source, complete and checked; all parts of a split one, its first is returned."""
    first: Path | None = None
    for part in split_parts(source):
        path = _get_one(parse_source(part), "" if first else sha256, where, progress, home=source)
        first = first or path
    assert first is not None  # noqa: S101  split_parts never returns an empty list
    return first


def _get_one(source: Source, sha256: str, where: Where, progress: Progress, *, home: str) -> Path:
    if source.scheme in ("file", "pvc"):
        path = Path(source.path) if source.scheme == "file" else where.claims_dir / source.repo / source.path
        return _in_place(path, source, sha256, where, progress)
    directory = files.folder(where.cache, home, where.cache_key)
    with files.space_checked(where.cache):
        used = keep.use(directory)
    with used.handle, files.locked(directory, lambda: progress(0, 0)), files.space_checked(where.cache):
        target = directory / source.name
        if not target.exists():
            _fetch(source, target, sha256, where, progress)
        elif sha256:
            notes = read_notes(target)
            actual = notes.get("sha256") or files.sha256_of(target, lambda done: progress(done, target.stat().st_size))
            if actual != sha256:
                # Another sum is asked for now, or the file rotted: what is here is of no use to anybody under this name.
                target.unlink()
                _fetch(source, target, sha256, where, progress)
        return target


def _in_place(path: Path, source: Source, sha256: str, where: Where, progress: Progress) -> Path:
    """A file that is already on this machine is used where it is."""
    if source.scheme == "pvc":
        root = (where.claims_dir / source.repo).resolve()
        if not path.resolve().is_relative_to(root):
            raise Failure(SOURCE_REFUSED, f"{source.text} leads out of its claim")
    try:
        if not path.is_file():
            raise Failure(SOURCE_NOT_FOUND, f"{source.text}: there is no file {path}")
        files.check_magic(path, source.text)
        if sha256:
            size = path.stat().st_size
            files.check_sum(path, sha256, files.sha256_of(path, lambda done: progress(done, size)), source.text)
    except PermissionError as error:
        raise Failure(SOURCE_REFUSED, f"{source.text}: {error.strerror}") from None
    except OSError as error:
        raise Failure(SOURCE_UNREACHABLE, f"{source.text}: {error.strerror}") from None
    return path


def _fetch(source: Source, target: Path, sha256: str, where: Where, progress: Progress) -> None:
    headers = credentials(where.secret_dir)
    url, etag = source.text, ""
    if source.scheme == "hf":
        token = headers.get("Authorization", "").removeprefix("Bearer ") if headers.get("Authorization", "").startswith("Bearer ") else ""
        found = locate(source, endpoint=where.hub_endpoint, token=token)
        url, etag = found.url, found.etag
    # The hub's address is the installation's own choice, not the user's.
    web = Web(allow_local=where.allow_local or (source.scheme == "hf" and bool(where.hub_endpoint)))
    part = target.with_name(target.name + ".part")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(web, url, headers, source.text, part, where, progress)
            break
        except _DiskFullError as full:
            # What others fill the disk with is not known beforehand.
            if not keep.make_room(where.cache, part):
                have = part.stat().st_size
                _remove(part)
                free = keep.free_bytes(where.cache)
                raise Failure(
                    NO_SPACE, f"{source.text}: {full} in the cache {where.cache}, after {have}; without them {free} bytes of the disk are free"
                ) from None
        except Failure as failure:
            after = part.stat().st_size if part.exists() else 0
            failures = 0 if after > before else failures + 1
            if failure.reason == NO_SPACE:
                _remove(part)
                raise
            if not failure.retry or failures >= _ATTEMPTS or after == 0:
                raise
            time.sleep(min(0.2 * 2**failures, 5.0))
    try:
        files.check_magic(part, source.text)
        size = part.stat().st_size
        actual = files.sha256_of(part, lambda done: progress(done, size))
        files.check_sum(part, sha256, actual, source.text)
        # The hub names large files by their sha256.
        files.check_sum(part, etag if len(etag) == 64 else "", actual, f"{source.text}, by the hub's own word,")
    except Failure:
        _remove(part)
        raise
    part.chmod(0o444)
    write_notes(target, {"source": source.text, "sha256": actual, "bytes": size})
    part.rename(target)
    _remove(part)


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".json").unlink(missing_ok=True)


def _transfer(web: Web, url: str, headers: dict[str, str], what: str, part: Path, where: Where, progress: Progress) -> None:
    """One connection's worth of the file, appended to the part when the source says that it is still the same file."""
    have = part.stat().st_size if part.exists() else 0
    validator = str(read_notes(part).get("validator", ""))
    ask = dict(headers)
    if have and validator:
        ask |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        response = web.open(url, ask, what)
    except Failure as failure:
        if failure.reason != "RangeNotSatisfiable":
            raise
        part.unlink()
        raise Failure(SOURCE_UNREACHABLE, f"{what}: the file is shorter than what was fetched of it; starting again") from None
    with response:
        resumed = response.status == 206 and _starts_at(response.headers.get("Content-Range", ""), have)
        if response.status == 206 and not resumed:
            raise Failure(SOURCE_UNREACHABLE, f"{what}: the server answered with another range than was asked for")
        done = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length and length.isdigit() else 0
        etag = response.headers.get("ETag", "")
        strong = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
        write_notes(part, {"validator": strong})
        if total:
            keep.promise(where.cache, where.limit, part, total, what)
        try:
            with part.open("ab" if resumed else "wb") as file:
                while block := response.read(_BLOCK):
                    if done == 0 and block[:4] != files.MAGIC:
                        file.write(block)
                        return
                    file.write(block)
                    done += len(block)
                    progress(done, total)
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise Failure(
                SOURCE_UNREACHABLE, f"{what}: the transfer broke off after {done} of {total} bytes: {error or type(error).__name__}"
            ) from None
        except OSError as error:
            if error.errno not in keep.FULL:
                raise
            raise _DiskFullError(f"no room for its {total} bytes" if total else "no more room") from None
        if total and done < total:
            raise Failure(SOURCE_UNREACHABLE, f"{what}: the transfer ended after {done} of {total} bytes")


def _starts_at(content_range: str, start: int) -> bool:
    return content_range.replace("bytes", "", 1).strip().startswith(f"{start}-")
