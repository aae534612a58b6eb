"""A pod that sleeps keeps its model open: the second wake opens it, later ones have it at once, and answers stay the same."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from tests.server.harness import Server
from tests.support.adapter_files import write_adapter
from tests.support.models import smollm2

pytestmark = pytest.mark.model


def doze(server: Server) -> None:
    server.drain()
    assert server.sleep().status_code == 200
    server.until("Sleeping")


def answer(server: Server, **more: object) -> str:
    found = server.http.post("/completion", json={"prompt": "The sea", "n_predict": 12, "temperature": 0, "cache_prompt": False, **more})
    return str(found.raise_for_status().json()["content"])


def keeps(server: Server, file: Path) -> bool:
    return str(file) in Path(f"/proc/{server.tree()['zygote'][0]}/maps").read_text()


def test_from_the_second_wake_on_the_model_is_there_at_the_fork(tmp_path: Path):
    file = smollm2()
    with Server(f"file://{file}", tmp_path, engine={"contextLength": 256}) as server:
        server.load()
        first = answer(server)
        doze(server)
        assert not keeps(server, file), "a file is not trusted before an engine has loaded it"
        server.load()
        assert answer(server) == first
        doze(server)
        assert keeps(server, file)
        for _ in range(2):
            server.load()
            assert answer(server) == first
            doze(server)
        assert len(server.tree()["children"]) == 0
        assert server.status()["memory"]["residue"] < 128 << 20, "what a sleeping pod is given"


def test_adapters_speak_for_themselves_beside_a_kept_model(tmp_path: Path):
    adapters = [{"name": "poet", "source": write_adapter(tmp_path / "poet.gguf", 1).as_uri(), "scale": "1.0"}]
    with Server(smollm2().as_uri(), tmp_path, engine={"contextLength": 256, "adapters": adapters}) as server:
        said = []
        for _ in range(3):
            server.load()
            said.append((answer(server), answer(server, model="tested:poet")))
            doze(server)
        assert keeps(server, smollm2())
        assert said[0][0] != said[0][1]
        assert said[1:] == said[:1] * 2


def test_another_file_under_the_same_name_is_another_model(tmp_path: Path):
    file = tmp_path / "model.gguf"
    shutil.copy(smollm2(), file)
    with Server(f"file://{file}", tmp_path / "server", engine={"contextLength": 256}) as server:
        for _ in range(2):
            server.load()
            doze(server)
        assert keeps(server, file)
        damaged = tmp_path / "damaged.gguf"
        damaged.write_bytes(file.read_bytes()[: 1 << 20])
        damaged.replace(file)
        server.wake()
        status = server.until("Sleeping", "Loaded")
        assert status["error"]["message"]
        shutil.copy(smollm2(), damaged)
        damaged.replace(file)
        server.load()
        assert answer(server)


def test_a_zygote_that_dies_with_its_model_is_followed_by_one_that_opens_it_anew(tmp_path: Path):
    file = smollm2()
    with Server(f"file://{file}", tmp_path, engine={"contextLength": 256}) as server:
        for _ in range(2):
            server.load()
            doze(server)
        os.kill(server.tree()["zygote"][0], signal.SIGKILL)
        while server.tree()["zygote"]:
            time.sleep(0.01)
        for _ in range(2):
            server.load()
            assert answer(server)
            doze(server)
        assert keeps(server, file)
