"""Footprints of models: `corral_server estimate` in a process of its own, its answers kept in the run directory.

An answer is kept under the source, the settings and the server that it was made for, and for a file on this machine under its size and time as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from corral.api import estimated_engine, server_variables
from corral.domain import reasons
from corral.kube.ports import Refused
from corral.local.processes import LEASH, server_command, server_environment
from corral.local.rundir import write_whole

TIME_LIMIT = 120.0


class Estimates:
    def __init__(self, folder: Path, files: Path) -> None:
        self._folder = folder
        self._files = files
        self._turn = asyncio.Semaphore(2)

    async def estimate(self, server_spec: Mapping[str, Any], secret_dir: Path | None) -> Mapping[str, Any]:
        kept = self._folder / f"{_digest(server_spec)}.json"
        with contextlib.suppress(OSError, ValueError):
            answer = json.loads(kept.read_text())
            if isinstance(answer, dict):
                return answer
        async with self._turn:
            answer = await self._run(server_spec, secret_dir)
        if answer.get("ok"):
            write_whole(kept, json.dumps(answer))
        return answer

    async def _run(self, server_spec: Mapping[str, Any], secret_dir: Path | None) -> dict[str, Any]:
        environment = server_environment() | {
            **server_variables(server_spec),
            "CORRAL_CACHE_DIR": str(self._files),
            "CORRAL_ALLOW_LOCAL_SOURCES": "1",
        }
        if secret_dir is not None:
            environment["CORRAL_SECRET_DIR"] = str(secret_dir)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *server_command("estimate")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), TIME_LIMIT)
        except TimeoutError:
            return {
                "ok": False,
                "reason": reasons.SOURCE_UNREACHABLE,
                "message": f"{server_spec['model']['source']}: its header was not read within {TIME_LIMIT:.0f} s",
                "retry": True,
            }
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ValueError, IndexError):
            answer = json.loads(output.decode().strip().splitlines()[-1])
            if isinstance(answer, dict):
                return answer
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["it wrote nothing"]
        raise Refused(f"corral_server estimate ended with {process.returncode}: {last[0]}")


def _digest(server_spec: Mapping[str, Any]) -> str:
    model = server_spec["model"]
    files = []
    engine = estimated_engine(server_spec.get("engine") or {})
    beside = [(engine.get("draft") or {}).get("source") or "", *(each.get("source") or "" for each in engine.get("adapters") or [])]
    for source in (model["source"], model.get("projector") or "", *beside):
        if source.startswith("file://"):
            with contextlib.suppress(OSError):
                found = Path(unquote(urlsplit(source).path)).stat()
                files.append([found.st_size, found.st_mtime_ns])
    told = json.dumps([_server_stamp(), model, engine, files], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:24]


def _server_stamp() -> int:
    """Grows with every change of the installed server: another one may estimate otherwise."""
    found = importlib.util.find_spec("corral_server")
    if found is None or found.origin is None:
        return 0
    return max(file.stat().st_mtime_ns for file in Path(found.origin).parent.rglob("*.py"))
