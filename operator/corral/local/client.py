"""Asking a running `corral up`: where it is, what it holds, what happened. Standard library only, so that `corral get` starts quickly."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from corral.local.rundir import RunDir


class NotRunningError(RuntimeError):
    """No `corral up` owns the run directory."""


class LocalClient:
    def __init__(self, run_dir: Path) -> None:
        told = RunDir(run_dir).instance() if run_dir.exists() else None
        if told is None:
            raise NotRunningError(f"no corral up runs in {run_dir}")
        self._address: str = told["address"]
        self._token: str = told["token"]
        self.endpoint: str = told["endpoint"]
        """Where OpenAI clients go."""
        self.metrics: str = told["metrics"]
        """Where Prometheus finds the gateway's and the operator's metrics."""
        self.pid: int = told["pid"]

    def state(self) -> Mapping[str, Any]:
        """`models`, `pools`, `pods` and `problems`."""
        return self._get("/state")

    def events(self, after: int = 0, wait: float = 0) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self._get(f"/events?after={after}&wait={wait}")["events"])

    def plan(self) -> Any:
        return self._get("/plan")

    def metrics_page(self) -> str:
        with urllib.request.urlopen(self.metrics, timeout=10) as answer:  # noqa: S310 - our own http
            return cast("bytes", answer.read()).decode()

    def _get(self, path: str) -> dict[str, Any]:
        request = urllib.request.Request(f"{self._address}{path}", headers={"Authorization": f"Bearer {self._token}"})  # noqa: S310 - our own http
        try:
            with urllib.request.urlopen(request, timeout=70) as answer:  # noqa: S310
                return cast("dict[str, Any]", json.load(answer))
        except (urllib.error.URLError, ConnectionError) as error:
            raise NotRunningError(f"the corral up of pid {self.pid} does not answer: {error}") from error
