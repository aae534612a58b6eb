"""The header of a model file, without the rest: a few ranges of a remote file, the beginning of a local one."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from corral_server.download import files
from corral_server.download.get import Where
from corral_server.download.hub import locate
from corral_server.download.sources import Source, parse_source
from corral_server.download.web import Web, credentials
from corral_server.gguf_header import Header, NeedMoreError, parse_header
from corral_server.reasons import NOT_A_GGUF, SOURCE_NOT_FOUND, SOURCE_REFUSED, SOURCE_UNREACHABLE, Failure

_FIRST = 1 << 20
_MOST = 256 << 20


@dataclass(frozen=True)
class HeaderBytes:
    data: bytes
    header: Header
    file_bytes: int
    digest: str


def read_header(source_text: str, where: Where) -> HeaderBytes:
    source = parse_source(source_text)
    cached = files.folder(where.cache, source_text, where.cache_key) / source.name
    if source.scheme == "file":
        return _local(Path(source.path), source)
    if source.scheme == "pvc":
        path = where.claims_dir / source.repo / source.path
        if not path.resolve().is_relative_to((where.claims_dir / source.repo).resolve()):
            raise Failure(SOURCE_REFUSED, f"{source.text} leads out of its claim")
        return _local(path, source)
    if cached.is_file():
        return _local(cached, source)
    return _remote(source, where)


def _local(path: Path, source: Source) -> HeaderBytes:
    try:
        size = path.stat().st_size
        files.check_magic(path, source.text)
        with path.open("rb") as handle:
            want = _FIRST
            while True:
                handle.seek(0)
                data = handle.read(want)
                try:
                    header = parse_header(data, source.text)
                except NeedMoreError:
                    want = _more(want, len(data), size, source.text)
                    continue
                return _result(data, header, size, "")
    except FileNotFoundError:
        raise Failure(SOURCE_NOT_FOUND, f"{source.text}: there is no file {path}") from None
    except OSError as error:
        raise Failure(SOURCE_UNREACHABLE, f"{source.text}: {error.strerror}") from None


def _remote(source: Source, where: Where) -> HeaderBytes:
    headers = credentials(where.secret_dir)
    url, etag, size = source.text, "", 0
    if source.scheme == "hf":
        token = headers.get("Authorization", "").removeprefix("Bearer ") if headers.get("Authorization", "").startswith("Bearer ") else ""
        found = locate(source, endpoint=where.hub_endpoint, token=token)
        url, etag, size = found.url, found.etag, found.size
    web = Web(allow_local=where.allow_local or (source.scheme == "hf" and bool(where.hub_endpoint)))
    data, want = b"", _FIRST
    while True:
        with web.open(url, {**headers, "Range": f"bytes={len(data)}-{want - 1}"}, source.text) as response:
            try:
                if response.status == 206:
                    total = response.headers.get("Content-Range", "").rpartition("/")[2]
                    size = int(total) if total.isdigit() else size
                    data += response.read(want - len(data))
                else:
                    # No ranges here: read on until the header is complete, then hang up.
                    length = response.headers.get("Content-Length", "")
                    size = int(length) if length.isdigit() else size
                    data = response.read(want)
            except OSError as error:
                raise Failure(SOURCE_UNREACHABLE, f"{source.text}: the transfer broke off: {error}") from None
            etag = etag or response.headers.get("ETag", "").strip('W/"')
        if data[:4] != files.MAGIC:
            found_text = "an HTML page" if data.lstrip()[:1] == b"<" else f"the bytes {data[:4]!r}"
            raise Failure(NOT_A_GGUF, f"{source.text} is not a GGUF file: it begins with {found_text}")
        try:
            header = parse_header(data, source.text)
        except NeedMoreError:
            want = _more(want, len(data), size or _MOST, source.text)
            continue
        return _result(data, header, size or len(data), etag)


def _more(want: int, have: int, size: int, what: str) -> int:
    if have >= size:
        raise Failure(NOT_A_GGUF, f"{what} is cut short: the file ends after {have} bytes, within its header")
    if want >= _MOST:
        raise Failure(NOT_A_GGUF, f"{what} is not usable: its header is longer than {_MOST} bytes")
    return want * 4


def _result(data: bytes, header: Header, size: int, etag: str) -> HeaderBytes:
    return HeaderBytes(data[: header.length], header, size, etag or hashlib.sha256(data[: header.length]).hexdigest())
