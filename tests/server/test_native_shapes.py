"""llama.cpp's endpoints field for field: what its clients read beside the text."""

import itertools
import json

import pytest
from tests.server.harness import Server

pytestmark = pytest.mark.model
# Its answer is sure: in batches of another shape sums round otherwise, and where two words are nearly as good the other one may come.
PROMPT = "Once upon a time, in a land far"


def complete(server: Server, **body: object) -> dict:
    answer = server.http.post("/completion", json={"prompt": PROMPT, "n_predict": 6, "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(server: Server, **body: object) -> list[dict]:
    answer = server.http.post("/completion", json={"prompt": PROMPT, "n_predict": 6, "temperature": 0, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    return [json.loads(block[6:]) for block in answer.text.strip().split("\n\n")]


def test_the_whole_answer(smol: Server):
    body = complete(smol, return_tokens=True, seed=7)
    assert body["tokens"] == smol.http.post("/tokenize", json={"content": body["content"]}).json()["tokens"]
    assert (body["tokens_predicted"], body["stop_type"], body["truncated"], body["has_new_line"]) == (6, "limit", False, False)
    assert body["prompt"] == PROMPT
    settings = body["generation_settings"]
    assert (settings["n_predict"], settings["seed"], settings["temperature"], settings["logit_bias"]) == (6, 7, 0.0, [])
    assert {"adaptive_target", "dry_multiplier", "samplers", "lora", "speculative.types"} <= settings.keys()
    assert complete(smol)["tokens"] == []


def test_a_stream_says_tokens_as_it_goes_and_the_rest_at_its_end(smol: Server):
    whole = complete(smol, return_tokens=True)
    events = stream(smol)
    assert [t for e in events[:-1] for t in e["tokens"]] == whole["tokens"]
    assert "".join(e["content"] for e in events) == whole["content"]
    assert (events[-1]["stop"], events[-1]["content"], events[-1]["tokens"]) == (True, "", [])
    assert events[-1]["generation_settings"] == {**whole["generation_settings"], "stream": True}
    assert events[-1]["timings"]["predicted_n"] == 6


def test_prompts_in_every_form(smol: Server):
    tokens = smol.http.post("/tokenize", json={"content": PROMPT, "add_special": True}).json()["tokens"]
    alone = complete(smol)["content"]
    assert complete(smol, prompt=tokens)["content"] == alone
    assert complete(smol, prompt={"prompt_string": PROMPT})["content"] == alone
    several = complete(smol, prompt=[tokens, PROMPT, {"prompt_string": PROMPT}])
    assert [(a["index"], a["content"]) for a in several] == [(0, alone), (1, alone), (2, alone)]
    assert complete(smol, prompt=[*tokens[:3], "and so", *tokens[3:]])["tokens_evaluated"] > len(tokens)
    for wrong in ({"prompt_string": PROMPT, "multimodal_data": ["AA=="]}, [], None, 5, [[]], [True], {}):
        assert smol.http.post("/completion", json={"prompt": wrong}).json()["error"]["param"] == "prompt"


def test_only_the_fields_that_were_named(smol: Server):
    assert complete(smol, response_fields=["content", "generation_settings/n_predict", "nothing/here"]).keys() == {
        "content",
        "generation_settings/n_predict",
    }
    assert smol.http.post("/completion", json={"prompt": "x", "response_fields": "content"}).json()["error"]["param"] == "response_fields"


def test_probabilities_before_and_after_the_filters(smol: Server):
    before = complete(smol, n_probs=30, n_predict=2)["completion_probabilities"]
    assert [len(p["top_logprobs"]) for p in before] == [30, 30]
    assert all(p["logprob"] <= 0 for p in before)
    after = complete(smol, n_probs=10, post_sampling_probs=True, temperature=1.0, top_k=5, top_p=1.0, min_p=0.0, seed=1)["completion_probabilities"]
    for entry in after:
        assert len(entry["top_probs"]) == 5
        assert sum(p["prob"] for p in entry["top_probs"]) == pytest.approx(1.0)
        assert entry["prob"] in [p["prob"] for p in entry["top_probs"] if p["id"] == entry["id"]]
    greedy = complete(smol, n_probs=3, post_sampling_probs=True)["completion_probabilities"]
    assert [[p["prob"] for p in entry["top_probs"]] for entry in greedy] == [[1.0]] * 6


def test_a_bias_may_name_its_tokens_by_their_text(smol: Server):
    first = complete(smol, n_predict=1, return_tokens=True)
    for bias in ([[first["content"], False]], {first["content"]: -100}, [[first["tokens"][0], -100]]):
        assert complete(smol, n_predict=1, logit_bias=bias)["content"] != first["content"]


def test_ignored_ends_are_told_as_biases(smol: Server):
    biases = complete(smol, ignore_eos=True)["generation_settings"]["logit_bias"]
    assert biases
    assert all(b["bias"] is None for b in biases)


def test_progress_of_a_prompt(smol: Server):
    prompt = " ".join(f"item number {i}" for i in range(40))
    events = stream(smol, prompt=prompt, return_progress=True, timings_per_token=True, n_predict=3)
    progress = [e["prompt_progress"] for e in events if "prompt_progress" in e]
    assert progress[0]["processed"] == progress[0]["cache"]
    assert progress[-1]["processed"] == progress[-1]["total"] == events[-1]["tokens_evaluated"]
    assert all(a["processed"] < b["processed"] for a, b in itertools.pairwise(progress))
    assert all("timings" in e for e in events)
    again = stream(smol, prompt=prompt, return_progress=True, n_predict=3)
    assert next(e["prompt_progress"]["cache"] for e in again if "prompt_progress" in e) > 100
    assert not any("prompt_progress" in e for e in stream(smol))


def test_the_end_of_the_context_is_told(alpaca: Server):
    body = complete(alpaca, prompt="x" * 2040, n_predict=-1, ignore_eos=True)
    assert (body["truncated"], body["stop_type"]) == (True, "limit")
    assert body["tokens_evaluated"] + body["tokens_predicted"] == 2048
    assert complete(alpaca, prompt="x" * 2040, n_predict=2, ignore_eos=True)["truncated"] is False
    error = alpaca.http.post("/completion", json={"prompt": "x" * 2100}).json()["error"]
    assert (error["code"], error["type"], error["n_ctx"]) == ("context_length_exceeded", "exceed_context_size_error", 2048)
    assert error["n_prompt_tokens"] == 2101
    assert "exceeds the available context size" in error["message"]


def test_a_request_may_name_its_slot(smol: Server):
    for slot in (2, 0, 2):
        assert complete(smol, id_slot=slot)["id_slot"] == slot
    assert smol.http.post("/completion", json={"prompt": "x", "id_slot": 9}).json()["error"]["param"] == "id_slot"
    assert complete(smol, id_slot=-1)["id_slot"] in range(4)


def test_slots_are_shown_and_forget(smol: Server):
    complete(smol, id_slot=1)
    shown = smol.http.get("/slots").json()[1]
    assert (shown["n_ctx"], shown["is_processing"], shown["speculative"]) == (1024, False, False)
    assert shown["next_token"][0] == {"has_next_token": False, "has_new_line": False, "n_remain": -1, "n_decoded": 0}
    assert smol.http.post("/slots/1?action=erase").json()["n_erased"] == shown["n_prompt_tokens"]
    assert "params" not in smol.http.get("/slots?fail_on_no_slot=1").json()[1]
    assert smol.http.post("/slots/1?action=save", json={"filename": "x"}).json()["error"]["type"] == "not_supported_error"
    for wrong in ("/slots/9?action=erase", "/slots/x?action=erase", "/slots/1?action=dance", "/slots/1"):
        assert smol.http.post(wrong).status_code == 400


def test_a_rate_counts_steps_not_tokens(smol: Server):
    assert complete(smol, n_predict=1)["timings"]["predicted_per_second"] == 0.0
    timings = complete(smol, n_predict=5)["timings"]
    assert timings["predicted_per_second"] == pytest.approx(4 / timings["predicted_ms"] * 1e3)


def test_metrics_under_llama_cpps_names(smol: Server):
    complete(smol)
    text = smol.http.get("/metrics").text
    for name in ("prompt_tokens_total", "prompt_tokens_cached_total", "tokens_predicted_total", "n_decode_total", "spec_decode_num_drafts_total"):
        assert f"\nllamacpp:{name} " in text
    for name in ("n_busy_slots_per_decode", "predicted_tokens_seconds", "requests_deferred"):
        assert f"# TYPE llamacpp:{name} gauge" in text
