"""Calls with tagged arguments through HTTP: a model that was not trained on a form is held to it, and what it says comes as OpenAI's calls."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.server.harness import Server
from tests.server.test_serving import events, strict
from tests.support.gguf_files import sentence_model
from tests.support.models import smollm2

pytestmark = pytest.mark.model

TURNS = (
    "{% if tools %}<|im_start|>system\nCall a function like this:\nFORM<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = TURNS.replace(
    "FORM",
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n2\n</parameter>\n<parameter=sure>\ntrue\n</parameter>\n"
    "<parameter=words>\nfine\n</parameter>\n</function>\n</tool_call>",
).replace(
    "CALL",
    "<tool_call>\n<function={{ c.function.name }}>\n{% for k, v in c.function.arguments.items() %}"
    "<parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>",
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Oslo", "Rio"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
                "sure": {"type": "boolean"},
                "words": {"type": "string"},
            },
            "required": ["city", "days", "sure", "words"],
        },
    },
}
ASK = {
    "model": "m",
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "temperature": 0,
    "max_tokens": 200,
    "tools": [WEATHER],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    engine = {"contextLength": 1024, "kvTokens": 2048, "chatTemplate": QWEN}
    with Server(smollm2().as_uri(), tmp_path_factory.mktemp("tagged"), engine=engine) as made:
        made.load()
        yield made


def test_earlier_calls_are_told_where_the_template_leaves_them_out(tmp_path: Path):
    template = "{# <|tool_list_start|> #}{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
    function = {"name": "get_weather", "arguments": '{"city": "Rio", "sure": true}'}
    history = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Hm.", "tool_calls": [{"id": "a", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
    ]
    with Server(sentence_model().as_uri(), tmp_path, engine={"chatTemplate": template}) as server:
        server.load()
        prompt = server.http.post("/apply-template", json={"messages": history, "tools": [WEATHER]}).json()["prompt"]
    assert prompt == "[user: Weather?][assistant: Hm.<|tool_call_start|>[get_weather(city='Rio', sure=True)]<|tool_call_end|>][tool: sunny]"


def test_a_call_in_tags_is_openais(server: Server):
    body = {**ASK, "tool_choice": "required", "cache_prompt": False}
    whole = strict(ChatCompletion, server.http.post("/v1/chat/completions", json=body).content).choices[0]
    assert whole.message.content is None
    (call,) = whole.message.tool_calls
    assert call.function.name == "get_weather"
    chunks = events(server.http.post("/v1/chat/completions", json={**body, "stream": True}).text)
    for chunk in chunks:
        strict(ChatCompletionChunk, chunk)
    deltas = [c for chunk in chunks for c in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert "".join(d["function"].get("arguments", "") for d in deltas) == call.function.arguments
    assert len(deltas) > 5
    assert chunks[-1]["choices"][0]["finish_reason"] == whole.finish_reason
    found = json.loads(call.function.arguments)
    assert list(found) == ["city", "days", "sure", "words"]
    assert found["city"] in ("Paris", "Oslo", "Rio")
    assert 1 <= found["days"] <= 7
    assert isinstance(found["sure"], bool)
