"""The messages API, through the official client of its maker."""

import json
from collections.abc import Iterator

import anthropic
import httpx2
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter
from tests.server.harness import Server
from tests.server.test_serving import strict
from tests.server.test_tools import WEATHER, arguments_fit

pytestmark = pytest.mark.model

ASK = {
    "model": "m",
    "max_tokens": 24,
    "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
    "temperature": 0,
    "cache_prompt": False,
}
# The client knows neither field; the same evaluation gives the same answer only without the cache.
ASKED = {k: v for k, v in ASK.items() if k not in ("temperature", "cache_prompt")} | {"extra_body": {"temperature": 0, "cache_prompt": False}}
TOOL = {"name": "get_weather", "description": "The weather.", "input_schema": WEATHER["function"]["parameters"]}
EVENT = TypeAdapter(RawMessageStreamEvent)


@pytest.fixture
def client(smol: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=smol.inference_url, api_key=smol.keys.sign("infer"), max_retries=0, timeout=120) as made:
        yield made


def test_an_answer_has_the_exact_shape(smol: Server, client: anthropic.Anthropic):
    answer = strict(Message, smol.http.post("/v1/messages", json={**ASK, "system": "Be brief."}).content)
    assert "sea" in answer.content[0].text.lower()
    assert answer.stop_reason in ("end_turn", "max_tokens")
    again = client.messages.create(**ASKED, system=[{"type": "text", "text": "Be brief."}])
    assert again.content[0].text == answer.content[0].text
    assert again.usage.output_tokens == answer.usage.output_tokens


def test_a_stream_comes_in_order_and_says_the_same(smol: Server, client: anthropic.Anthropic):
    whole = client.messages.create(**ASKED)
    blocks = smol.http.post("/v1/messages", json={**ASK, "stream": True}).text.removesuffix("\n\n").split("\n\n")
    found = [json.loads(b.split("\ndata: ")[1]) for b in blocks]
    for block, event in zip(blocks, found, strict=True):
        assert block.startswith(f"event: {event['type']}\n")
        EVENT.validate_json(json.dumps(event), strict=True)
    kinds = [e["type"] for e in found]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    with client.messages.stream(**ASKED) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert stream.get_final_message().usage.output_tokens == whole.usage.output_tokens


def test_stop_sequences_are_named(alpaca: Server):
    body = {**ASK, "stop_sequences": ["alp"]}
    answer = alpaca.http.post("/v1/messages", json=body).json()
    assert (answer["content"][0]["text"], answer["stop_reason"], answer["stop_sequence"]) == ("I am ", "stop_sequence", "alp")


def test_tools_are_used(client: anthropic.Anthropic):
    ask = {**ASKED, "max_tokens": 80, "tools": [TOOL], "tool_choice": {"type": "any"}}
    answer = client.messages.create(**ask)
    assert answer.stop_reason == "tool_use"
    (used,) = answer.content
    arguments_fit(json.dumps(used.input))
    with client.messages.stream(**ask) as stream:
        (streamed,) = stream.get_final_message().content
    assert (streamed.name, streamed.input) == (used.name, used.input)
    result = {"type": "tool_result", "tool_use_id": used.id, "content": [{"type": "text", "text": "sunny"}]}
    history = [*ASK["messages"], {"role": "assistant", "content": [used.model_dump(exclude_none=True)]}, {"role": "user", "content": [result]}]
    assert client.messages.create(**{**ASKED, "messages": history}, tools=[TOOL], tool_choice={"type": "none"}).content


def test_tokens_are_counted(client: anthropic.Anthropic):
    counted = client.messages.count_tokens(model="m", messages=ASK["messages"]).input_tokens
    usage = client.messages.create(**ASKED).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


@pytest.mark.parametrize(
    "more",
    [
        {"messages": "Hello"},
        {"max_tokens": 0},
        {"extra_body": {"temperature": 9}},
        {"tool_choice": {"type": []}},
        {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]},
    ],
)
def test_errors_have_their_own_shape(client: anthropic.Anthropic, more: dict):
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**{**ASKED, **more})
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert next(iter(more.get("extra_body", more))) in caught.value.body["error"]["message"]


PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
FOUND = {"type": "search_result", "title": "Weather", "source": "https://example.com", "content": [{"type": "text", "text": "sunny"}]}
PAPER = {"type": "document", "title": "Paper", "source": {"type": "text", "media_type": "text/plain", "data": "rainy"}}


def counted(server: Server, *blocks: object) -> httpx2.Response:
    used = {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "look", "input": {}}]}
    body = {"messages": [*ASK["messages"], used, {"role": "user", "content": [{"type": "text", "text": "so"}, *blocks]}]}
    return server.http.post("/v1/messages/count_tokens", json=body)


def result(*content: object) -> dict:
    return {"type": "tool_result", "tool_use_id": "c", "content": list(content)}


def test_what_a_tool_found_is_text(alpaca: Server):
    as_text = [{"type": "text", "text": text} for text in ("Weather\nhttps://example.com\nsunny", "Paper:\nrainy")]
    assert counted(alpaca, result(FOUND, PAPER)).json() == counted(alpaca, result(*as_text)).json()
    assert counted(alpaca, FOUND).json() == counted(alpaca, as_text[0]).json()


@pytest.mark.parametrize(
    ("block", "named"),
    [
        (result(FOUND, PICTURE), "messages[2].content[1].content[1] is of type image_url; this model takes text only"),
        (PICTURE, "messages[2].content[1] is of type image_url; this model takes text only"),
        (result({**PICTURE, "source": {"type": "file", "file_id": "f"}}), "messages[2].content[1].content[0] is an image of type"),
        (result({**PAPER, "source": {"type": "base64", "data": "AA"}}), "messages[2].content[1].content[0] is a document of type"),
        (result({**FOUND, "title": 5}), "messages[2].content[1].content[0].title is 5"),
        (result({**PAPER, "source": "x"}), "messages[2].content[1].content[0].source is"),
        (result({"type": ["text"]}), "messages[2].content[1].content[0] is"),
        (result({"type": "tool_reference", "tool_name": "x"}), "messages[2].content[1].content[0] is"),
        ({**result(), "content": 5}, "messages[2].content[1].content is 5"),
    ],
)
def test_a_wrong_block_is_named_as_it_was_written(alpaca: Server, block: dict, named: str):
    refused = counted(alpaca, block)
    assert refused.status_code == 400
    assert named in refused.json()["error"]["message"]
