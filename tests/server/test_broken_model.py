"""Models whose weights make no numbers: an error that says so, and a server that goes on."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.server.harness import Server
from tests.support.random_models import Shape, random_model

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file, but for the last norm of its output, which is NaN."""
    target = tmp_path_factory.mktemp("broken") / "model.gguf"
    target.write_bytes(random_model(Shape("llama")).read_bytes())
    (norm,) = (t for t in gguf.GGUFReader(target).tensors if t.name == "output_norm.weight")
    with target.open("r+b") as file:
        file.seek(norm.data_offset)
        file.write(np.full(norm.n_elements, np.nan, dtype=np.float32).tobytes())
    return target


@pytest.mark.parametrize(
    "asked",
    [{"temperature": 0}, {"temperature": 0.8}, {"mirostat": 2}, {"temperature": 0, "n": 2}, {"response_format": {"type": "json_object"}}],
    ids=str,
)
def test_an_answer_without_numbers_is_an_error_and_the_engine_lives(asked: dict, broken: Path, server: Server):
    answer = server.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, **asked})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "broken_logits"), answer.text
    assert answer.headers["x-should-retry"] == "false"
    assert "no numbers" in answer.json()["error"]["message"]
    assert server.status()["error"] is None
    assert all(not s["is_processing"] for s in server.http.get("/slots").json())


def test_a_stream_without_numbers_ends_in_an_error_event(server: Server):
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert b'"code":"broken_logits"' in b"".join(answer.iter_bytes())


def test_an_embedding_without_numbers_is_an_error(broken: Path, tmp_path: Path):
    with Server(broken.as_uri(), tmp_path, engine={"pooling": "Mean"}) as server:
        server.load()
        answer = server.http.post("/v1/embeddings", json={"input": ["one", "two"]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "broken_embedding"), answer.text
        assert server.status()["error"] is None


@pytest.fixture(scope="module")
def server(broken: Path, tmp_path_factory: pytest.TempPathFactory):
    with Server(broken.as_uri(), tmp_path_factory.mktemp("server")) as started:
        started.load()
        yield started
