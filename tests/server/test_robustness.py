"""Clients and files that behave badly. `CORRAL_FULL=1` runs the full numbers: 1,000 cancelled requests, 1,000 damaged files."""

import asyncio
import os
import random
import signal
import socket
import time
from pathlib import Path

import aiohttp
import pytest
from tests.server.harness import Server, anonymous
from tests.support.gguf_files import sentence_model
from tests.support.models import gemma

pytestmark = pytest.mark.model

FULL = os.environ.get("CORRAL_FULL") == "1"
ASK = {"messages": [{"role": "user", "content": "Go on"}], "temperature": 0, "stream": True}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory):
    path = sentence_model("The quick brown alpaca jumps over the lazy llama", context=4096, loop=True)
    with Server(path.as_uri(), tmp_path_factory.mktemp("endless"), engine={"slots": 4, "kvTokens": 16384}) as server:
        server.load()
        yield server


async def hang_up_at_random(server: Server, count: int, seed: int) -> None:
    """Requests that are given up before, while and after they are answered."""
    rng = random.Random(seed)
    room = asyncio.Semaphore(12)

    async def one(session: aiohttp.ClientSession) -> None:
        async with room:
            stream, blocks = rng.random() < 0.7, rng.randrange(1, 20)
            body = {**ASK, "stream": stream, "max_tokens": rng.choice((1, 20, 2000))}
            try:
                async with asyncio.timeout(rng.random() * 0.2), session.post(f"{server.inference_url}/v1/chat/completions", json=body) as answer:
                    for _ in range(blocks):
                        await answer.content.readany()
            except TimeoutError:
                pass

    async with aiohttp.ClientSession(headers=server.bearer("infer")) as session:
        await asyncio.gather(*(one(session) for _ in range(count)))


def settle(server: Server) -> None:
    status = server.status()
    while status["inFlight"]:
        status = server.status(after=status["version"])
    while any(slot["is_processing"] for slot in server.http.get("/slots").json()):
        time.sleep(0.01)


def test_cancelled_requests_leave_no_slot_and_no_memory_behind(endless: Server):
    count = 1000 if FULL else 80
    asyncio.run(hang_up_at_random(endless, count, 1))
    settle(endless)
    before = anonymous(endless.engine_pid()), anonymous(endless.process.pid)
    asyncio.run(hang_up_at_random(endless, count, 2))
    settle(endless)
    after = anonymous(endless.engine_pid()), anonymous(endless.process.pid)
    assert all(b - a < 6 << 20 for a, b in zip(before, after, strict=True)), (before, after)
    assert endless.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}).json()["usage"]["completion_tokens"] == 2


def test_a_client_that_stops_reading_delays_nobody(endless: Server):
    body = b'{"prompt":"x","max_tokens":4000,"stream":true,"temperature":0}'
    host, port = endless.inference_url.removeprefix("http://").split(":")
    request = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: %s\r\ncontent-length: %d\r\n\r\n" % (
        endless.bearer("infer")["authorization"].encode(),
        len(body),
    )
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect((host, int(port)))
        stuck.sendall(request + body)
        assert stuck.recv(20).startswith(b"HTTP/1.1 200")
        answer = endless.http.post("/v1/completions", json={"prompt": "y", "max_tokens": 500, "temperature": 0}).json()
        assert answer["usage"]["completion_tokens"] == 500
    settle(endless)


def mutated(data: bytes, rng: random.Random, header: int) -> bytes:
    """Some bytes changed, a piece cut out, or the end cut off; mostly where the header is."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        at = rng.randrange(header if rng.random() < 0.9 else len(changed))
        changed[at] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
    if rng.random() < 0.15:
        del changed[rng.randrange(len(changed)) :]
    elif rng.random() < 0.1:
        at = rng.randrange(header)
        del changed[at : at + rng.randrange(1, 64)]
    return bytes(changed)


def test_damaged_files_end_in_an_error_or_a_dead_engine(tmp_path: Path):
    data = sentence_model().read_bytes()
    header = data.find(b"output_norm") + 200
    rng = random.Random(7)
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    outcomes: dict[str, int] = {}
    with Server(path.as_uri(), tmp_path / "run", env={"CORRAL_LOAD_TIMEOUT_SECONDS": "10"}) as server:
        server.until("Sleeping")
        for _ in range(1000 if FULL else 60):
            # A new file under the name: whoever has the old one mapped keeps it.
            (tmp_path / "next").write_bytes(mutated(data, rng, header))
            (tmp_path / "next").replace(path)
            assert server.wake().status_code == 202
            status = server.until("Loaded", "Sleeping", limit=40)
            if status["state"] == "Loaded":
                outcome = "Loaded"
                assert server.drain(ttl="20s").status_code == 200
                assert server.sleep().status_code == 200
            else:
                outcome = status["error"]["reason"]
                assert status["error"]["message"]
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        path.unlink()
        path.write_bytes(data)
        assert server.load()["error"] is None
    assert set(outcomes) <= {
        "Loaded",
        "UnsupportedModel",
        "NotAGGUF",
        "LoadFailed",
        "EngineCrashed",
        "OutOfMemory",
        "LoadTimeout",
        "InvalidEngineSettings",
    }
    assert len(outcomes) > 1, outcomes


def test_a_load_can_be_called_off(tmp_path: Path):
    with Server(gemma().as_uri(), tmp_path) as server:
        server.until("Sleeping")
        assert server.wake().status_code == 202
        assert server.status()["state"] == "Loading"
        assert server.sleep().status_code == 200
        status = server.status()
        assert (status["state"], status["error"], server.tree()["children"]) == ("Sleeping", None, [])
        server.load()


def test_states_of_a_killed_pod_are_removed_and_those_of_a_live_one_stay(tmp_path: Path):
    cache, prompt = tmp_path / "cache", {"prompt": "x" * 200, "max_tokens": 2}
    path = sentence_model().as_uri()

    def saved(pod: str) -> list[Path]:
        return list((cache / "states" / pod).glob("*.state"))

    with Server(path, tmp_path / "alive", cache=cache) as alive:
        alive.load()
        alive.http.post("/v1/completions", json=prompt).raise_for_status()
        while not saved("pod-uid-1"):
            alive.status()
        dead = cache / "states" / "killed"
        dead.mkdir()
        (dead / "x.state").write_bytes(b"what somebody wrote")
        with Server(path, tmp_path / "other", cache=cache, pod="pod-uid-2") as other:
            other.until("Sleeping")
            assert not dead.exists()
            assert saved("pod-uid-1")
        os.kill(alive.process.pid, signal.SIGKILL)
        alive.process.wait(10)
    with Server(path, tmp_path / "third", cache=cache, pod="pod-uid-3") as third:
        third.until("Sleeping")
        assert not saved("pod-uid-1")
