"""The responses API, through the official client; every event is validated strictly."""

import json

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from tests.server.harness import Server
from tests.server.test_serving import strict
from tests.server.test_tools import WEATHER, arguments_fit

pytestmark = pytest.mark.model

ASK = {"model": "m", "input": "Write one sentence about the sea.", "temperature": 0, "max_output_tokens": 24}
TOOL = {"type": "function", "strict": True, **WEATHER["function"]}
SHOWN = [{"type": "input_text", "text": "seen"}, {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]
EVENT = TypeAdapter(ResponseStreamEvent)


def stream(server: Server, ask: dict) -> list[dict]:
    text = server.http.post("/v1/responses", json={**ask, "stream": True}).text
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_json(json.dumps(event), strict=True)
        found.append(event)
    assert [e["sequence_number"] for e in found] == list(range(len(found)))
    return found


def test_an_answer_has_the_exact_shape(smol: Server):
    answer = strict(Response, smol.http.post("/v1/responses", json=ASK).content)
    assert "sea" in answer.output_text.lower()
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert smol.openai.responses.create(**ASK).output_text == answer.output_text


def test_a_stream_says_the_same(smol: Server):
    # The same evaluation, without which the same answer is not certain.
    whole = smol.openai.responses.create(**ASK, extra_body={"cache_prompt": False})
    found = stream(smol, {**ASK, "cache_prompt": False})
    kinds = [e["type"] for e in found]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[-1] == f"response.{whole.status}"
    assert "".join(e["delta"] for e in found if e["type"] == "response.output_text.delta") == whole.output_text
    assert found[-1]["response"]["usage"]["output_tokens"] == whole.usage.output_tokens
    with smol.openai.responses.stream(**{**ASK, "max_output_tokens": 200}) as events:
        for _ in events:
            pass
        assert "sea" in events.get_final_response().output_text.lower()


def test_functions_are_called(smol: Server):
    ask = {
        **ASK,
        "input": "How is the weather in Oslo for the next 5 days?",
        "tools": [TOOL],
        "tool_choice": "required",
        "max_output_tokens": 80,
        "cache_prompt": False,
    }
    (call,) = strict(Response, smol.http.post("/v1/responses", json=ask).content).output
    assert (call.type, call.name) == ("function_call", "get_weather")
    arguments_fit(call.arguments)
    found = stream(smol, ask)
    pieces = [e["delta"] for e in found if e["type"] == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call.arguments
    back = [
        {"role": "user", "content": "How is the weather in Oslo for the next 5 days?"},
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": call.arguments},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
    ]
    assert smol.openai.responses.create(**{**ASK, "input": back}).output_text


def test_structured_output_and_counting(smol: Server):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    assert 3 <= json.loads(smol.openai.responses.create(**ASK, text=form).output_text)["n"] <= 9
    counted = smol.http.post("/v1/responses/input_tokens", json=ASK).json()["input_tokens"]
    assert counted == smol.openai.responses.create(**ASK).usage.input_tokens


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0]"),
        ({"input": []}, "input"),
        ({"input": [{"type": "magic"}]}, "input[0]"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": []}]}, "input[0].output"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text"}]}]}, "input[0].output[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": SHOWN}]}, "input[0].output[1]"),
    ],
)
def test_what_cannot_be_is_refused_by_name(smol: Server, more: dict, param: str):
    with pytest.raises(openai.BadRequestError) as caught:
        smol.openai.responses.create(**{**ASK, **more})
    assert caught.value.param == param
