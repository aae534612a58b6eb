"""`corral_server prefetch`: a model's files into the cache and into memory, before anybody asks for the model. Starts no server."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from corral_server.download.get import Where, get
from corral_server.download.warm import warm
from corral_server.reasons import Failure
from corral_server.settings import Settings
from corral_server.spec import parse_spec

_EVERY = 2.0


def run(message_file: str, settings: Settings) -> int:
    """One line of JSON on stdout, and in the message file; 1 when the file is not there in the end."""
    try:
        result = prefetch(settings)
    except Failure as failure:
        result = {"ok": False, "reason": failure.reason, "message": failure.message[:1500]}
    line = json.dumps(result, ensure_ascii=False)
    print(line)  # noqa: T201  this is the command's output
    if message_file:
        Path(message_file).write_text(line)
    return 0 if result["ok"] else 1


def prefetch(settings: Settings) -> dict[str, Any]:
    spec = parse_spec(settings.spec)
    where = Where(
        cache=settings.cache_dir, cache_key=spec.cache_key, secret_dir=settings.secret_dir, claims_dir=settings.claims_dir,
        hub_endpoint=settings.hub_endpoint, allow_local=settings.allow_local_sources, limit=settings.cache_limit,
    )  # fmt: skip
    told = began = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= _EVERY:
            told = time.monotonic()
            print(f"{spec.name or spec.source}: {done} of {total or 'unknown'} bytes", file=sys.stderr, flush=True)  # noqa: T201

    paths = [get(spec.source, spec.sha256, where, progress), *(get(source, "", where, progress) for source in spec.beside)]
    for path in paths:
        warm(str(path))
    return {"ok": True, "path": str(paths[0]), "bytes": sum(p.stat().st_size for p in paths), "seconds": round(time.monotonic() - began, 1)}
