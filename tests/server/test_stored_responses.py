"""Responses that are built on earlier ones, asked for again and deleted, through the official client."""

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types.responses import Response
from openai.types.responses.response_item_list import ResponseItemList
from tests.server.harness import Server
from tests.server.test_responses import ASK, TOOL, stream
from tests.server.test_serving import strict
from tests.support.gguf_files import sentence_model

from corral_server.kept_responses import tag_of

pytestmark = pytest.mark.model

FIRST = {**ASK, "input": "My name is Ada and I live in Oslo."}
SECOND = "What is my name?"


def said(answer: Response) -> dict:
    return {"role": "assistant", "content": answer.output_text}


def test_a_conversation_goes_on_from_a_response(smol: Server) -> None:
    first = smol.openai.responses.create(**FIRST)
    assert first.store is True
    assert first.id.startswith(f"resp_{tag_of(smol.pod)}")
    second = smol.openai.responses.create(**{**ASK, "input": SECOND}, previous_response_id=first.id)
    assert second.previous_response_id == first.id
    turns = [{"role": "user", "content": FIRST["input"]}, said(first), {"role": "user", "content": SECOND}]
    whole = smol.openai.responses.create(**{**ASK, "input": turns})
    assert (second.output_text, second.usage.input_tokens) == (whole.output_text, whole.usage.input_tokens)
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens
    third = {**ASK, "input": "And where do I live?", "previous_response_id": second.id}
    turns += [said(second), {"role": "user", "content": third["input"]}]
    counted = [smol.http.post("/v1/responses/input_tokens", json=body).json()["input_tokens"] for body in (third, {**ASK, "input": turns})]
    assert counted[0] == counted[1] == smol.openai.responses.create(**third).usage.input_tokens


def test_instructions_are_those_of_one_response(smol: Server) -> None:
    first = smol.openai.responses.create(**FIRST, instructions="Answer in one word.")
    second = {**ASK, "input": SECOND, "previous_response_id": first.id}
    turns = [{"role": "user", "content": FIRST["input"]}, said(first), {"role": "user", "content": SECOND}]
    assert smol.openai.responses.create(**second).usage.input_tokens == smol.openai.responses.create(**{**ASK, "input": turns}).usage.input_tokens
    other = smol.openai.responses.create(**second, instructions="Answer in two words.")
    assert other.instructions == "Answer in two words."


def test_a_response_is_read_again_and_deleted(smol: Server) -> None:
    made = smol.http.post("/v1/responses", json=FIRST)
    name = made.json()["id"]
    read = smol.http.get(f"/v1/responses/{name}")
    assert read.json() == made.json()
    assert strict(Response, read.content).output_text == smol.openai.responses.retrieve(name).output_text
    assert smol.http.get(f"/responses/{name}").json() == made.json()
    assert smol.http.delete(f"/v1/responses/{name}").json() == {"id": name, "object": "response", "deleted": True}
    for ask in (
        lambda: smol.openai.responses.retrieve(name),
        lambda: smol.openai.responses.delete(name),
        lambda: smol.openai.responses.input_items.list(name),
        lambda: smol.openai.responses.cancel(name),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert (caught.value.code, caught.value.param) == ("response_not_found", "response_id")


def test_a_stream_is_stored_before_it_ends(smol: Server) -> None:
    last = stream(smol, FIRST)[-1]["response"]
    assert smol.http.get(f"/v1/responses/{last['id']}").json() == last


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_not_to_be_stored_is_not(smol: Server, streaming: bool) -> None:
    ask = {**FIRST, "store": False}
    answer = stream(smol, ask)[-1]["response"] if streaming else smol.http.post("/v1/responses", json=ask).json()
    assert answer["store"] is False
    with pytest.raises(openai.NotFoundError):
        smol.openai.responses.retrieve(answer["id"])
    with pytest.raises(openai.BadRequestError) as caught:
        smol.openai.responses.create(**ASK, previous_response_id=answer["id"])
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def test_the_items_of_an_input_are_listed(smol: Server) -> None:
    turns = [
        {"role": "user", "content": "Hello."},
        {"type": "message", "role": "assistant", "content": "Hi.", "id": "msg_mine"},
        {"role": "user", "content": [{"type": "input_text", "text": "Bye."}]},
    ]
    name = smol.openai.responses.create(**{**ASK, "input": turns}).id
    newest_first = strict(ResponseItemList, smol.http.get(f"/v1/responses/{name}/input_items").content)
    texts = [item.content[0].text for item in newest_first.data]
    assert (texts, newest_first.has_more) == (["Bye.", "Hi.", "Hello."], False)
    assert newest_first.data[1].id == "msg_mine"
    assert [item.content[0].text for item in smol.openai.responses.input_items.list(name, order="asc", limit=1)] == ["Hello.", "Hi.", "Bye."]
    for query, param in (("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=msg_1", "after")):
        assert smol.http.get(f"/v1/responses/{name}/input_items?{query}").json()["error"]["param"] == param


def test_items_are_referred_to(smol: Server) -> None:
    first = smol.openai.responses.create(**FIRST)
    asked = {"role": "user", "content": FIRST["input"]}
    after = {"role": "user", "content": SECOND}
    referring = smol.openai.responses.create(**{**ASK, "input": [asked, {"type": "item_reference", "id": first.output[0].id}, after]})
    whole = smol.openai.responses.create(**{**ASK, "input": [asked, said(first), after]})
    assert (referring.output_text, referring.usage.input_tokens) == (whole.output_text, whole.usage.input_tokens)
    listed = smol.openai.responses.input_items.list(referring.id, order="asc").data
    assert [item.type for item in listed] == ["message"] * 3
    again = smol.openai.responses.create(**{**ASK, "input": [{"type": "item_reference", "id": listed[0].id}, said(first), after]})
    assert again.usage.input_tokens == whole.usage.input_tokens
    for wrong in (first.output[0].id[:-1] + "7", "msg_1"):
        with pytest.raises(openai.NotFoundError) as caught:
            smol.openai.responses.create(**{**ASK, "input": [asked, {"type": "item_reference", "id": wrong}]})
        assert (caught.value.code, caught.value.param) == ("item_not_found", "input[1].id")
    with pytest.raises(openai.BadRequestError) as refused:
        smol.openai.responses.create(**{**ASK, "input": [{"type": "item_reference"}]})
    assert refused.value.param == "input[0].id"


def test_the_result_of_a_call_follows_the_response_that_called(smol: Server) -> None:
    ask = {**ASK, "input": "How is the weather in Oslo for the next 5 days?", "tools": [TOOL], "max_output_tokens": 80}
    first = smol.openai.responses.create(**ask, tool_choice="required")
    (call,) = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = smol.openai.responses.create(**{**ask, "input": [result]}, previous_response_id=first.id, tool_choice="none")
    turns = [
        {"role": "user", "content": ask["input"]},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        result,
    ]
    assert second.usage.input_tokens == smol.openai.responses.create(**{**ask, "input": turns}, tool_choice="none").usage.input_tokens


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": 7}, "previous_response_id"),
        ({"previous_response_id": "../x"}, "previous_response_id"),
        ({"store": "no"}, "store"),
        ({"conversation": "conv_1"}, "conversation"),
    ],
)
def test_what_cannot_be_is_refused_by_name(smol: Server, more: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        smol.openai.responses.create(**ASK, extra_body=more)
    assert caught.value.param == param


def test_only_background_responses_can_be_cancelled_or_streamed_again(smol: Server) -> None:
    name = smol.openai.responses.create(**FIRST).id
    with pytest.raises(openai.BadRequestError) as caught:
        smol.openai.responses.cancel(name)
    assert caught.value.param == "response_id"
    with pytest.raises(openai.BadRequestError) as caught:
        list(smol.openai.responses.retrieve(name, stream=True))
    assert caught.value.param == "stream"


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    with Server(sentence_model().as_uri(), tmp_path / "first", cache=tmp_path / "cache") as server:
        server.load()
        yield server, tmp_path


def test_a_response_is_there_while_its_model_sleeps_and_after_its_server_was_killed(sleeper: tuple[Server, Path]) -> None:
    server, folder = sleeper
    first = server.openai.responses.create(model="m", input="Who are you?")
    assert server.drain().status_code in (200, 202)
    server.until("Drained", "Draining")
    assert server.openai.responses.retrieve(first.id).output_text == first.output_text
    assert server.sleep().status_code in (200, 202)
    server.until("Sleeping")
    assert server.openai.responses.retrieve(first.id).output_text == first.output_text
    assert server.status()["state"] == "Sleeping"
    assert server.http.post("/v1/responses", json={"model": "m", "input": "x", "previous_response_id": first.id}).status_code == 503
    server.kill()
    with Server(sentence_model().as_uri(), folder / "second", cache=folder / "cache") as again:
        assert again.openai.responses.retrieve(first.id).output_text == first.output_text
        again.load()
        second = again.openai.responses.create(model="m", input="Who?", previous_response_id=first.id)
        assert second.usage.input_tokens > first.usage.total_tokens
        assert "Who are you?" not in again.log() + json.dumps(again.status())
    assert not any((folder / "cache").glob("states/*/responses/*"))
