"""Bodies that nobody should send: mutated JSON on every route. No 5xx, no death of the engine, every error names what is wrong.

`CORRAL_FUZZ_BODIES=10000` sends that many; a few hundred are enough for every run.
"""

import copy
import json
import os
import random
from typing import Any

import pytest
from tests.server.harness import Server
from tests.server.test_tools import WEATHER

pytestmark = [pytest.mark.model, pytest.mark.timeout(3600)]

BODIES = int(os.environ.get("CORRAL_FUZZ_BODIES", "300"))
SAY = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Who are you?"}]}]
CALL = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
FOUND = [
    {"type": "search_result", "title": "t", "source": "s", "content": [{"type": "text", "text": "a"}]},
    {"type": "document", "title": "t", "source": {"type": "text", "data": "a"}},
]
OUTPUT = [{"type": "input_text", "text": "a"}, {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,YWI="}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 20}, "b": {"enum": ["x", None]}}, "required": ["a"]}
MAP = {"type": "object", "properties": {"a": SCHEMA}, "additionalProperties": {"type": "null"}, "minProperties": 1, "maxProperties": 2}
SEEDS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": "m", "messages": SAY, "max_tokens": 6, "temperature": 0.7, "top_p": 0.9, "n": 2, "stop": ["x"], "seed": 1}),
    (
        "/v1/chat/completions",
        {"messages": SAY, "tools": [WEATHER], "tool_choice": "auto", "parallel_tool_calls": True, "max_tokens": 6, "stream": True},
    ),
    (
        "/v1/chat/completions",
        {"messages": [*SAY, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "1", "tool_call_id": "c"}]},
    ),
    (
        "/v1/chat/completions",
        {
            "messages": SAY,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
            "max_tokens": 9,
        },
    ),
    (
        "/v1/chat/completions",
        {"messages": SAY, "logprobs": True, "top_logprobs": 2, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 4},
    ),
    (
        "/v1/chat/completions",
        {"messages": SAY, "grammar": 'root ::= "a" [b-c]{1,3}', "logit_bias": {"5": -3}, "frequency_penalty": 0.1, "max_tokens": 5},
    ),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 4, "logprobs": 1, "best_of": 2, "echo": False, "suffix": None, "user": "u"}),
    ("/v1/completions", {"prompt": ["ab", "c"], "max_tokens": 0, "logprobs": 2, "echo": True, "n": 2, "logit_bias": {"3": 5}, "stream": True}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": [{"type": "file", "file": {"filename": "a.txt", "file_data": "data:text/plain;base64,YWI="}}]},
                {"role": "assistant", "content": "I am"},
            ],
            "max_completion_tokens": 4,
            "metadata": {"a": "b"},
            "verbosity": "low",
            "service_tier": "auto",
            "modalities": ["text"],
            "prediction": {"type": "content", "content": "x"},
        },
    ),
    ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 4, "stream": True, "top_k": 5, "min_p": 0.1, "repeat_penalty": 1.1, "repeat_last_n": 4}),
    (
        "/v1/responses",
        {"input": "hi", "max_output_tokens": 5, "instructions": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
    ),
    (
        "/v1/responses",
        {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
            "tools": [{"type": "function", **WEATHER["function"]}],
            "stream": True,
            "reasoning": {"effort": "low"},
            "metadata": {"a": "b"},
            "max_output_tokens": 5,
        },
    ),
    (
        "/v1/messages",
        {
            "max_tokens": 5,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            "system": [{"type": "text", "text": "x"}],
            "tools": [{"name": "f", "input_schema": SCHEMA}],
            "tool_choice": {"type": "auto"},
            "stop_sequences": ["q"],
            "stream": True,
        },
    ),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "hi"}]}),
    ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 4}),
    ("/v1/rerank", {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}),
    ("/completion", {"prompt": ["a", 5], "n_predict": 4, "n_probs": 2, "json_schema": SCHEMA}),
    (
        "/completion",
        {
            "prompt": "a",
            "n_predict": 4,
            "samplers": ["dry", "top_k", "infill", "temperature", "adaptive_p"],
            "dry_multiplier": 0.5,
            "dry_base": 2.0,
            "dry_allowed_length": 1,
            "dry_penalty_last_n": 8,
            "dry_sequence_breakers": ["\n", "am"],
            "adaptive_target": 0.5,
            "adaptive_decay": 0.5,
            "dynatemp_range": 0.1,
            "dynatemp_exponent": 2.0,
            "min_keep": 2,
            "n_indent": 2,
            "t_max_predict_ms": 1000,
            "verbose": True,
        },
    ),
    ("/completion", {"prompt": "a", "n_predict": 4, "mirostat": 1, "mirostat_tau": 2.0, "mirostat_eta": 0.3, "grammar": 'root ::= "x"+'}),
    ("/completion", {"prompt": "a", "n_predict": 4, "mirostat": 2, "top_n_sigma": 1.0, "n_probs": 2, "post_sampling_probs": True, "stream": True}),
    (
        "/completion",
        {
            "prompt": "a",
            "grammar": 'root ::= "x"',
            "grammar_lazy": True,
            "grammar_triggers": [{"type": 1, "value": "</s>"}],
            "preserved_tokens": ["</s>"],
        },
    ),
    (
        "/completion",
        {
            "prompt": "a",
            "grammar": 'root ::= "<s>" "x"',
            "grammar_lazy": True,
            "grammar_triggers": [{"type": 1, "value": "<s>"}],
            "preserved_tokens": ["<s>"],
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [*SAY, {"role": "assistant", "content": "I", "reasoning_content": "Hm."}],
            "continue_final_message": "reasoning_content",
            "add_generation_prompt": False,
            "reasoning_budget_tokens": 2,
            "reasoning_budget_message": " Enough.",
            "return_progress": True,
            "timings_per_token": True,
            "verbose": True,
            "stream": True,
            "n": 2,
            "max_tokens": 4,
        },
    ),
    (
        "/v1/responses",
        {"input": [{"type": "reasoning", "summary": [{"text": "x"}]}, {"role": "user", "content": "hi"}], "stream": True, "return_progress": True},
    ),
    (
        "/v1/chat/completions",
        {"messages": SAY, "response_format": {"type": "json_object", "schema": {"anyOf": [MAP, {"allOf": [MAP]}]}}, "max_tokens": 4},
    ),
    ("/v1/messages", {"max_tokens": 4, "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": FOUND}]}]}),
    ("/v1/responses", {"max_output_tokens": 4, "input": [{"type": "function_call_output", "call_id": "c", "output": OUTPUT}]}),
    ("/v1/messages", {"max_tokens": 5, "messages": [], "thinking": {"type": "enabled", "budget_tokens": 3}, "samplers": "kp", "mirostat": 2}),
    ("/v1/embeddings", {"input": ["a", [1, "b"], {"prompt_string": "c"}, {"content": [{"type": "text", "text": "d"}]}]}),
    ("/embedding", {"content": "a", "embd_normalize": 3}),
    ("/rerank", {"query": "q", "texts": ["a", "b"], "return_text": True, "top_n": 1}),
    ("/infill", {"input_prefix": "a", "input_suffix": "b", "input_extra": [{"filename": "f", "text": "t"}]}),
    ("/tokenize", {"content": ["a", 3], "add_special": True, "with_pieces": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
    ("/apply-template", {"messages": SAY, "tools": [WEATHER], "chat_template_kwargs": {"x": 1}}),
    ("/lora-adapters", {"id": 0, "scale": 1.0}),
]
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    7,
    10**30,
    -(10**19),
    0.5,
    -0.0,
    1e308,
    "",
    "\x00",
    "é\u2028😀",
    "x" * 70_000,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"type": []},
    {"type": {}},
    {"name": 5},
    "auto",
    "required",
    "json_object",
    "function",
    ["a", 1, None],
    {"a": {"$ref": "#/nowhere"}},
    {"$ref": "#"},
    {"type": "integer", "minimum": 5, "maximum": 1},
    {"pattern": "^(("},
    {"anyOf": []},
    {"enum": []},
    'root ::= ( "a"',
    "root ::= root",
    'root ::= ""',
]


def nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    deep = len(path) > 12
    inner = () if deep else value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, child in inner for p in nodes(child, (*path, key)))]


def mutated(dice: random.Random, body: Any) -> Any:
    body = json.loads(json.dumps(body))
    for _ in range(dice.randint(1, 3)):
        path = dice.choice(nodes(body))
        if not path:
            if dice.random() < 0.05:
                return dice.choice(ODD)
            continue
        holder = body
        for key in path[:-1]:
            holder = holder[key]
        kind = dice.randrange(5)
        if kind == 0:
            del holder[path[-1]]
        elif kind == 1 and isinstance(holder, list):
            # Copies: 200 names of one item would all grow with the next mutation.
            item = json.dumps(holder[path[-1]])
            holder.extend([json.loads(item) for _ in range(dice.choice([1, 3, 200]))])
        elif kind == 2:
            deep: Any = 1
            for _ in range(dice.choice([5, 150, 900])):
                deep = [deep] if dice.random() < 0.5 else {"properties": deep}
            holder[path[-1]] = deep
        else:
            holder[path[-1]] = copy.deepcopy(dice.choice(ODD))
    return body


def raw(dice: random.Random, body: Any) -> bytes:
    text = bytearray(json.dumps(body, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass"))
    if dice.random() < 0.1:
        for _ in range(dice.randint(1, 4)):
            text[dice.randrange(len(text))] = dice.randrange(256)
    return bytes(text[: dice.randrange(len(text))]) if dice.random() < 0.05 else bytes(text)


def test_no_body_brings_it_down(alpaca: Server):
    dice = random.Random(int(os.environ.get("CORRAL_FUZZ_SEED", "1")))
    engine, loads = alpaca.engine_pid(), alpaca.status()["loads"]
    seen: dict[int, int] = {}
    for number in range(BODIES):
        path, seed = dice.choice(SEEDS)
        body = raw(dice, mutated(dice, seed))
        answer = alpaca.http.post(path, content=body, headers={"content-type": "application/json"})
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        shown = f"body {number} to {path}: {body[:600]!r}: {answer.text[:600]}"
        assert answer.status_code in (200, 400, 404, 413, 429), shown
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert error["message"], shown
            if not path.startswith("/v1/messages"):
                assert {"type", "param", "code"} <= error.keys(), shown
        elif '"error":{' in answer.text:
            assert "engine_" not in answer.text, shown
    print(f"answers by status: {seen}")
    assert seen[200]
    assert seen[400]
    assert (alpaca.engine_pid(), alpaca.status()["loads"]) == (engine, loads)
    good = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
    assert alpaca.http.post("/v1/chat/completions", json=good).json()["choices"][0]["message"]["content"] == "I am alpaca."
