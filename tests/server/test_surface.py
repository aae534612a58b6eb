"""What clients send beside the usual: fields without effect, other routes, files, begun answers, prompts to be scored, thoughts to be counted."""

import base64
import json

import pytest
from openai.types.chat import ChatCompletion
from tests.server.harness import Server
from tests.server.test_serving import ASK, events, strict
from tests.support.gguf_files import sentence_model

pytestmark = pytest.mark.model

CHANGE_NOTHING = {
    "store": True,
    "metadata": {"a": "b"},
    "user": "u",
    "service_tier": "auto",
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "verbosity": "low",
    "reasoning_effort": "low",
    "modalities": ["text"],
    "prediction": {"type": "content", "content": "The sea"},
    "web_search_options": {},
    "prompt_cache_retention": "24h",
    "seed": -7,
    "logit_bias": None,
    "stop": ["a1", "b2", "c3", "d4", "e5"],
    "surprise": 1,
}


def test_fields_that_change_nothing_are_accepted(smol: Server):
    answer = smol.http.post("/v1/chat/completions", json={**ASK, "max_tokens": 1, **CHANGE_NOTHING})
    assert strict(ChatCompletion, answer.content).service_tier == "default"


def test_other_routes_and_methods_have_openais_errors(smol: Server):
    for path, method, status in (("/v1/chat/completions", "GET", 405), ("/v1/models", "DELETE", 405), ("/v1/nothing", "POST", 404)):
        answer = smol.http.request(method, path)
        assert (answer.status_code, set(answer.json()["error"])) == (status, {"message", "type", "param", "code"})
    assert smol.http.get("/v1/chat/completions").headers["allow"] == "POST"
    for path in ("/chat/completions", "/models", "/responses"):
        body = {**ASK, "input": "hi", "max_tokens": 1, "max_output_tokens": 1}
        assert (smol.http.get(path) if path == "/models" else smol.http.post(path, json=body)).status_code == 200


def test_a_body_is_json_whatever_its_type_says(smol: Server):
    raw = json.dumps({**ASK, "max_tokens": 1})
    assert smol.http.post("/v1/chat/completions", content=raw, headers={"content-type": "text/plain"}).status_code == 200
    for body in (b"<a/>", b"[]", b"\xff", b"", b'{"messages": NaN}'):
        assert smol.http.post("/v1/chat/completions", content=body).json()["error"]["code"] == "invalid_json"


def test_an_answer_that_was_begun_is_continued(smol: Server):
    said = [{"role": "user", "content": "Count to five."}, {"role": "assistant", "content": "One, two,"}]
    prompt = smol.http.post("/apply-template", json={"messages": said}).json()["prompt"]
    assert prompt.endswith("assistant\nOne, two,")
    answer = smol.http.post("/v1/chat/completions", json={"messages": said, "temperature": 0, "max_tokens": 4}).json()
    assert answer["choices"][0]["message"]["content"].startswith(" three")


def test_text_files_are_read(smol: Server):
    def prompt(part: dict) -> object:
        answer = smol.http.post("/apply-template", json={"messages": [{"role": "user", "content": [{"type": "text", "text": "Read."}, part]}]})
        return answer.json().get("prompt") or answer.json()["error"]["param"]

    data = "data:text/plain;base64," + base64.b64encode("Fjörd".encode()).decode()
    assert "notes.txt:\nFjörd" in prompt({"type": "file", "file": {"filename": "notes.txt", "file_data": data}})
    assert "Fjörd" in prompt({"type": "input_file", "file_data": "data:text/markdown;charset=utf-8,Fj%C3%B6rd"})
    assert prompt({"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}) == "messages[0].content[1]"
    assert prompt({"type": "file", "file": {"file_id": "file-1"}}) == "messages[0].content[1]"
    assert prompt({"type": "input_file", "file_data": "data:text/plain;base64,%%%"}) == "messages[0].content[1]"


def test_a_prompt_is_echoed_with_what_its_tokens_were_worth(smol: Server):
    ask = {"prompt": "The capital of France is Paris", "max_tokens": 3, "temperature": 0, "logprobs": 2, "echo": True}
    # The client's types do not know it, but its maker's server gives null for a first token too.
    said = smol.openai.completions.create(model="m", **ask).choices[0]
    logprobs = said.logprobs
    assert said.text.startswith(ask["prompt"])
    assert "".join(logprobs.tokens) == said.text
    assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == [len("".join(logprobs.tokens[:i])) for i in range(len(logprobs.tokens))]
    # The same token, once as the prompt's last and once as what the model says by itself.
    shorter = {**ask, "prompt": "The capital of France is", "max_tokens": 1, "echo": False, "cache_prompt": False}
    (generated,) = smol.http.post("/v1/completions", json=shorter).json()["choices"]
    at = logprobs.tokens.index(" Paris")
    assert generated["text"] == " Paris"
    assert logprobs.token_logprobs[at] == pytest.approx(generated["logprobs"]["token_logprobs"][0], abs=0.3)
    nothing = smol.http.post("/v1/completions", json={**ask, "max_tokens": 0, "prompt": [504, 3575, 282]}).json()
    assert (nothing["usage"]["completion_tokens"], nothing["choices"][0]["finish_reason"]) == (0, "length")
    assert len(nothing["choices"][0]["logprobs"]["tokens"]) == 3
    chunks = events(smol.http.post("/v1/completions", json={**ask, "stream": True, "n": 2}).text)
    for index in (0, 1):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(c["text"] for c in own) == said.text
        assert [t for c in own if c["logprobs"] for t in c["logprobs"]["tokens"]] == logprobs.tokens


def test_the_tokens_of_a_thought_are_counted(tmp_path_factory: pytest.TempPathFactory):
    model = sentence_model("<think>Perhaps this.</think>Surely that.")
    ask = {"messages": [{"role": "user", "content": "Which?"}], "temperature": 0}
    with Server(model.as_uri(), tmp_path_factory.mktemp("thinks")) as server:
        server.load()
        body = server.http.post("/v1/chat/completions", json=ask).json()
        (choice,) = body["choices"]
        assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("Perhaps this.", "Surely that.")
        counted = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
        assert 0 < counted < body["usage"]["completion_tokens"]
        stream = {**ask, "stream": True, "stream_options": {"include_usage": True}}
        last = events(server.http.post("/v1/chat/completions", json=stream).text)[-1]
        assert last["usage"]["completion_tokens_details"]["reasoning_tokens"] == counted
        response = server.http.post("/v1/responses", json={"input": "Which?", "temperature": 0}).json()
        assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == counted
        assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
        message = server.http.post("/v1/messages", json={**ask, "max_tokens": 99}).json()
        assert message["usage"]["output_tokens_details"]["thinking_tokens"] == counted
        assert [block["type"] for block in message["content"]] == ["thinking", "text"]
