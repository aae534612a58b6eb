"""A stream that has nothing to say for long: proxies must see that it lives, and who comes first must still hear of an early failure."""

import json
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from tests.server.harness import Server
from tests.support.gguf_files import sentence_model

BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Who?"}]},
    "/v1/completions": {"prompt": "Who?"},
    "/v1/responses": {"input": "Who?"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 16},
    "/completion": {"prompt": "Who?"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = sentence_model("I am alpaca.")
    with Server(path.as_uri(), tmp_path_factory.mktemp("quiet"), env={"CORRAL_STREAM_QUIET_SECONDS": "0.2"}) as server:
        server.load()
        yield server


@pytest.mark.parametrize("path", BODIES)
def test_comments_tell_that_a_long_prompt_is_read(server: Server, path: str):
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)  # as if the prompt took that long
    try:
        with server.http.stream("POST", path, json={**BODIES[path], "stream": True, "temperature": 0}) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            assert next(line for line in lines if line) == ": still working"
            assert next(line for line in lines if line) == ": still working"
            os.kill(engine, signal.SIGCONT)
            rest = [line for line in lines if line.startswith("data: {")]
    finally:
        os.kill(engine, signal.SIGCONT)
    assert rest
    assert "alpaca" in "".join(_texts(json.loads(line.removeprefix("data: "))) for line in rest)


def _texts(value: object) -> str:
    """Every piece of text of an event, whatever the shape of its API."""
    if isinstance(value, dict):
        return "".join(_texts(each) for each in value.values())
    if isinstance(value, list):
        return "".join(map(_texts, value))
    return value if isinstance(value, str) else ""


def test_a_client_that_wants_no_comments_gets_none(server: Server):
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    body = {**BODIES["/v1/chat/completions"], "stream": True, "temperature": 0}
    goes_on = threading.Timer(1.0, os.kill, (engine, signal.SIGCONT))
    goes_on.start()
    try:
        answer = server.http.post("/v1/chat/completions", json=body, headers={"x-corral-hold": "silent"})
    finally:
        goes_on.join()
    assert answer.status_code == 200
    assert ": still" not in answer.text


def test_an_early_failure_has_its_own_status(server: Server):
    body = {"messages": [{"role": "user", "content": "word " * 400}], "stream": True}
    answer = server.http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
