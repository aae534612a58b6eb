"""llama.cpp's own endpoints, rerank, constrained answers, metrics."""

import json

import pytest
from tests.server.harness import Server

pytestmark = pytest.mark.model


def test_tokens_and_back(smol: Server):
    tokens = smol.http.post("/tokenize", json={"content": "Hello wörld 😀"}).json()["tokens"]
    assert smol.http.post("/detokenize", json={"tokens": tokens}).json() == {"content": "Hello wörld 😀"}
    pieces = smol.http.post("/tokenize", json={"content": "Hello 😀", "with_pieces": True}).json()["tokens"]
    assert pieces[0]["piece"] == "Hello"
    raw = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
    assert raw.decode() == "Hello 😀"
    assert smol.http.post("/tokenize", json={"content": 5}).json()["error"]["param"] == "content"
    assert smol.http.post("/detokenize", json={"tokens": ["a"]}).json()["error"]["param"] == "tokens"


def test_the_models_own_template_is_applied(smol: Server):
    prompt = smol.http.post("/apply-template", json={"messages": [{"role": "user", "content": "Hi"}]}).json()["prompt"]
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.startswith("<|im_start|>system\n")


def test_content_parts_are_joined(smol: Server):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    prompt = smol.http.post("/apply-template", json={"messages": [{"role": "user", "content": parts}]}).json()["prompt"]
    assert "<|im_start|>user\none\ntwo<|im_end|>" in prompt
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    refused = smol.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": image}]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_content")


def test_completion_in_llama_cpps_shape(alpaca: Server):
    body = alpaca.http.post("/completion", json={"prompt": "x", "temperature": 0}).json()
    assert (body["content"], body["stop_type"], body["stop"]) == ("I am alpaca.", "eos", True)
    assert body["tokens_evaluated"] == body["timings"]["prompt_n"] + body["timings"]["cache_n"]
    cut = alpaca.http.post("/completion", json={"prompt": "x", "n_predict": 1, "temperature": 0}).json()
    assert cut["stop_type"] == "limit"
    word = alpaca.http.post("/completion", json={"prompt": "x", "stop": ["alp"], "temperature": 0}).json()
    assert (word["content"], word["stop_type"], word["stopping_word"]) == ("I am ", "word", "alp")
    raw = alpaca.http.post("/completion", json={"prompt": "x", "stream": True, "temperature": 0}).text
    events = [json.loads(b[6:]) for b in raw.strip().split("\n\n")]
    assert "".join(e["content"] for e in events) == "I am alpaca."
    assert [e["stop"] for e in events] == [False] * (len(events) - 1) + [True]


def test_props_slots_and_health(smol: Server):
    props = smol.http.get("/props").json()
    assert props["total_slots"] == 4
    assert "im_start" in props["chat_template"]
    assert not props["is_sleeping"]
    slots = smol.http.get("/slots").json()
    assert [s["id"] for s in slots] == [0, 1, 2, 3]
    assert not any(s["is_processing"] for s in slots)
    assert smol.http.get("/health", headers={"authorization": ""}).json() == {"status": "ok"}


def test_ignore_eos_goes_on_to_the_limit(smol: Server):
    ask = {"messages": [{"role": "user", "content": "Say hi."}], "temperature": 0, "max_tokens": 40, "ignore_eos": True}
    body = smol.http.post("/v1/chat/completions", json=ask).json()
    assert body["usage"]["completion_tokens"] == 40
    assert body["choices"][0]["finish_reason"] == "length"


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1.2])
def test_an_answer_keeps_to_its_schema(smol: Server, temperature: float):
    ask = {
        "messages": [{"role": "user", "content": "Describe a person as JSON."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}},
        "temperature": temperature,
        "seed": 3,
        "max_tokens": 120,
    }
    body = smol.http.post("/v1/chat/completions", json=ask).json()
    person = json.loads(body["choices"][0]["message"]["content"])
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)
    assert body["choices"][0]["finish_reason"] == "stop"


def test_a_json_object_and_a_grammar(smol: Server):
    ask = {"messages": [{"role": "user", "content": 'Answer with {"a": 1}'}], "temperature": 0, "max_tokens": 200}
    text = smol.http.post("/v1/chat/completions", json={**ask, "response_format": {"type": "json_object"}}).json()
    if text["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(text["choices"][0]["message"]["content"]), dict)
    else:
        assert text["choices"][0]["message"]["content"].lstrip().startswith("{")
    grammar = 'root ::= ("red" | "green") "!"'
    for temperature in (0, 1.0):
        answer = smol.http.post(
            "/v1/completions", json={"prompt": "My colour is", "grammar": grammar, "temperature": temperature, "max_tokens": 20}
        ).json()
        assert answer["choices"][0]["text"] in ("red!", "green!")
        assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "grammar", ["root ::= [", "root ::= " + "(" * 20000 + '"a"' + ")" * 20000, "x" * 70000, 'nothing ::= "a"', "root ::= root root"]
)
def test_a_grammar_that_would_end_the_process_is_refused(smol: Server, grammar: str):
    before = smol.engine_pid()
    refused = smol.http.post("/v1/completions", json={"prompt": "x", "grammar": grammar, "max_tokens": 3})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_grammar")
    assert smol.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code == 200
    assert smol.engine_pid() == before


def test_a_schema_that_is_none_is_named(smol: Server):
    bad = {"type": "json_schema", "json_schema": {"name": "x"}}
    refused = smol.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "response_format": bad})
    assert refused.json()["error"]["param"] == "response_format.json_schema.schema"


def test_documents_are_ranked(embedder: Server):
    documents = ["Interest rates rose again.", "A kitten naps on the couch.", "The train is late."]
    body = embedder.http.post("/v1/rerank", json={"query": "Where does the cat sleep?", "documents": documents, "top_n": 2}).json()
    assert body["results"][0]["index"] == 1
    assert len(body["results"]) == 2
    assert body["results"][0]["relevance_score"] > body["results"][1]["relevance_score"]
    assert embedder.http.post("/rerank", json={"query": "q", "documents": []}).json()["error"]["param"] == "documents"


def test_metrics_count_and_scraping_is_no_use(smol: Server):
    def read() -> dict[str, float]:
        text = smol.control.get("/metrics", headers={"authorization": ""}).text
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if not line.startswith("#")}

    before, used = read(), smol.status()["lastUsed"]
    assert smol.status()["lastUsed"] == used
    smol.http.post("/v1/completions", json={"prompt": "count me", "max_tokens": 5, "temperature": 0, "ignore_eos": True})
    after = read()
    assert after["llamacpp:tokens_predicted_total"] - before["llamacpp:tokens_predicted_total"] == 5
    assert after['corral_server_state{state="Loaded"}'] == 1
    assert after['corral_server_memory_bytes{kind="kvCache"}'] > 0
