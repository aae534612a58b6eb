"""A small model hub for tests, from a folder: plain files over HTTP, the paths of a Hugging Face hub over the same files, and faults on demand.

    python3 serve.py --folder FOLDER [--port 8000] [--host ''] [--private ORG=TOKEN] [--store-port PORT]

It needs the standard library only, changes no file, and keeps no state but which planned failures it has already given.

    /files/PATH                        the file, with Range, If-Range and ETag
    /ORG/REPO/resolve/REVISION/FILE    FOLDER/ORG/REPO/FILE as the hub gives it; with a store, a redirect to a signed address there when it is large
    /api/models/ORG/REPO[/revision/R]  what the repository holds; also …/tree/R
    /faults/not-a-gguf                 a page of HTML
    /faults/status/CODE                that status, with Retry-After for 429 and 503
    /faults/token/TOKEN/PATH           401 without `Authorization: Bearer TOKEN`
    /faults/slow/RATE/PATH             RATE bytes a second
    /faults/truncated/PATH             the whole length is announced, half of it sent
    /faults/no-range/PATH              Range is ignored
    /faults/first/N/CODE/PATH          CODE to the first N requests of this path, then the file
    /faults/redirect/PATH              a redirect to the file; /faults/redirect-to?URL to anywhere
"""

import argparse
import contextlib
import hashlib
import hmac
import html
import json
import re
import secrets
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

LARGE = 10_000_000  # bytes from which the hub keeps a file elsewhere and redirects to it
CHUNK = 1 << 20


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], folder: Path, private: dict[str, str], store_port: int = 0) -> None:
        super().__init__(address, Handler)
        self.folder = folder.resolve()
        self.private = private
        self.store_port = store_port
        self.key = secrets.token_bytes(32)
        self.lock = threading.Lock()
        self.digests: dict[tuple[Path, int, int], str] = {}
        self.failures: dict[str, int] = {}

    def find(self, path: str) -> Path | None:
        """The file that `path` names below the folder, if it is one."""
        found = (self.folder / path.lstrip("/")).resolve()
        return found if found.is_relative_to(self.folder) and found.is_file() else None

    def sha256(self, file: Path) -> str:
        stat = file.stat()
        key = (file, stat.st_size, stat.st_mtime_ns)
        with self.lock:
            if key not in self.digests:
                with file.open("rb") as content:
                    self.digests[key] = hashlib.file_digest(content, "sha256").hexdigest()
            return self.digests[key]

    def commit(self, repository: str) -> str:
        """A revision that changes whenever a file of the repository does."""
        files = [file for file in sorted((self.folder / repository).rglob("*")) if file.is_file()]
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha1(repr(stats).encode(), usedforsecurity=False).hexdigest()

    def sign(self, path: str) -> str:
        return hmac.new(self.key, path.encode(), "sha256").hexdigest()

    def fails_again(self, path: str, times: int) -> bool:
        with self.lock:
            self.failures[path] = self.failures.get(path, 0) + 1
            return self.failures[path] <= times


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        path = unquote(split.path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client may leave in the middle
            if path == "/healthz":
                self.reply(HTTPStatus.OK, b"ok\n")
            elif path.startswith("/files/"):
                self.send_named(path.removeprefix("/files/"))
            elif path.startswith("/signed/"):
                self.signed(path.removeprefix("/signed/"), split.query)
            elif path.startswith("/faults/"):
                self.fault(path.removeprefix("/faults/"), split.query)
            elif path.startswith("/api/models/"):
                self.api(path.removeprefix("/api/models/"))
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.resolve(*found.groups())
            else:
                self.refuse(HTTPStatus.NOT_FOUND, f"nothing is at {path}")

    do_HEAD = do_GET  # noqa: N815  the name that the base class calls

    # The paths of a hub

    def repository(self, repository: str, revision: str) -> str | None:
        """The repository's commit, or None after an error was sent."""
        organisation = repository.split("/", maxsplit=1)[0]
        token = self.server.private.get(organisation)
        sent = self.headers.get("Authorization", "")
        if token and not hmac.compare_digest(sent.encode(), f"Bearer {token}".encode()):
            if sent:
                self.refuse(HTTPStatus.FORBIDDEN, "this token has no access to the repository", "GatedRepo")
            else:
                self.refuse(HTTPStatus.UNAUTHORIZED, "Invalid username or password.", "RepoNotFound")
            return None
        folder = (self.server.folder / repository).resolve()
        if not folder.is_relative_to(self.server.folder) or not folder.is_dir():
            # The public hub, too, answers 401 to somebody unknown, so that the names of private repositories stay private.
            status = HTTPStatus.NOT_FOUND if sent else HTTPStatus.UNAUTHORIZED
            self.refuse(status, "Repository not found", "RepoNotFound")
            return None
        commit = self.server.commit(repository)
        if revision not in {"main", commit}:
            self.refuse(HTTPStatus.NOT_FOUND, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return commit

    def resolve(self, repository: str, revision: str, name: str) -> None:
        commit = self.repository(repository, revision)
        if commit is None:
            return
        path = f"{repository}/{name}"
        file = self.server.find(path)
        extra = {"X-Repo-Commit": commit}
        if file is None:
            self.refuse(HTTPStatus.NOT_FOUND, "Entry not found", "EntryNotFound", extra)
            return
        digest = self.server.sha256(file)
        size = file.stat().st_size
        extra |= {"X-Linked-Size": str(size), "X-Linked-Etag": f'"{digest}"'}
        if size < LARGE or not self.server.store_port:
            self.send_file(file, etag=digest, extra=extra)
            return
        host = self.headers.get("Host", "").split(":", maxsplit=1)[0]
        extra["Location"] = f"http://{host}:{self.server.store_port}/signed/{quote(path)}?signature={self.server.sign(path)}"
        self.reply(HTTPStatus.FOUND, b"", extra)

    def signed(self, path: str, query: str) -> None:
        """Where a redirect leads: the signature is all the right that it takes, and a token is none."""
        if not hmac.compare_digest(query, f"signature={self.server.sign(path)}"):
            self.refuse(HTTPStatus.FORBIDDEN, "the signature is missing or wrong")
        elif self.headers.get("Authorization"):
            self.refuse(HTTPStatus.BAD_REQUEST, "a token of the hub was sent to its file store")
        else:
            self.send_named(path)

    def api(self, path: str) -> None:
        found = re.fullmatch(r"([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        if not found:
            self.refuse(HTTPStatus.NOT_FOUND, f"nothing is at /api/models/{path}")
            return
        name, kind, revision = found[1], found[2], found[3] or "main"
        commit = self.repository(name, revision)
        if commit is None:
            return
        root = self.server.folder / name
        files = [file for file in sorted(root.rglob("*")) if file.is_file()]
        content: Any
        if kind == "tree":
            content = [self.tree_entry(root, file) for file in files]
        else:
            siblings = [{"rfilename": str(file.relative_to(root))} for file in files]
            private = name.split("/", maxsplit=1)[0] in self.server.private
            content = {"_id": commit[:24], "id": name, "modelId": name, "sha": commit, "private": private, "gated": False, "siblings": siblings}
        self.reply(HTTPStatus.OK, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def tree_entry(self, root: Path, file: Path) -> dict[str, Any]:
        size, digest = file.stat().st_size, self.server.sha256(file)
        large = {"lfs": {"oid": digest, "size": size, "pointerSize": 134}} if size >= LARGE else {}
        return {"type": "file", "path": str(file.relative_to(root)), "size": size, "oid": digest[:40], **large}

    # Faults

    def fault(self, path: str, query: str) -> None:
        kind, _, rest = path.partition("/")
        if kind == "not-a-gguf":
            self.reply(HTTPStatus.OK, b"<!doctype html><title>Sign in</title>\n" * 50, {"Content-Type": "text/html"})
        elif kind == "status":
            status = HTTPStatus(int(rest))
            self.refuse(status, status.phrase, extra={"Retry-After": "1"} if status in {429, 503} else None)
        elif kind == "token":
            token, _, name = rest.partition("/")
            if hmac.compare_digest(self.headers.get("Authorization", "").encode(), f"Bearer {token}".encode()):
                self.send_named(name)
            else:
                self.refuse(HTTPStatus.UNAUTHORIZED, "a token is needed", extra={"WWW-Authenticate": "Bearer"})
        elif kind == "slow":
            rate, _, name = rest.partition("/")
            self.send_named(name, rate=int(rate))
        elif kind == "truncated":
            self.send_named(rest, truncate=True)
        elif kind == "no-range":
            self.send_named(rest, ranges=False)
        elif kind == "first":
            times, code, name = rest.split("/", maxsplit=2)
            if self.command == "GET" and self.server.fails_again(path, int(times)):
                self.refuse(HTTPStatus(int(code)), "not yet")
            else:
                self.send_named(name)
        elif kind in {"redirect", "redirect-to"}:
            location = unquote(query) if kind == "redirect-to" else f"/files/{quote(rest)}"
            self.reply(HTTPStatus.FOUND, b"", {"Location": location})
        else:
            self.refuse(HTTPStatus.NOT_FOUND, f"no fault is called {kind}")

    # Files and answers

    def send_named(self, path: str, *, rate: int = 0, truncate: bool = False, ranges: bool = True) -> None:
        file = self.server.find(path)
        if file is None:
            self.refuse(HTTPStatus.NOT_FOUND, f"no file is called {path}")
        else:
            self.send_file(file, rate=rate, truncate=truncate, ranges=ranges)

    def send_file(
        self, file: Path, *, etag: str = "", extra: dict[str, str] | None = None, rate: int = 0, truncate: bool = False, ranges: bool = True
    ) -> None:
        with file.open("rb") as content:
            stat = file.stat()
            size = stat.st_size
            tag = f'"{etag or f"{size:x}-{stat.st_mtime_ns:x}"}"'
            headers = {"ETag": tag, "Content-Type": "application/octet-stream", **(extra or {})}
            wanted = self.headers.get("Range") if ranges and self.headers.get("If-Range", tag) == tag else None
            if ranges:
                headers["Accept-Ranges"] = "bytes"
            begin, end, status = 0, size, HTTPStatus.OK
            if wanted and (span := parse_range(wanted, size)) is not None:
                begin, end = span
                if begin >= end:
                    self.refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "no such range", extra={"Content-Range": f"bytes */{size}"})
                    return
                status = HTTPStatus.PARTIAL_CONTENT
                headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
            self.head(status, end - begin, headers)
            if self.command == "HEAD":
                return
            if truncate:
                end = begin + (end - begin) // 2
                self.close_connection = True
            content.seek(begin)
            self.pour(content, end - begin, rate)

    def pour(self, content: Any, count: int, rate: int) -> None:
        step = max(1, min(CHUNK, rate // 10)) if rate else CHUNK
        started, sent = time.monotonic(), 0
        while sent < count and (data := content.read(min(step, count - sent))):
            sent += len(data)
            if rate:
                time.sleep(max(0.0, sent / rate - (time.monotonic() - started)))
            self.wfile.write(data)

    def refuse(self, status: HTTPStatus, message: str, code: str = "", extra: dict[str, str] | None = None) -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": message, **(extra or {})}
        if code:
            headers["X-Error-Code"] = code
        self.reply(status, json.dumps({"error": html.escape(message)}).encode(), headers)

    def reply(self, status: HTTPStatus, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.head(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def head(self, status: HTTPStatus, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, "".join(character if " " <= character <= "~" else "?" for character in value))
        self.send_header("Content-Length", str(length))
        self.end_headers()


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """The one span that a Range header asks for, its end exclusive; empty when it lies outside; None when the header is to be ignored."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", text.strip())
    if not found or found[0].endswith("=-"):
        return None
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1 if last else size)


def main() -> None:
    parser = argparse.ArgumentParser(description="A small model hub for tests.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="")
    parser.add_argument("--private", action="append", default=[], metavar="ORG=TOKEN", help="repositories of ORG need this token")
    parser.add_argument("--store-port", type=int, default=0, help="keep large files in a store at this port of the same host")
    arguments = parser.parse_args()
    private = dict(pair.split("=", maxsplit=1) for pair in arguments.private)
    server = Hub((arguments.host, arguments.port), arguments.folder, private, arguments.store_port)
    if arguments.store_port:
        store = Hub((arguments.host, arguments.store_port), arguments.folder, private)
        store.key = server.key
        threading.Thread(target=store.serve_forever, daemon=True).start()
    print(f"serving {arguments.folder} on port {server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
