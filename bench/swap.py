"""Swapping two models on room for one: `corral up` beside llama.cpp's router, the same files, in turns.

    python bench/swap.py --llama-server PATH [--rounds 7] [--threads 2] [--json FILE]
    python bench/swap.py --url http://ADDRESS --host NAME --models smollm2,gemma   # an endpoint that already runs, such as a cluster's

Each figure is from sending a request for the model that is not in memory to its first token, page cache warm. Prints the median and range per
direction, their ratio, and for Corral the phases that its operator tells of. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import models as files  # noqa: E402 - after the path is set


@dataclass
class Endpoint:
    name: str
    address: str
    host: str
    models: tuple[str, str]
    first_token: dict[str, list[float]] = field(default_factory=dict)
    waited: dict[str, list[float]] = field(default_factory=dict)
    phases: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def ask(self, model: str, timeout: float = 120) -> tuple[float, float]:
        """Seconds to the first token of a streamed completion, and how long the gateway says that it was held."""
        parts = urlsplit(self.address)
        body = json.dumps({"model": model, "prompt": "The sea is", "max_tokens": 2, "temperature": 0, "stream": True})
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout)
        with contextlib.closing(connection):
            started = time.perf_counter()
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json", "Host": self.host or parts.netloc})
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"{self.name}: {model} answered {response.status}: {response.read(400)!r}")
            while line := response.readline():
                if line.startswith(b"data: {"):
                    taken = time.perf_counter() - started
                    response.read()
                    return taken, float(response.headers.get("x-corral-waited-ms") or 0) / 1000
            raise RuntimeError(f"{self.name}: {model} ended without a token")

    def swap(self) -> None:
        """One swap in each direction."""
        for model in self.models:
            taken, waited = self.ask(model)
            self.first_token.setdefault(model, []).append(taken)
            self.waited.setdefault(model, []).append(waited)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(address: str, path: str) -> None:
    parts = urlsplit(address)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{address}{path} did not answer within 60 s")


@contextlib.contextmanager
def router(binary: str, folder: Path, threads: int, context: int) -> Iterator[Endpoint]:
    """llama.cpp's router with room for one model."""
    port = free_port()
    command = [binary, "--models-dir", str(folder), "--models-max", "1", "--port", str(port), "-t", str(threads), "-c", str(context), "-np", "4"]
    with (folder.parent / "router.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_up(address, "/health")
            yield Endpoint("llama-server router", address, "", ("smollm2", "gemma"))
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def corral(work: Path, threads: int, context: int, paths: dict[str, Path]) -> Iterator[Endpoint]:
    """`corral up` with room for one model."""
    manifests = work / "manifests"
    manifests.mkdir()
    pool = {
        "apiVersion": "corral.dev/v1alpha1",
        "kind": "ModelPool",
        "metadata": {"name": "default"},
        "spec": {
            "memoryMargin": "0",
            "maxModelsPerDevice": 1,
            "eviction": {"minResidency": "0s", "drainTimeout": "10s"},
            "fairness": {"maxWait": "0s", "turn": "0s"},
            "idle": {"sleepAfter": "1h", "stopAfter": "2h"},
        },
    }
    objects = [pool]
    for name, path in paths.items():
        engine = {"contextLength": context // 4, "kvTokens": context, "slots": 4, "threads": threads}
        spec = {"model": {"source": f"file://{path}"}, "engine": engine}
        objects.append({"apiVersion": "corral.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": name}, "spec": spec})
    (manifests / "models.yaml").write_text(yaml.safe_dump_all(objects))
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "corral.cli",
        "up",
        "-f",
        str(manifests),
        "--device",
        "host=8Gi",
        "--port",
        str(port),
        "--run-dir",
        str(work / "run"),
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'server_image'}"}
    with (work / "corral.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_up(address, "/v1/models")
            yield Endpoint("corral up", address, "", ("smollm2", "gemma"))
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def in_turns(endpoint: Endpoint, work: Path, options: argparse.Namespace, paths: dict[str, Path]) -> None:
    """Swap, beside llama.cpp's router where its path is given, in turns; print the table, and write it where a file is named."""
    with contextlib.ExitStack() as stack:
        endpoints = [endpoint]
        if options.llama_server:
            folder = work / "router"
            folder.mkdir()
            for model, path in paths.items():
                (folder / f"{model}.gguf").symlink_to(path)
            endpoints.append(stack.enter_context(router(options.llama_server, folder, options.threads, options.context)))
        for each in endpoints:  # the first load of each reads the file and starts what is started once
            each.swap()
            each.first_token.clear()
            each.waited.clear()
        for _ in range(options.rounds):
            for each in endpoints:
                each.swap()
        result = report(endpoints)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def asked(summary: str) -> argparse.ArgumentParser:
    """What every comparison of swaps can be told."""
    arguments = argparse.ArgumentParser(description=summary)
    arguments.add_argument("--llama-server", default="", help="path of a llama-server to compare with")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--context", type=int, default=4096, help="KV cells in all, shared by four slots")
    arguments.add_argument("--json", type=Path)
    return arguments


def row(name: str, values: list[float]) -> str:
    return f"{name:<34} {statistics.median(values):7.3f} s   {min(values):6.3f} to {max(values):6.3f}   n={len(values)}"


def report(endpoints: list[Endpoint]) -> dict[str, Any]:
    """Print the table and give it back as data."""
    result: dict[str, Any] = {}
    print(f"\n{'request to first token':<34} {'median':>9}   {'range':>16}")
    for endpoint in endpoints:
        for model, values in endpoint.first_token.items():
            print(row(f"{endpoint.name}: to {model}", values))
            result.setdefault(endpoint.name, {})[model] = {"seconds": values, "held": endpoint.waited[model]}
            if any(endpoint.waited[model]):
                print(row("   of which held by the gateway", endpoint.waited[model]))
    if len(endpoints) == 2:
        ours, theirs = endpoints
        for model in ours.first_token:
            ratio = statistics.median(ours.first_token[model]) / statistics.median(theirs.first_token[model])
            print(f"{ours.name} / {theirs.name}, to {model}: {ratio:.2f}")
            result.setdefault("ratio", {})[model] = ratio
    return result


def main() -> None:
    arguments = asked((__doc__ or "").splitlines()[0])
    arguments.add_argument("--url", default="", help="an endpoint that already runs, instead of `corral up`")
    arguments.add_argument("--host", default="", help="its Host header")
    arguments.add_argument("--models", default="smollm2,gemma")
    options = arguments.parse_args()
    paths = {"smollm2": files.smollm2(), "gemma": files.gemma()}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        work = Path(name)
        if options.url:
            first, second = options.models.split(",")
            endpoint = Endpoint("corral", options.url, options.host, (first, second))
        else:
            endpoint = stack.enter_context(corral(work, options.threads, options.context, paths))
        in_turns(endpoint, work, options, paths)


if __name__ == "__main__":
    main()
