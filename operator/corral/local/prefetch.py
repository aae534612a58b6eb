"""`corral prefetch` on this machine: the server's own download into the cache that `corral up` uses, whether one runs or not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corral.api import ModelPool, effective, server_variables
from corral.control.translate import Deployment, read_deployment
from corral.local.processes import server_command, server_environment
from corral.local.rundir import RunDir, cache_root


class PrefetchError(RuntimeError):
    """Nothing was fetched; the message says why."""


def prefetch(raw: Mapping[str, Any], pools: list[Mapping[str, Any]], run_dir: Path) -> Mapping[str, Any]:
    """Its progress goes to stderr; the answer of `corral_server prefetch`."""
    found = read_deployment(raw)
    if not isinstance(found, Deployment):
        raise PrefetchError(found.message)
    deployment = found.parsed
    pool = next((ModelPool.parse(each) for each in pools if each["metadata"]["name"] == deployment.spec.pool), None)
    environment = server_environment() | {
        **server_variables(found.server_spec),
        "CORRAL_CACHE_DIR": str(cache_root() / "files"),
        "CORRAL_CACHE_LIMIT": str(int(effective(deployment, pool).cache.size)),
        "CORRAL_ALLOW_LOCAL_SOURCES": "1",
    }
    secret = deployment.spec.model.secret_ref
    if secret is not None:
        environment["CORRAL_SECRET_DIR"] = str(RunDir(run_dir).secrets / deployment.metadata.namespace / secret.name)
    done = subprocess.run(server_command("prefetch"), env=environment, stdout=subprocess.PIPE, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise PrefetchError(f"corral_server prefetch ended with {done.returncode} and said nothing") from None
    if not answer.get("ok"):
        raise PrefetchError(f"{answer.get('reason')}: {answer.get('message')}")
    return answer
