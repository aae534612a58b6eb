"""What a source string means. Pure."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from corral_server.reasons import UNSUPPORTED_SOURCE, Failure

_SPLIT = re.compile(r"^(?P<stem>.*)-(?P<part>\d{5})-of-(?P<total>\d{5})\.gguf$")
_RIGHT = "hf://ORG/REPO/FILE[@REVISION], https://, http://, file:///PATH or pvc://CLAIM/PATH"


@dataclass(frozen=True)
class Source:
    scheme: str
    text: str
    path: str
    repo: str = ""
    revision: str = ""

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1] or "model.gguf"


def parse_source(text: str) -> Source:
    """A source, or Failure that says which forms there are."""
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise Failure(UNSUPPORTED_SOURCE, f"the source {text!r} is not a URL ({error}); use {_RIGHT}") from None
    scheme = parts.scheme.lower()
    if scheme in ("http", "https"):
        if not parts.hostname:
            raise Failure(UNSUPPORTED_SOURCE, f"the source {text!r} names no host")
        return Source(scheme, text, unquote(parts.path))
    if scheme == "hf":
        body, _, revision = text[len("hf://") :].partition("@")
        pieces = body.strip("/").split("/")
        if len(pieces) < 3 or not all(pieces):
            raise Failure(UNSUPPORTED_SOURCE, f"the source {text!r} has to be hf://ORG/REPO/FILE or hf://ORG/REPO/FILE@REVISION")
        return Source(scheme, text, "/".join(pieces[2:]), repo="/".join(pieces[:2]), revision=revision or "main")
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise Failure(UNSUPPORTED_SOURCE, f"the source {text!r} has to be file:///PATH with an absolute path")
        return Source(scheme, text, unquote(parts.path))
    if scheme == "pvc":
        path = unquote(parts.path).strip("/")
        if not parts.netloc or not path or ".." in path.split("/") or ".." in parts.netloc:
            raise Failure(UNSUPPORTED_SOURCE, f"the source {text!r} has to be pvc://CLAIM/PATH")
        return Source(scheme, text, path, repo=parts.netloc)
    raise Failure(UNSUPPORTED_SOURCE, f"the source {text!r} is of no kind that this server can read; use {_RIGHT}")


def split_parts(source: str) -> list[str]:
    """All parts of a split GGUF named by its first, or the source alone."""
    body, at, revision = source.partition("@") if source.startswith("hf://") else (source, "", "")
    match = _SPLIT.match(body)
    if match is None:
        return [source]
    total = int(match["total"])
    if int(match["part"]) != 1:
        raise Failure(UNSUPPORTED_SOURCE, f"the source {source!r} is part {int(match['part'])} of a split file; name its first part")
    if total > 1000:
        raise Failure(UNSUPPORTED_SOURCE, f"the source {source!r} claims {total} parts; at most 1000 are read")
    return [f"{match['stem']}-{part:05d}-of-{match['total']}.gguf{at}{revision}" for part in range(1, total + 1)]
