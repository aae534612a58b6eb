"""A web server for model files, as sources are in the wild: with and without ranges, broken off in the middle, changed meanwhile, a small hub."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server has, how it behaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    break_after: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off, one entry an answer."""
    status: dict[str, int] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    token: str = ""
    lengths: bool = True
    """Without: the end of the connection is the end of the file."""
    gate: threading.Event | None = None
    """Half of each answer waits for it."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and Range header of each request."""
    authorizations: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(site: Site, host: str = "127.0.0.1") -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            site.asked.append((self.command, self.path, self.headers.get("Range", "")))
            site.authorizations.append(self.headers.get("Authorization", ""))
            if self.path in site.redirects:
                return self._head(302, 0, {"Location": site.redirects[self.path]})
            if site.token and self.headers.get("Authorization") != f"Bearer {site.token}":
                return self._head(401, 0)
            if self.path in site.status:
                return self._head(site.status[self.path], 0)
            data = site.files.get(self.path)
            if data is None:
                return self._head(404, 0, {"X-Error-Code": "EntryNotFound"} if "/resolve/" in self.path else {})
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            headers = {"ETag": etag} if site.etags else {}
            if "/resolve/" in self.path:
                headers["X-Repo-Commit"] = "0" * 40
            start, status = 0, 200
            asked = self.headers.get("Range", "")
            if site.ranges and asked.startswith("bytes=") and self.headers.get("If-Range", etag) == etag:
                first, _, last = asked[6:].partition("-")
                start = int(first)
                if start >= len(data):
                    return self._head(416, 0)
                end = min(int(last) + 1, len(data)) if last else len(data)
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
                status, data = 206, data[start:end]
            self._head(status, len(data), headers)
            if body:
                cut = site.break_after.pop(0) if site.break_after else len(data)
                gate = site.gate
                if gate is not None and not gate.is_set():
                    self.wfile.write(data[: cut // 2])
                    gate.wait(60)
                    data, cut = data[cut // 2 :], cut - cut // 2
                self.wfile.write(data[:cut])
                if cut < len(data):
                    self.close_connection = True
            return None

        def _head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if site.lengths or status != 200:
                self.send_header("Content-Length", str(length))
            else:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that hangs up is part of the tests."""

    server = Quiet((host, 0), Handler)
    site.url = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
