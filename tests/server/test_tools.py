"""Tools, structured answers and counts of a loaded model, through the official client; streams say the same as whole answers."""

import json

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.server.harness import Server
from tests.server.test_serving import events, strict

pytestmark = pytest.mark.model

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}}, "required": ["a"]}},
}
ASK = {"model": "m", "messages": [{"role": "user", "content": "How is the weather in Oslo for the next 5 days?"}], "temperature": 0, "max_tokens": 80}


def arguments_fit(text: str) -> None:
    found = json.loads(text)
    assert set(found) == {"city", "days"}
    assert 1 <= found["days"] <= 7


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_model_that_has_to_call_calls(smol: Server, choice: object):
    tools = [WEATHER] if choice == "required" else [ADD, WEATHER]
    answer = strict(ChatCompletion, smol.http.post("/v1/chat/completions", json={**ASK, "tools": tools, "tool_choice": choice}).content)
    (chosen,) = answer.choices
    assert chosen.finish_reason == "tool_calls"
    assert chosen.message.content is None
    (call,) = chosen.message.tool_calls
    assert call.function.name == "get_weather"
    arguments_fit(call.function.arguments)


def test_calls_stream_in_pieces_that_make_the_whole(smol: Server):
    ask = {**ASK, "tools": [WEATHER], "tool_choice": "required"}
    body = {**ask, "cache_prompt": False}
    whole = smol.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["tool_calls"][0]["function"]
    chunks = events(smol.http.post("/v1/chat/completions", json={**body, "stream": True}).text)
    for chunk in chunks:
        strict(ChatCompletionChunk, chunk)
    deltas = [c for chunk in chunks for c in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert deltas[0]["function"]["name"] == whole["name"]
    assert deltas[0]["id"]
    assert all(d["index"] == 0 and "id" not in d for d in deltas[1:])
    assert len(deltas) > 3
    assert "".join(d["function"]["arguments"] for d in deltas) == whole["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    with smol.openai.chat.completions.stream(**ask) as stream:
        final = stream.get_final_completion()
    arguments_fit(final.choices[0].message.tool_calls[0].function.arguments)


def test_a_result_goes_back_to_the_model(smol: Server):
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris", "days": 1}'}}
    history = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    answer = smol.openai.chat.completions.create(**{**ASK, "messages": history}, tools=[WEATHER])
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")
    prompt = smol.http.post("/apply-template", json={"messages": history, "tools": [WEATHER]}).json()["prompt"]
    assert "sunny" in prompt
    assert "get_weather" in prompt


def test_a_choice_of_none_means_no_tools(smol: Server):
    bare = smol.http.post("/apply-template", json=ASK).json()["prompt"]
    assert smol.http.post("/apply-template", json={**ASK, "tools": [WEATHER], "tool_choice": "none"}).json()["prompt"] == bare
    assert "get_weather" in smol.http.post("/apply-template", json={**ASK, "tools": [WEATHER]}).json()["prompt"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": "x"}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces!"}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": 7}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}], "tool_choice": "required"}, "tools"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"lora": [{"id": 0, "scale": 1.0}]}, "lora"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
    ],
)
def test_what_is_wrong_with_tools_is_named(smol: Server, more: dict, param: str):
    with pytest.raises(openai.BadRequestError) as caught:
        smol.openai.chat.completions.create(**ASK, extra_body=more)
    assert caught.value.param == param


def test_an_adapter_that_is_not_there_is_not_found(smol: Server):
    answer = smol.http.post("/v1/chat/completions", json=ASK, headers={"x-corral-adapter": "poet"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapter_not_found")
    assert smol.http.get("/lora-adapters").json() == []


def test_integers_keep_their_bounds(smol: Server):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 18, "maximum": 42}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    for seed in range(4):
        answer = smol.openai.chat.completions.create(**{**ASK, "temperature": 1.5, "seed": seed}, response_format=form)
        assert 18 <= json.loads(answer.choices[0].message.content)["n"] <= 42


def test_the_gateway_gets_counts_when_it_asks(smol: Server):
    ask, wants = {**ASK, "max_tokens": 5}, {"x-corral-usage": "1"}
    whole = smol.http.post("/v1/chat/completions", json=ask, headers=wants)
    counts = whole.json()["usage"]
    told = f"{counts['prompt_tokens']},{counts['completion_tokens']}"
    assert whole.headers["x-corral-usage"] == told
    stream = smol.http.post("/v1/chat/completions", json={**ask, "stream": True}, headers=wants).text
    assert stream.endswith(f"data: [DONE]\n\n: corral-usage {told}\n\n")
    assert "x-corral-usage" not in smol.http.post("/v1/chat/completions", json=ask).headers
    assert "corral-usage" not in smol.http.post("/v1/chat/completions", json={**ask, "stream": True}).text


def test_the_input_can_be_counted(smol: Server):
    counted = smol.http.post("/v1/chat/completions/input_tokens", json=ASK).json()["input_tokens"]
    assert counted == smol.http.post("/v1/chat/completions", json={**ASK, "max_tokens": 1}).json()["usage"]["prompt_tokens"]


def test_completions_echo_and_choose_the_best(smol: Server):
    ask = {"model": "m", "prompt": "One, two, three,", "max_tokens": 4, "temperature": 0}
    plain, echoed = (smol.openai.completions.create(**ask, echo=e).choices[0].text for e in (False, True))
    assert echoed == ask["prompt"] + plain
    with smol.openai.completions.create(**ask, echo=True, stream=True) as stream:
        assert "".join(c.choices[0].text for c in stream) == echoed
    best = smol.openai.completions.create(**{**ask, "temperature": 1.2, "seed": 3}, best_of=3, n=1)
    assert len(best.choices) == 1
    assert best.usage.completion_tokens > 4
    for more, param in (({"best_of": 1, "n": 2}, "best_of"), ({"best_of": 2, "stream": True}, "best_of"), ({"suffix": "end"}, "suffix")):
        with pytest.raises(openai.BadRequestError) as caught:
            smol.openai.completions.create(**ask, **more)
        assert caught.value.param == param
    assert smol.http.post("/infill", json={"input_prefix": "def f(", "input_suffix": ")"}).json()["error"]["param"] == "input_prefix"
