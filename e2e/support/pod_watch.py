"""Every event of some pods, for as long as a witness wants them. It must never change anything in the cluster."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

from e2e.support.kubectl import Kubectl


class Witness(Protocol):
    def begin(self) -> None:
        """All that is there comes anew: what went while nobody looked must not count."""

    def take(self, event: dict[str, Any]) -> None:
        """One watch event."""


class PodWatch:
    def __init__(self, kubectl: Kubectl, selector: str, witness: Witness) -> None:
        self._command = kubectl.command("get", "pods", "-A", "-l", selector, "--watch", "--output-watch-events", "-o", "json")
        self._witness = witness
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        if self._process:
            self._process.kill()
        self._thread.join(10)

    def _follow(self) -> None:
        while not self._stopped:
            with subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as self._process:
                self._witness.begin()
                for event in _documents(self._process):
                    self._witness.take(event)
            time.sleep(0.2)


def _documents(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """The JSON documents that kubectl prints one after another, on one line each or over many."""
    decoder, text = json.JSONDecoder(), ""
    assert process.stdout is not None
    for line in process.stdout:
        text += line
        if line.startswith(("{", "}")) and line.rstrip().endswith("}"):
            document, end = decoder.raw_decode(text.lstrip())
            text = text.lstrip()[end:]
            yield document
