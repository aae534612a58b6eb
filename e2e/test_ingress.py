"""From outside: the chart's Ingress and HTTPRoute carry a streamed answer of a cold model through a real controller."""

from __future__ import annotations

import threading

import httpx2
import openai
import pytest
from e2e.support.world import World, deployment


@pytest.mark.parametrize("way", ["ingress", "route"])
def test_a_cold_model_streams_through_the_front_door(world: World, front_doors: dict[str, tuple[str, str]], way: str):
    address, host = front_doors[way]
    world.apply(deployment("alpaca", world.sources["alpaca"]))
    world.wait_ready("alpaca")
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=120, max_retries=0, default_headers={"Host": host}) as client,
        client.chat.completions.create(model="alpaca", messages=[{"role": "user", "content": "Who?"}], stream=True, max_tokens=16) as answer,
    ):
        pieces = [chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices]
    assert "".join(pieces).strip() == "I am alpaca."
    assert len([p for p in pieces if p]) > 1
    assert threading.active_count() < 50
    world.remove_models()


def test_another_host_is_not_ours(front_doors: dict[str, tuple[str, str]]):
    address, _ = front_doors["ingress"]
    assert httpx2.get(f"{address}/v1/models", headers={"Host": "other.example"}, timeout=10).status_code == 404
