"""Several answers to one request, from the events of an engine to their end."""

import asyncio
from types import SimpleNamespace

import pytest

from corral_server.engine_client import EngineClient, EngineError
from corral_server.metrics import Totals
from corral_server.openai.generation import Generation


class Wire:
    """Where orders to an engine go; the test is the engine."""

    def __init__(self) -> None:
        self.sent: list[dict] = []

    def send(self, message: dict) -> None:
        self.sent.append(message)


def step(client: EngineClient, *events: dict) -> None:
    client.dispatch({"queued": 0, "active": 1, "e": list(events), "figures": {"decodes": 1, "busy": 1, "held": 1, "threads": 1}})


async def test_when_one_answer_fails_nobody_waits_for_the_others():
    wire = Wire()
    client = EngineClient(SimpleNamespace(channel=wire), Totals())
    generation = Generation(client, [{"prompt": "a"}, {"prompt": "b"}])
    failed, other = (stream.id for stream in generation.streams)
    step(client, {"i": failed, "err": {"status": 400, "code": "context_length_exceeded", "message": "too long", "param": "messages"}})
    before = asyncio.all_tasks()
    with pytest.raises(EngineError, match="too long"):
        await generation.collect()
    assert asyncio.all_tasks() == before
    assert wire.sent[-1] == {"t": "cancel", "id": other}
    assert client.waiting == 0


async def test_the_pieces_of_an_answer_know_how_many_tokens_they_are():
    client = EngineClient(SimpleNamespace(channel=Wire()), Totals())
    generation = Generation(client, [{"prompt": "a"}])
    (number,) = (stream.id for stream in generation.streams)
    usage = {"prompt": 1, "cached": 0, "completion": 4, "prompt_ms": 1.0, "predicted_ms": 1.0}
    step(client, {"i": number, "d": "x"}, {"i": number, "d": "é", "n": 2}, {"i": number, "f": "stop", "u": usage})
    (finished,) = await generation.collect()
    assert (finished.text, finished.pieces) == ("xé", [("x", 1), ("é", 2)])
