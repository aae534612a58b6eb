"""The official clients with their own defaults: through a cold start, and into each kind of error."""

import asyncio
import json

import anthropic
import openai
import pytest
from tests.gateway.conftest import model
from tests.gateway.peers import Pod

from corral.gateway.ports import Hold


def chunk(text, finish=None):
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return (
        b"data: " + json.dumps({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "small", "choices": [delta]}).encode() + b"\n\n"
    )


def anthropic_events(*texts):
    usage = {"input_tokens": 1, "output_tokens": 0}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "small", "content": [], "stop_reason": None, "usage": usage}
    events = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}} for text in texts),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]


ASK = {"model": "small", "messages": [{"role": "user", "content": "hello"}]}


async def test_a_streamed_cold_start_with_comments(stand):
    async with Pod(state="Sleeping") as pod, openai.AsyncOpenAI(base_url=stand.url + "/v1", api_key="none") as client:
        pod.chunks = [chunk("one "), chunk("two", "stop"), b"data: [DONE]\n\n"]
        stand.directory.put_model(model(hold=Hold(timeout=20, heartbeat=0.05)))
        stand.directory.put_replica(pod.view())

        async def ask():
            stream = await client.chat.completions.create(**ASK, stream=True)
            return [part.choices[0].delta.content async for part in stream]

        asked = asyncio.ensure_future(ask())
        await stand.until(lambda: pod.polls)
        await asyncio.sleep(0.2)  # several heartbeats
        await pod.become("Loaded")
        assert await asked == ["one ", "two"]


async def test_anthropics_client_through_a_streamed_cold_start(stand):
    async with Pod(state="Sleeping") as pod, anthropic.AsyncAnthropic(base_url=stand.url, api_key="none") as client:
        pod.chunks = anthropic_events("one ", "two")
        stand.directory.put_model(model(hold=Hold(timeout=20, heartbeat=0.05)))
        stand.directory.put_replica(pod.view())

        async def ask():
            async with client.messages.stream(**ASK, max_tokens=5) as stream:
                return [text async for text in stream.text_stream], (await stream.get_final_message()).stop_reason

        asked = asyncio.ensure_future(ask())
        await stand.until(lambda: pod.polls)
        await asyncio.sleep(0.2)  # several heartbeats
        await pod.become("Loaded")
        assert await asked == (["one ", "two"], "end_turn")
        assert [seen[1] for seen in pod.seen] == ["/v1/messages"]


async def test_an_error_after_comments_is_raised(stand):
    stand.directory.put_model(model(hold=Hold(timeout=0.3, heartbeat=0.1)))
    async with openai.AsyncOpenAI(base_url=stand.url + "/v1", api_key="none") as client:
        with pytest.raises(openai.APIError, match="did not become resident"):
            async for _ in await client.chat.completions.create(**ASK, stream=True):
                pass
    async with anthropic.AsyncAnthropic(base_url=stand.url, api_key="none") as client:
        with pytest.raises(anthropic.APIStatusError, match="did not become resident"):
            async for _ in await client.messages.create(**ASK, max_tokens=5, stream=True):
                pass


async def test_early_errors_have_their_own_classes(stand):
    stand.directory.put_model(model(ready=False, stalled=True, stalled_reason="DoesNotFit", stalled_message="needs 41Gi"))
    async with openai.AsyncOpenAI(base_url=stand.url + "/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(**{**ASK, "model": "nobody"})
        assert caught.value.code == "model_not_found"
        assert caught.value.request_id
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(**ASK)
        assert (caught.value.status_code, caught.value.code) == (503, "does_not_fit")
        assert {entry.id async for entry in client.models.list()} == {"models/small", "small"}


async def test_a_request_that_may_have_run_is_not_repeated(stand):
    async with Pod() as pod, openai.AsyncOpenAI(base_url=stand.url + "/v1", api_key="none") as client:
        pod.gate = asyncio.Event()
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        asked = asyncio.ensure_future(client.chat.completions.create(**ASK))
        await stand.until(lambda: pod.in_flight == 1)
        for connection in list(stand.gateway.upstream._active):
            connection.transport.abort()
        with pytest.raises(openai.InternalServerError) as caught:
            await asked
        assert caught.value.status_code == 502
        assert len(pod.seen) == 1
