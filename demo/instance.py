"""One `corral up` as a child process, and the proof that nothing of it is left at the end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import psutil

from corral.local.client import LocalClient, NotRunningError

START_LIMIT = 60.0
READY_LIMIT = 180.0
STOP_LIMIT = 30.0


class InstanceError(RuntimeError):
    """It did not start, or did not get ready."""


class Instance:
    def __init__(self, folder: Path, run_dir: Path, output: IO[bytes]) -> None:
        command = [sys.executable, "-m", "corral.cli", "up", "-f", str(folder), "--port", "0", "--run-dir", str(run_dir), "--quiet"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._run_dir = run_dir
        self._seen: set[psutil.Process] = set()

    def connect(self) -> LocalClient:
        limit = time.monotonic() + START_LIMIT
        while time.monotonic() < limit:
            if self._process.poll() is not None:
                raise InstanceError(f"corral up ended with {self._process.returncode}")
            try:
                return LocalClient(self._run_dir)
            except NotRunningError:
                time.sleep(0.05)
        raise InstanceError(f"corral up did not start within {START_LIMIT:.0f} s")

    def wait_ready(self, client: LocalClient) -> list[dict[str, Any]]:
        """The models, once each was estimated and found to fit."""
        limit = time.monotonic() + READY_LIMIT
        while time.monotonic() < limit:
            models: list[dict[str, Any]] = list(client.state()["models"])
            if models and all(_ready(model) for model in models):
                return models
            time.sleep(0.1)
        raise InstanceError(f"the models were not ready within {READY_LIMIT:.0f} s")

    def look(self) -> None:
        """Remember every process that it has now."""
        try:
            self._seen.update(psutil.Process(self._process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return

    def stop(self) -> list[str]:
        """End it; what of its processes is left (nothing, if all is well)."""
        self.look()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _, alive = psutil.wait_procs(list(self._seen), timeout=5)
        return [f"{process.pid} {' '.join(process.cmdline())}" for process in alive]


def _ready(model: dict[str, Any]) -> bool:
    conditions = {found["type"]: found["status"] for found in model.get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True"
