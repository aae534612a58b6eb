"""llama.cpp's fields on every endpoint: its samplers, limits in lines and time, what is told on the way, and the whole of what it would have said."""

import json
from collections import Counter
from typing import Any

import pytest
from tests.server.harness import Server
from tests.server.test_serving import events

pytestmark = pytest.mark.model
ASK = [{"role": "user", "content": "Name three colours."}]


def complete(server: Server, prompt: str, **body: Any) -> dict[str, Any]:
    answer = server.http.post("/completion", json={"prompt": prompt, "n_predict": 24, "seed": 5, "return_tokens": True, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server: Server, **body: Any) -> str:
    answer = server.http.post("/completion", json={"prompt": "a", "n_predict": 1, **body})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["param"]


@pytest.mark.parametrize(
    "wish",
    [
        {"mirostat": 1}, {"mirostat": 2, "mirostat_tau": 3.0}, {"dynatemp_range": 0.7, "dynatemp_exponent": 2.0}, {"top_n_sigma": 1.5},
        {"samplers": ["min_p", "temperature", "adaptive_p"], "adaptive_target": 0.4}, {"samplers": "edkypmxt"}, {"min_keep": 5, "top_k": 1},
        {"samplers": ["top-k", "nucleus", "infill"]}, {"dry_multiplier": 0.8, "dry_sequence_breakers": ["\n"]},
    ],
    ids="-".join,
)  # fmt: skip
def test_llama_cpps_own_samplers_choose(still: Server, wish: dict[str, Any]):
    told = complete(still, "The sea is", cache_prompt=False, **wish)
    assert told["tokens_predicted"] >= 1
    assert complete(still, "The sea is", cache_prompt=False, **wish)["tokens"] == told["tokens"]
    known = {k: v for k, v in wish.items() if not isinstance(v, str) and k != "samplers"}
    assert {k: told["generation_settings"][k] for k in known} == known


def test_dry_ends_a_repetition(smol: Server):
    prompt = "one two three four five " * 12
    plain, dry = (complete(smol, prompt, temperature=0, **more)["tokens"] for more in ({}, {"dry_multiplier": 5.0, "dry_penalty_last_n": -1}))

    def most(tokens: list[int]) -> int:
        """How often the four tokens come that come most often."""
        return max(Counter(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False)).values())

    assert most(plain) >= 3
    assert most(dry) == 1


def test_an_order_without_a_temperature_is_not_greedy(smol: Server):
    greedy = complete(smol, "The sea is", temperature=0)["tokens"]
    assert complete(smol, "The sea is", temperature=0, samplers=["top_k", "temperature"])["tokens"] == greedy
    assert complete(smol, "The sea is", temperature=0, samplers=["top_k"])["tokens"] != greedy


def test_wrong_samplers_are_named(smol: Server):
    wrong = {
        "samplers": ["top_k", "top_k"], "mirostat": 3, "dry_sequence_breakers": [], "adaptive_decay": 1.0, "dynatemp_range": -1, "min_keep": -1,
        "n_indent": -1, "t_max_predict_ms": "soon", "verbose": 1, "timings_per_token": "yes", "n_keep": -2, "sse_ping_interval": 1.5,
    }  # fmt: skip
    assert {name: refused(smol, **{name: value}) for name, value in wrong.items()} == {name: name for name in wrong}
    assert refused(smol, samplers="k?") == "samplers"


def test_an_answer_ends_where_its_lines_are_indented_too_little(smol: Server):
    def grammar(blanks: int) -> str:
        return f'root ::= "if x:\\n" "    y()\\n" "{" " * blanks}z()\\n"'

    assert complete(smol, "", grammar=grammar(4), n_indent=4)["content"] == "if x:\n    y()\n    z()\n"
    short = complete(smol, "", grammar=grammar(2), n_indent=4)
    assert (short["content"], short["stop_type"]) == ("if x:\n    y()\n  ", "limit")
    streamed = smol.http.post("/completion", json={"prompt": "", "grammar": grammar(0), "n_indent": 4, "stream": True})
    pieces = [json.loads(block[6:]) for block in streamed.text.strip().split("\n\n")]
    assert "".join(piece["content"] for piece in pieces) == "if x:\n    y()\n"


def test_an_answer_ends_with_the_line_in_which_its_time_is_up(smol: Server):
    told = complete(smol, "", grammar='root ::= ("word" "\\n")+', t_max_predict_ms=1, n_predict=200)
    assert told["content"].endswith("\n")
    assert told["tokens_predicted"] < 200
    assert complete(smol, "", grammar='root ::= ("word" "\\n")+', t_max_predict_ms=-1, n_predict=20)["tokens_predicted"] == 20


def test_verbose_tells_what_llama_cpps_endpoint_would(smol: Server):
    body = {"messages": ASK, "max_tokens": 3, "temperature": 0, "verbose": True}
    whole = smol.http.post("/v1/chat/completions", json=body).json()
    told = whole["__verbose"]
    assert (told["content"], told["tokens_predicted"], len(told["tokens"])) == (whole["choices"][0]["message"]["content"], 3, 3)
    assert "Name three colours." in told["prompt"]
    assert told["generation_settings"]["n_predict"] == 3
    streamed = events(smol.http.post("/v1/chat/completions", json={**body, "stream": True}).text)
    assert [e["__verbose"]["content"] for e in streamed if "__verbose" in e] == [told["content"]]
    assert "__verbose" not in smol.http.post("/v1/chat/completions", json={**body, "verbose": False}).json()
    text = smol.http.post("/v1/completions", json={"prompt": "The sea", "max_tokens": 2, "verbose": True}).json()
    assert text["__verbose"]["prompt"] == "The sea"


def test_streams_tell_progress_and_figures_on_the_way(smol: Server):
    ask = {"messages": [{"role": "user", "content": "word " * 700}], "max_tokens": 3, "stream": True, "cache_prompt": False, "ignore_eos": True}
    chunks = events(smol.http.post("/v1/chat/completions", json={**ask, "return_progress": True, "timings_per_token": True}).text)
    shares = [c["prompt_progress"] for c in chunks if "prompt_progress" in c]
    assert (shares[0]["processed"], shares[-1]["processed"]) == (shares[0]["cache"], shares[-1]["total"])
    assert [s["processed"] for s in shares] == sorted({s["processed"] for s in shares})
    spoken = [c for c in chunks if c["choices"][0]["delta"].get("content")]
    assert spoken
    assert [c["timings"]["predicted_n"] for c in spoken] == sorted(c["timings"]["predicted_n"] for c in spoken)
    assert "timings" not in chunks[0]
    assert not any("prompt_progress" in c or "timings" in c for c in events(smol.http.post("/v1/chat/completions", json=ask).text)[:-1])
    text = {"prompt": "word " * 700, "max_tokens": 2, "stream": True, "ignore_eos": True, "return_progress": True, "timings_per_token": True}
    chunks = events(smol.http.post("/v1/completions", json=text).text)
    assert any("prompt_progress" in c for c in chunks)
    assert chunks[-1]["timings"]["predicted_n"] == 2


def test_a_streams_first_delta_has_a_role_and_no_content(smol: Server):
    first, *rest = events(smol.http.post("/v1/chat/completions", json={"messages": ASK, "max_tokens": 2, "stream": True}).text)
    delta = first["choices"][0]["delta"]
    assert (delta["role"], delta["content"]) == ("assistant", None)
    assert not any("role" in chunk["choices"][0]["delta"] for chunk in rest)


def test_a_prompt_without_the_answers_beginning(smol: Server):
    def prompt(messages: list[dict[str, Any]], **body: Any) -> str:
        return smol.http.post("/apply-template", json={"messages": messages, **body}).json()["prompt"]

    assert prompt(ASK).endswith("<|im_start|>assistant\n")
    assert prompt(ASK, add_generation_prompt=False).endswith("Name three colours.<|im_end|>\n")
    begun = [*ASK, {"role": "assistant", "content": [{"type": "text", "text": "Red"}, {"type": "text", "text": "and"}]}]
    assert prompt(begun).endswith("assistant\nRed\n\nand")
    assert prompt(begun, continue_final_message=True, add_generation_prompt=False) == prompt(begun)
    assert prompt(begun, continue_final_message=False).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("after", "more", "param"),
    [
        (["Red", "Blue"], {}, "messages"),
        (["Red"], {"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        (["Red"], {"continue_final_message": "middle"}, "continue_final_message"),
        ([], {"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
        ([], {"add_generation_prompt": "yes"}, "add_generation_prompt"),
    ],
)
def test_beginnings_that_cannot_be(smol: Server, after: list[str], more: dict[str, Any], param: str):
    messages = [*ASK, *({"role": "assistant", "content": text} for text in after)]
    answer = smol.http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1, **more})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_counts_and_lists_without_a_version(smol: Server):
    for path in ("/chat/completions/input_tokens", "/responses/input_tokens"):
        assert smol.http.post(path, json={"messages": ASK, "input": "hi"}).json()["input_tokens"] > 1
    found = smol.http.get("/models").json()
    assert found["models"][0]["capabilities"] == ["completion"]
    meta = found["data"][0]["meta"]
    assert (meta["n_ctx"], meta["n_ctx_train"], meta["ftype"], meta["n_embd"]) == (1024, 8192, "Q4_1", 576)
    assert meta == smol.http.get(f"/v1/models/{found['data'][0]['id']}").json()["meta"]


def test_what_this_model_is_not_made_for_is_not_supported(smol: Server):
    for path, body in (
        ("/rerank", {"query": "a", "documents": ["b"]}),
        ("/embedding", {"content": "a"}),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
    ):
        answer = smol.http.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "not_supported_error"), path


def test_embeddings_in_every_norm(embedder: Server):
    def vector(**more: Any) -> list[float]:
        (entry,) = embedder.http.post("/embedding", json={"content": "a herd of alpacas", **more}).json()
        return entry["embedding"][0]

    raw = vector(embd_normalize=-1)
    assert sum(abs(x) for x in vector(embd_normalize=1)) == pytest.approx(1)
    assert sum(x * x for x in vector()) == pytest.approx(1)
    assert max(abs(x) for x in vector(embd_normalize=0)) == pytest.approx(32760)
    assert sum(abs(x) ** 3 for x in vector(embd_normalize=3)) == pytest.approx(1)
    assert sum(x * x for x in raw) != pytest.approx(1)


def test_ranking_in_the_form_of_text_embeddings_inference(embedder: Server):
    texts = ["a locomotive", "alpacas on a meadow", "the price of tea"]
    ranked = embedder.http.post("/rerank", json={"query": "a herd of alpacas", "texts": texts, "return_text": True}).json()
    assert ranked[0]["text"] == texts[1]
    assert [r["score"] for r in ranked] == sorted((r["score"] for r in ranked), reverse=True)
    assert embedder.http.post("/rerank", json={"query": "a", "texts": texts, "top_n": 1}).json()[0].keys() == {"index", "score"}
    assert embedder.http.post("/rerank", json={"query": "a", "texts": ["a", 5]}).json()["error"]["param"] == "texts[1]"
    assert embedder.http.get("/models").json()["models"][0]["capabilities"] == ["embedding"]


def test_streams_are_read_by_the_clients_that_wrote_the_fields(smol: Server):
    """A whole stream, taken apart as llama.cpp's own page does it."""
    text = ""
    body = {"messages": ASK, "max_tokens": 4, "stream": True, "timings_per_token": True, "reasoning_format": "auto", "samplers": ["top_k", "min_p"]}
    with smol.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    assert text


def test_responses_tell_progress_and_figures_too(smol: Server):
    ask = {"input": "word " * 300, "max_output_tokens": 3, "stream": True, "ignore_eos": True, "timings_per_token": True, "return_progress": True}
    blocks = smol.http.post("/v1/responses", json=ask).text.strip().split("\n\n")
    told = [json.loads(block.partition("\ndata: ")[2]) for block in blocks]
    assert [e["sequence_number"] for e in told] == list(range(len(told)))
    shares = [e["prompt_progress"] for e in told if "prompt_progress" in e]
    assert (shares[-1]["processed"], {e["type"] for e in told if "prompt_progress" in e}) == (shares[-1]["total"], {"response.in_progress"})
    assert all("timings" in e for e in told if e["type"] == "response.output_text.delta")
    assert told[-1]["timings"]["predicted_n"] == 3


def test_a_model_begins_where_nothing_was_said(smol: Server):
    answer = smol.http.post("/v1/messages", json={"messages": [], "max_tokens": 2}).json()
    assert (answer["type"], answer["usage"]["output_tokens"]) == ("message", 2)


def test_a_lazy_grammar_holds_after_its_word(smol: Server):
    lazy = {"grammar": 'root ::= "<|im_start|>" "yes"', "grammar_lazy": True, "grammar_triggers": [{"type": 1, "value": "<|im_start|>"}]}
    forced = {"preserved_tokens": ["<|im_start|>"], "n_predict": 4, "temperature": 0}
    (start,) = smol.http.post("/tokenize", json={"content": "<|im_start|>"}).json()["tokens"]
    told = complete(smol, "Say", **lazy, **forced, logit_bias=[[start, 100]])
    assert told["content"] == "<|im_start|>yes"
    assert refused(smol, grammar='root ::= "a"', grammar_lazy=True, grammar_triggers=[]) == "grammar_triggers"
    # The word is read by the grammar itself: one that it forbids would end the engine.
    assert refused(smol, **{**lazy, "grammar": 'root ::= "yes"'}) == "grammar"
    ending = [{"type": 1, "value": "<|im_end|>"}]
    assert refused(smol, grammar='root ::= ""', grammar_lazy=True, grammar_triggers=ending) == "grammar"
