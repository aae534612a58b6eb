"""kubectl as a person would type it, with JSON back. Owns no state but the kubeconfig's path."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


class KubectlError(AssertionError):
    """kubectl said no; the text is its own."""


class Kubectl:
    def __init__(self, kubeconfig: str, binary: str = "kubectl") -> None:
        self.kubeconfig = kubeconfig
        self.binary = binary

    def command(self, *args: str) -> list[str]:
        return [self.binary, "--kubeconfig", self.kubeconfig, *args]

    def run(self, *args: str, stdin: str | None = None, timeout: float = 60, check: bool = True) -> str:
        done = subprocess.run(self.command(*args), input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout + (done.stderr if not check else "")

    def json(self, *args: str) -> Any:
        return json.loads(self.run(*args, "-o", "json"))

    def get(self, kind: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        where = ("-n", namespace) if namespace else ()
        text = self.run("get", kind, name, *where, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, namespace: str | None = None, selector: str = "") -> list[dict[str, Any]]:
        where = ("-n", namespace) if namespace else ("-A",)
        chosen = ("-l", selector) if selector else ()
        return list(self.json("get", kind, *where, *chosen)["items"])

    def apply(self, *objects: dict[str, Any]) -> str:
        return self.run("apply", "-f", "-", stdin=yaml.safe_dump_all(objects, sort_keys=False))

    def delete(self, kind: str, *names: str, namespace: str | None = None, wait: bool = True) -> None:
        where = ("-n", namespace) if namespace else ()
        self.run("delete", kind, *names, *where, "--ignore-not-found", f"--wait={'true' if wait else 'false'}", timeout=120)

    def logs(self, namespace: str, selector: str, tail: int = 200) -> str:
        return self.run("logs", "-n", namespace, "-l", selector, f"--tail={tail}", "--prefix", check=False)


def until(what: str, probe: Callable[[], T | None], timeout: float = 60, every: float = 0.1) -> T:
    """The first truthy answer of `probe`; fails with `what` and the last answer. A deadline, not a measurement."""
    end = time.monotonic() + timeout
    last: Any = None
    while time.monotonic() < end:
        last = probe()
        if last:
            return last
        time.sleep(every)
    raise AssertionError(f"not within {timeout:g} s: {what} (last seen: {last!r})")


def conditions(obj: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    return {c["type"]: c for c in ((obj or {}).get("status") or {}).get("conditions") or []}


def read_yaml(path: Path) -> list[dict[str, Any]]:
    return [doc for doc in yaml.safe_load_all(path.read_text()) if doc]
