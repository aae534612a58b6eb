"""One real `corral up` over a folder of sentence models, for tests that look at it from outside: HTTP, `corral get`, and processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import psutil
from tests.support.gguf_files import sentence_model

from corral.local.client import LocalClient, NotRunningError
from corral.tokens import TokenSigner, load_or_create_key

REPOSITORY = Path(__file__).parents[2]
PATH = os.pathsep.join([str(REPOSITORY / "operator"), str(REPOSITORY / "server_image")])
PATIENCE = 60.0

# A model needs about 230 MiB loaded and 72 MiB asleep, whatever its sentence. Room for one, two or three of them beside sleeping ones:
ROOM = {1: "400Mi", 2: "640Mi", 3: "900Mi"}
CELLS = 65536
SAYS = {"a": "I am alpaca.", "b": "I am bison.", "c": "I am caribou."}


class Herd:
    def __init__(self, root: Path, estimates: Path) -> None:
        self.folder = root / "models"
        self.folder.mkdir()
        self.run_dir = root / "run"
        self.run_dir.mkdir(mode=0o700)
        (self.run_dir / "estimates").symlink_to(estimates)
        self.log = root / "up.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.endpoint = ""

    # --- manifests

    def pool(self, room: str, *, min_residency: str = "0s", **spec: object) -> None:
        content = {
            "memoryMargin": 0,
            "devices": {"from": "HostMemory", "hostMemory": {"capacity": room}},
            "eviction": {"minResidency": min_residency, "drainTimeout": "5s"},
            "fairness": {"maxWait": "5s", "turn": "1s"},
            "hold": {"timeout": "60s"},
            **spec,
        }
        self.write("pool", {"kind": "ModelPool", "metadata": {"name": "default"}, "spec": content})

    def model(self, name: str, text: str, *, loop: bool = False, source: str = "", engine: dict | None = None, **spec: object) -> None:
        """A model that says `text`."""
        source = source or f"file://{sentence_model(text, layers=8, context=CELLS, loop=loop)}"
        settings = {"contextLength": CELLS, "kvTokens": CELLS, "slots": 4, "microBatch": 32, "threads": 1, "promptCache": {"size": "0"}}
        content = {"model": {"source": source}, "engine": {**settings, **(engine or {})}, **spec}
        self.write(name, {"kind": "ModelDeployment", "metadata": {"name": name}, "spec": content})

    def write(self, name: str, obj: dict) -> None:
        path = self.folder / f"{name}.yaml"
        temporary = path.with_name(f".{name}.tmp")
        temporary.write_text(json.dumps({"apiVersion": "corral.dev/v1alpha1", **obj}))
        temporary.replace(path)

    def remove(self, name: str) -> None:
        (self.folder / f"{name}.yaml").unlink()

    # --- the process

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": PATH}
        command = [sys.executable, "-m", "corral.cli", "up", "-f", str(self.folder), "--port", "0", "--run-dir", str(self.run_dir)]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        limit = time.monotonic() + PATIENCE
        while True:
            try:
                self.client = LocalClient(self.run_dir)
                break
            except NotRunningError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < limit, self.log.read_text()
                time.sleep(0.05)
        self.endpoint = self.client.endpoint

    def kill(self) -> None:
        """As the kernel does when memory runs out: no word to anybody."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def family(self) -> list[psutil.Process]:
        """Every process below it."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine(self, name: str) -> psutil.Process:
        """The engine is the largest process of its supervisor's group that has no children."""
        (pod,) = self.pods(name)
        members = [process for process in psutil.Process(pod["pid"]).children(recursive=True) if os.getpgid(process.pid) == pod["pid"]]
        parents = {process.ppid() for process in members}
        return max((process for process in members if process.pid not in parents), key=lambda process: process.memory_info().rss)

    # --- looking

    def state(self) -> dict:
        return dict(self.client.state())

    def condition(self, name: str, kind: str) -> dict:
        for model in self.state()["models"]:
            if model["metadata"]["name"] == name:
                return next((found for found in model.get("status", {}).get("conditions", []) if found["type"] == kind), {})
        return {}

    def waits(self, name: str) -> bool:
        return self.condition(name, "Loaded").get("reason") in {"WaitingForMemory", "WaitingForTurn"}

    def status(self, name: str) -> dict:
        return next((model.get("status", {}) for model in self.state()["models"] if model["metadata"]["name"] == name), {})

    def pods(self, name: str) -> list[dict]:
        return [pod for pod in self.state()["pods"] if pod["model"] == f"default/{name}"]

    def supervisor(self, name: str) -> dict:
        """What the one supervisor of this model says of itself."""
        (pod,) = self.pods(name)
        token = TokenSigner(load_or_create_key(self.run_dir / "ed25519.pem")).infer_token(pod["uid"])
        request = urllib.request.Request(f"http://127.0.0.1:{pod['controlPort']}/control/status", headers={"authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def loads(self, name: str) -> int:
        """How often it was loaded by the server process that it has now."""
        return self.supervisor(name)["loads"] if self.pods(name) else 0

    def swaps(self) -> int:
        return sum(self.evictions().values())

    def loaded(self) -> set[str]:
        return {model["metadata"]["name"] for model in self.state()["models"] if model.get("status", {}).get("loadedReplicas")}

    def evictions(self) -> dict[str, int]:
        return {model["metadata"]["name"]: model.get("status", {}).get("evictions", 0) for model in self.state()["models"]}

    async def until(self, holds, what: str = "") -> None:
        limit = time.monotonic() + PATIENCE
        while not await asyncio.to_thread(holds):
            assert time.monotonic() < limit, f"{what or 'it'} did not come about; {json.dumps(self.state(), indent=1)}\n{self.log.read_text()}"
            await asyncio.sleep(0.05)

    async def ready(self, *names: str) -> None:
        await self.until(lambda: all(self.condition(name, "Ready").get("status") == "True" for name in names), f"Ready of {', '.join(names)}")

    def corral(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": PATH, "COLUMNS": "200"}
        command = [sys.executable, "-m", "corral.cli", *arguments, "--run-dir", str(self.run_dir)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)

    # --- asking

    @asynccontextmanager
    async def openai(self):
        async with openai.AsyncOpenAI(base_url=f"{self.endpoint}/v1", api_key="unused", max_retries=0, timeout=PATIENCE) as client:
            yield client

    async def ask(self, name: str, *, max_tokens: int = 32) -> str:
        """The whole answer, streamed."""
        async with self.openai() as client:
            return "".join([piece async for piece in stream(client, name, max_tokens=max_tokens)])


async def stream(client: openai.AsyncOpenAI, name: str, *, max_tokens: int = 32):
    messages = [{"role": "user", "content": "Who are you?"}]
    async with await client.chat.completions.create(model=name, messages=messages, max_tokens=max_tokens, stream=True) as answer:
        async for chunk in answer:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
