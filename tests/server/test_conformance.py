"""What suites look at: names in errors, schemas that refer to themselves, inputs in every form, answers side by side."""

import json
import re
from typing import Any

import jsonschema
import pytest
from tests.server.harness import Server
from tests.server.test_serving import events

from corral_server.openai.embeddings import parse_input
from corral_server.openai.errors import ApiError
from corral_server.openai.rerank import pair_of

pytestmark = pytest.mark.model
ASK = [{"role": "user", "content": "Say hi"}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "strict": "yes", "schema": {"type": "object"}}}


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("chat/completions", {"model": 5}, "model"),
        ("chat/completions", {"stream": True, "stream_options": {"include_usage": "y"}}, "stream_options.include_usage"),
        ("chat/completions", {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ("chat/completions", {"response_format": SCHEMA}, "response_format.json_schema.strict"),
        ("chat/completions", {"reasoning_budget_tokens": -2}, "reasoning_budget_tokens"),
        ("completions", {"model": 5}, "model"),
        ("responses", {"model": 5}, "model"),
        ("responses", {"tools": [{"type": "function"}]}, "tools[0].name"),
        ("responses", {"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ("responses", {"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "input[0].name"),
    ],
)
def test_an_error_names_the_field_by_its_whole_path(smol: Server, path: str, change: dict[str, Any], param: str):
    base: dict[str, Any] = {"chat/completions": {"messages": ASK}, "completions": {"prompt": "a"}, "responses": {"input": "hi"}}[path]
    answer = smol.http.post(f"/v1/{path}", json={**base, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "properties": {"v": {"type": "integer", "minimum": 0, "maximum": 9}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
            "required": ["v", "next"],
            "additionalProperties": False,
        },
        {"type": "object", "properties": {"b": {"type": ["string", "null"], "maxLength": 4}}, "required": ["b"], "additionalProperties": False},
        {"type": ["integer", "boolean"], "minimum": 3, "maximum": 4},
    ],
    ids=["itself", "null", "bounds"],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_answers_keep_to_schemas_with_several_types_and_to_themselves(smol: Server, schema: dict[str, Any], seed: int):
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    ask = {"messages": ASK, "max_tokens": 80, "temperature": 1.0, "seed": seed, "response_format": form}
    choice = smol.http.post("/v1/chat/completions", json=ask).json()["choices"][0]
    if choice["finish_reason"] == "stop":
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)
    else:
        # It may nest for as long as it likes.
        assert re.match(r'(\{\s*"v"\s*:\s*\d\s*,\s*"next"\s*:\s*)+', choice["message"]["content"])


def test_answers_side_by_side_begin_at_the_same_figures(smol: Server):
    ask = {"messages": ASK, "n": 2, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    for cached in (True, False):
        body = smol.http.post("/v1/chat/completions", json={**ask, "cache_prompt": cached}).json()
        one, other = (choice["logprobs"]["content"] for choice in body["choices"])
        assert one == other
        # Greedy ones are one answer; these are two, whose tokens may differ.
        body = smol.http.post("/v1/chat/completions", json={**ask, "cache_prompt": cached, "temperature": 1}).json()
        one, other = (choice["logprobs"]["content"][0]["top_logprobs"] for choice in body["choices"])
        assert one == other
    # More answers than there are sequences: some begin when the others have ended.
    for temperature in (0, 1):
        asked = {**ask, "n": 9, "max_tokens": 4, "temperature": temperature, "ignore_eos": temperature > 0}
        many = smol.http.post("/v1/chat/completions", json=asked).json()
        assert [choice["index"] for choice in many["choices"]] == list(range(9))
        assert all(len(choice["logprobs"]["content"]) == 4 for choice in many["choices"])


def test_greedy_answers_to_one_prompt_are_the_same_to_the_last_token(smol: Server):
    """Evaluated side by side they part after some tokens, where two are nearly as good; llama.cpp sums each row's cells in another order."""
    ask = {"messages": ASK, "n": 3, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    body = smol.http.post("/v1/chat/completions", json=ask).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    (text,) = {choice["message"]["content"] for choice in body["choices"]}
    assert body["usage"]["completion_tokens"] == 180
    streamed = ["", "", ""]
    for chunk in events(smol.http.post("/v1/chat/completions", json={**ask, "stream": True}).text):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content") or ""
    assert len(set(streamed)) == 1
    told = {"prompt": "The sea is", "max_tokens": 3, "temperature": 0, "n": 2, "echo": True, "logprobs": 1, "best_of": 3}
    one, other = smol.http.post("/v1/completions", json=told).json()["choices"]
    assert one["text"] == other["text"]
    assert one["logprobs"]["tokens"] == other["logprobs"]["tokens"]
    assert "".join(one["logprobs"]["tokens"]) == one["text"]
    only_scores = {"prompt": "The sea is", "max_tokens": 0, "temperature": 0, "n": 2, "echo": True, "logprobs": 1, "stream": True}
    chunks = [c["choices"][0] for c in events(smol.http.post("/v1/completions", json=only_scores).text)]
    assert sorted(c["index"] for c in chunks if c["finish_reason"]) == [0, 1]
    assert {c["index"]: c["text"] for c in chunks if c["text"]} == {0: "The sea is", 1: "The sea is"}
    native = smol.http.post("/completion", json={"prompt": "The sea is", "n_predict": 5, "temperature": 0, "n_cmpl": 2}).json()
    assert [answer["index"] for answer in native] == [0, 1]
    assert native[0]["content"] == native[1]["content"]
    left_to_chance = {**ask, "n": 4, "max_tokens": 12, "temperature": 0, "dynatemp_range": 2.0}
    many = smol.http.post("/v1/chat/completions", json=left_to_chance).json()["choices"]
    assert len({choice["message"]["content"] for choice in many}) > 1
    assert text


def test_embeddings_of_inputs_in_every_form(embedder: Server):
    def vectors(raw: Any) -> list[list[float]]:
        answer = embedder.http.post("/v1/embeddings", json={"input": raw})
        assert answer.status_code == 200, answer.text
        return [entry["embedding"] for entry in answer.json()["data"]]

    tokens = embedder.http.post("/tokenize", json={"content": "hello world"}).json()["tokens"]
    parts = {"content": [{"type": "text", "text": "hello "}, {"type": "text", "text": "world"}]}
    plain, *same = vectors(["hello world", {"prompt_string": "hello world"}, parts])
    assert same == [plain, plain]
    assert vectors(parts) == [pytest.approx(plain, abs=1e-3)]
    assert len(vectors([[*tokens, "and more"], "b", tokens])) == 3
    assert len(vectors([*tokens, "and more"])) == 1
    assert len(vectors("")) == 1


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (None, "input"), ([], "input"), (5, "input"), ({}, "input"), ([None], "input[0]"), (["a", []], "input[1]"), (["a", True], "input[1]"),
        ([1, True], "input"), ({"content": "a"}, "input"), ({"content": [{"type": "image_url"}]}, "input"), (["a"] * 2049, "input"),
        ([-1], "input[0]"),
    ],
)  # fmt: skip
def test_inputs_that_are_none(raw: Any, param: str):
    with pytest.raises(ApiError) as caught:
        parse_input(raw)
    assert caught.value.param == param


def test_metrics_have_llama_cpps_header_and_kinds(smol: Server):
    answer = smol.http.get("/metrics")
    assert int(answer.headers["process-start-time-unix"]) > 1_600_000_000
    assert "# TYPE llamacpp:n_tokens_max counter\nllamacpp:n_tokens_max " in answer.text


def test_a_query_and_a_document_are_joined_as_the_model_was_trained():
    assert pair_of({"templates": {"": "chat"}}, "q", "d") == {"query": "q", "document": "d"}
    assert pair_of({"templates": {"rerank": "<Q>{query}<D>{document}</s>"}}, "a {document}", "b") == {"prompt": "<Q>a {document}<D>b</s>"}
