"""The supervisor's side of a download: starts the process, follows its progress, ends it when the supervisor ends, and keeps what it got."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from corral_server.download import files, keep
from corral_server.reasons import SOURCE_UNREACHABLE, Failure
from corral_server.settings import Settings


@dataclass(frozen=True)
class ModelFile:
    path: str
    bytes: int
    use: keep.Use | None
    """Holds the file in the cache for as long as somebody has it; None for one that is not there, and where nothing can be written."""


async def download(source: str, sha256: str, cache_key: str, settings: Settings, progress: Callable[[float], None]) -> ModelFile:
    """The file, or Failure."""
    use = None
    if not source.startswith(("file://", "pvc://")):
        with contextlib.suppress(OSError):  # the download says better what is wrong
            use = await asyncio.to_thread(keep.use, files.folder(settings.cache_dir, source, cache_key))
    order = {
        "source": source, "sha256": sha256, "cache": str(settings.cache_dir), "cacheKey": cache_key,
        "secretDir": str(settings.secret_dir) if settings.secret_dir else "", "claimsDir": str(settings.claims_dir),
        "hubEndpoint": settings.hub_endpoint, "allowLocal": settings.allow_local_sources, "parent": os.getpid(),
        "limit": settings.cache_limit,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "corral_server.download",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=dict(settings.environ) or None,
    )
    assert process.stdin is not None  # noqa: S101  asked for above
    assert process.stdout is not None  # noqa: S101
    try:
        process.stdin.write(json.dumps(order).encode() + b"\n")
        await process.stdin.drain()
        process.stdin.close()
        async for line in process.stdout:
            message = json.loads(line)
            if "path" in message:
                return ModelFile(message["path"], message["bytes"], use)
            if "failed" in message:
                raise Failure(message["failed"], message["message"])
            if message["total"]:
                progress(message["done"] / message["total"])
        raise Failure(SOURCE_UNREACHABLE, f"{source}: the download process ended without a result (exit code {await process.wait()})")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
