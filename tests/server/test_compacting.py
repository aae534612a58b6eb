"""Long conversations that are made short: the model's own summary goes on in place of what was said."""

import base64
import json

import openai
import pytest
from tests.server.harness import Server
from tests.server.test_responses import ASK

from corral_server.openai.compacting import asking, latest_words, seal, unseal
from corral_server.openai.errors import ApiError

TURNS = [
    {"role": "user", "content": "We launch on Tuesday, and Ada tells support."},
    {"type": "message", "role": "assistant", "content": "Understood: Tuesday, and Ada tells support first."},
]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def test_the_users_latest_words_stay_as_long_as_there_is_room() -> None:
    items = [user("a" * 50), {"role": "assistant", "content": "x" * 500}, user("b" * 50), {"type": "reasoning"}, user("c")]
    assert [item["content"][0] for item in latest_words(items, 1_000)] == ["a", "b", "c"]
    assert [item["content"][0] for item in latest_words(items, 60)] == ["b", "c"]
    assert latest_words(items, 2) == []


def test_the_request_for_a_summary_keeps_turns_alternating() -> None:
    assert [m["role"] for m in asking([user("a"), {"role": "assistant", "content": "b"}])] == ["user", "assistant", "user"]
    (only,) = asking([user("a")])
    assert only["content"].startswith("a\n\n")


@pytest.mark.parametrize("sealed", [None, 7, "", "not base64!", base64.b64encode(b"[]").decode(), base64.b64encode(b"gAAAA").decode()])
def test_a_summary_of_somebody_elses_making_is_refused_by_its_place(sealed: object) -> None:
    assert unseal({"encrypted_content": seal("a ü")}, "input[0]").endswith("a ü")
    with pytest.raises(ApiError) as caught:
        unseal({"encrypted_content": sealed}, "input[0]")
    assert caught.value.param == "input[0].encrypted_content"


@pytest.mark.model
def test_a_conversation_is_made_short_and_goes_on(smol: Server) -> None:
    short = smol.http.post("/v1/responses/compact", json={"model": "m", "input": TURNS}).raise_for_status().json()
    assert (short["object"], [item["type"] for item in short["output"]]) == ("response.compaction", ["message", "compaction"])
    message, summary = short["output"]
    assert (message["role"], message["content"]) == ("user", [{"type": "input_text", "text": TURNS[0]["content"]}])
    assert summary["id"].startswith("cmp_")
    assert json.loads(base64.b64decode(summary["encrypted_content"]))["summary"]
    assert short["usage"]["total_tokens"] == short["usage"]["input_tokens"] + short["usage"]["output_tokens"]
    told = smol.openai.responses.compact(model="m", input=TURNS)
    assert told.output[-1].encrypted_content == summary["encrypted_content"]
    after = smol.openai.responses.create(**{**ASK, "input": [*short["output"], user("When do we launch?")]})
    assert after.usage.input_tokens > len(TURNS[0]["content"].split())
    again = smol.openai.responses.create(**{**ASK, "input": "And who tells support?"}, previous_response_id=after.id)
    assert again.usage.input_tokens > after.usage.input_tokens


@pytest.mark.model
def test_a_stored_conversation_is_made_short(smol: Server) -> None:
    first = smol.openai.responses.create(**{**ASK, "input": TURNS[0]["content"]})
    short = smol.openai.responses.compact(model="m", previous_response_id=first.id)
    assert [item.type for item in short.output] == ["message", "compaction"]


@pytest.mark.model
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": "a", "model": None}, "model"),
        ({"input": []}, "input"),
        ({"input": [7]}, "input[0]"),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input[0].encrypted_content"),
        ({"input": "a", "instructions": 7}, "instructions"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
def test_what_cannot_be_is_refused_by_name(smol: Server, body: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        smol.openai.post("/responses/compact", body={"model": "m", **body}, cast_to=object)
    assert caught.value.param == param
