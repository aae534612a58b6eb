"""A real server process for tests: its keys, its ports, its control calls. Everything goes through HTTP, as the operator and the gateway do it."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import httpx2
import jwt
import openai
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ROOT = Path(__file__).resolve().parents[2]
POD = "pod-uid-1"


class Keys:
    """The installation's signing key."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()

    @property
    def public(self) -> str:
        raw = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def sign(self, scope: str, *, epoch: int = 1, audience: str = POD, lifetime: float = 86_400, issuer: str = "corral") -> str:
        now = int(time.time())
        claims = {"iss": issuer, "aud": audience, "scope": scope, "epoch": epoch, "iat": now, "exp": int(now + lifetime)}
        return jwt.encode(claims, self._private, algorithm="EdDSA")


class Server:
    """`python -m corral_server serve`, started asleep; a context manager that surely ends it."""

    def __init__(
        self,
        source: str,
        folder: Path,
        *,
        engine: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        sha256: str = "",
        cache: Path | None = None,
        served_name: str = "models/tested",
        pod: str = POD,
        projector: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.keys = Keys()
        self.pod = pod
        self.folder = folder
        ports = folder / "ports.json"
        spec = {
            "namespace": "models",
            "name": "tested",
            "servedName": served_name,
            "model": {"source": source, "sha256": sha256, "projector": projector},
            "engine": {"threads": 1, **(engine or {})},
        }
        self._log = (folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "corral_server", "serve"],
            stdout=self._log,
            stderr=self._log,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT / "server_image"),
                "CORRAL_POD_UID": pod,
                "CORRAL_PUBLIC_KEYS": self.keys.public,
                "CORRAL_SPEC": json.dumps(spec),
                "CORRAL_CACHE_DIR": str(cache or folder / "cache"),
                "CORRAL_HOST": "127.0.0.1",
                "CORRAL_INFERENCE_PORT": "0",
                "CORRAL_CONTROL_PORT": "0",
                "CORRAL_PORTS_FILE": str(ports),
                "CORRAL_ALLOW_LOCAL_SOURCES": "1",
                **(env or {}),
            },
        )
        deadline = time.monotonic() + 30
        while not ports.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the server did not start: {self.log()}")
            time.sleep(0.02)
        found = json.loads(ports.read_text())
        self.control_url = f"http://127.0.0.1:{found['control']}"
        self.inference_url = f"http://127.0.0.1:{found['inference']}"
        self.control = httpx2.Client(base_url=self.control_url, headers=self.bearer("control"), timeout=60)
        self.http = httpx2.Client(base_url=self.inference_url, headers=self.bearer("infer"), timeout=120)
        self.openai = openai.OpenAI(base_url=f"{self.inference_url}/v1", api_key=self.keys.sign("infer", audience=pod), max_retries=0, timeout=120)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def bearer(self, scope: str, **more: Any) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys.sign(scope, **{'audience': self.pod, **more})}"}

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")[-4000:]

    # --- the operator's calls

    def status(self, after: int | None = None, wait: str = "10s") -> dict[str, Any]:
        params = {} if after is None else {"after": str(after), "wait": wait}
        return self.control.get("/control/status", params=params).raise_for_status().json()

    def until(self, *states: str, limit: float = 60) -> dict[str, Any]:
        """The status once its state is one of these, followed by long poll."""
        deadline = time.monotonic() + limit
        status = self.status()
        while status["state"] not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"still {status['state']} after {limit} s: {status} {self.log()}")
            status = self.status(after=status["version"])
        return status

    def wake(self, **more: Any) -> httpx2.Response:
        return self.control.post("/control/wake", json={"devices": ["host"], "split": [1.0], "deviceKind": "host", **more})

    def load(self) -> dict[str, Any]:
        """Wait for the file, wake, wait for the load."""
        self.until("Sleeping")
        answer = self.wake()
        assert answer.status_code in (200, 202), answer.text
        status = self.until("Loaded", "Sleeping")
        assert status["state"] == "Loaded", status
        return status

    def drain(self, **body: Any) -> httpx2.Response:
        return self.control.post("/control/drain", json=body)

    def sleep(self) -> httpx2.Response:
        return self.control.post("/control/sleep")

    # --- processes

    def tree(self) -> dict[str, list[int]]:
        """Process ids below the server: the zygote, and its children."""
        zygotes = _children(self.process.pid)
        return {"zygote": zygotes, "children": [c for z in zygotes for c in _children(z)]}

    def engine_pid(self) -> int:
        """The engine is the child with the most memory; the other renders templates."""
        return max(self.tree()["children"], key=_resident)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._close()
        return self.process.returncode

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._close()

    def _close(self) -> None:
        self._log.close()
        for client in ("control", "http", "openai"):
            if hasattr(self, client):
                getattr(self, client).close()


def _children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def anonymous(pid: int) -> int:
    """Bytes of a process that are no file's, each shared page divided among those that share it."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss_Anon:"))


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
