"""Deaths and signals: of the engine, of the zygote, of the supervisor."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from tests.server.harness import Server
from tests.support.gguf_files import sentence_model

pytestmark = pytest.mark.model

CHAT = {"messages": [{"role": "user", "content": "Go on"}], "temperature": 0, "max_tokens": 3000, "stream": True}


@pytest.fixture(scope="module")
def endless() -> Path:
    return sentence_model("The quick brown alpaca jumps over the lazy llama", size=60_000_000, layers=4, context=4096, loop=True)


def gone(pid: int) -> bool:
    """Whether a process ends within a while; a zombie that waits for init counts."""
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_an_engine_that_dies_is_answered_and_started_again(endless: Path, tmp_path: Path):
    with Server(endless.as_uri(), tmp_path) as server:
        server.load()
        whole: list = []
        waiter = threading.Thread(target=lambda: whole.append(server.http.post("/v1/chat/completions", json={**CHAT, "stream": False})))
        with server.http.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
            blocks = answer.iter_bytes()
            next(blocks)
            waiter.start()
            while server.status()["inFlight"] < 2:
                time.sleep(0.01)
            os.kill(server.engine_pid(), signal.SIGKILL)
            last = b"".join(blocks).split(b"\n\n")[-2]
        waiter.join(30)
        assert b'"code":"engine_crashed"' in last
        assert whole[0].status_code == 500
        assert whole[0].headers["x-should-retry"] == "false"
        status = server.until("Loaded")
        assert status["inFlight"] == 0
        assert server.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}).status_code == 200


def test_a_crash_loop_is_reported_and_left_asleep(tmp_path: Path):
    with Server(sentence_model().as_uri(), tmp_path) as server:
        server.load()
        for _ in range(3):
            status = server.until("Loaded")
            os.kill(server.engine_pid(), signal.SIGKILL)
            while status["state"] == "Loaded":
                status = server.status(after=status["version"])
        status = server.until("Sleeping")
        assert status["error"]["reason"] == "EngineCrashed"
        assert status["error"]["retry"]
        assert server.load()["error"] is None


def test_a_zygote_that_dies_takes_its_engine_along_and_a_new_one_comes(tmp_path: Path):
    with Server(sentence_model().as_uri(), tmp_path) as server:
        server.load()
        tree = server.tree()
        os.kill(tree["zygote"][0], signal.SIGKILL)
        assert all(gone(p) for p in tree["children"])
        status = server.status()
        while status["loads"] < 2:
            status = server.status(after=status["version"])
        assert server.http.post("/v1/chat/completions", json={**CHAT, "stream": False}).json()["choices"][0]["message"]["content"] == "I am alpaca."


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path):
    server = Server(sentence_model().as_uri(), tmp_path)
    server.load()
    tree = server.tree()
    server.kill()
    assert all(gone(p) for p in tree["zygote"] + tree["children"])


def test_sigterm_lets_streams_finish_and_sends_others_away(endless: Path, tmp_path: Path):
    with Server(endless.as_uri(), tmp_path) as server:
        server.load()
        with server.http.stream("POST", "/v1/chat/completions", json={**CHAT, "max_tokens": 300}) as answer:
            blocks = answer.iter_bytes()
            next(blocks)
            server.process.send_signal(signal.SIGTERM)
            while server.status()["admitting"]:
                time.sleep(0.01)
            refused = server.http.post("/v1/chat/completions", json=CHAT)
            assert (refused.status_code, refused.headers["x-corral-draining"]) == (503, "true")
            assert b"".join(blocks).endswith(b"data: [DONE]\n\n")
        assert server.process.wait(20) == 0


def test_a_grace_period_that_is_over_ends_streams_with_an_event(endless: Path, tmp_path: Path):
    with Server(endless.as_uri(), tmp_path, env={"CORRAL_GRACE_SECONDS": "0.3"}) as server:
        server.load()
        with server.http.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
            blocks = answer.iter_bytes()
            next(blocks)
            server.process.send_signal(signal.SIGTERM)
            assert b'"code":"shutting_down"' in b"".join(blocks)
        assert server.process.wait(20) == 0


def test_a_template_that_loops_or_grows_is_ended_and_disturbs_nobody(tmp_path: Path):
    for name, template in (
        ("loop", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        ("grow", "{{ ('x' * 99999999) ~ ('y' * 99999999) ~ ('z' * 999999999) }}"),
    ):
        with Server(sentence_model().as_uri(), tmp_path / name, engine={"chatTemplate": template}) as server:
            server.load()
            refused = server.http.post("/v1/chat/completions", json={**CHAT, "stream": False})
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "template_failed")
            assert server.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}).status_code == 200


def test_no_prompt_reaches_the_log(tmp_path: Path):
    with Server(sentence_model().as_uri(), tmp_path) as server:
        server.load()
        server.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "my secret is xyzzy"}], "max_tokens": 2})
        server.http.post("/v1/chat/completions", json={"messages": [{"role": "xyzzy", "content": "xyzzy"}]})
        server.http.post("/v1/completions", json={"prompt": "xyzzy", "grammar": "xyzzy ::= ["})
        server.stop()
        assert "xyzzy" not in server.log()
