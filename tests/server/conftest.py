"""Servers that several tests share: loaded once, asked many times."""

from collections.abc import Iterator

import pytest
from tests.server.harness import Server
from tests.support.gguf_files import sentence_model
from tests.support.models import minilm, smollm2


@pytest.fixture(scope="session")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SmolLM2, loaded."""
    with Server(smollm2().as_uri(), tmp_path_factory.mktemp("smol"), engine={"contextLength": 1024, "kvTokens": 2048}) as server:
        server.load()
        yield server


@pytest.fixture(scope="session")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SmolLM2, with figures that do not depend on what it was asked before: attention runs over the same number of cells each time."""
    with Server(smollm2().as_uri(), tmp_path_factory.mktemp("still"), engine={"contextLength": 256, "kvTokens": 256, "slots": 1}) as server:
        server.load()
        yield server


@pytest.fixture(scope="session")
def alpaca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that says "I am alpaca." and stops, loaded."""
    with Server(sentence_model().as_uri(), tmp_path_factory.mktemp("alpaca")) as server:
        server.load()
        yield server


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """all-MiniLM-L6-v2, loaded."""
    with Server(minilm().as_uri(), tmp_path_factory.mktemp("minilm")) as server:
        server.load()
        yield server
