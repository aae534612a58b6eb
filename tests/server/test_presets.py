"""Several names over one loaded copy of a model, each with settings of its own."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.server.harness import Server
from tests.server.test_thoughts import THINKER
from tests.support.models import smollm2

from corral_server.reasons import Failure
from corral_server.spec import parse_engine

PRESETS = [
    {"name": "exact", "sampling": {"temperature": "0", "maxTokens": 4}},
    {"name": "pirate", "systemPrompt": "You are a pirate.", "sampling": {"temperature": "0"}},
    {"name": "quick", "reasoningEffort": "None"},
]
ASK = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    engine = {"contextLength": 512, "kvTokens": 1024, "chatTemplate": THINKER, "presets": PRESETS, "sampling": {"maxTokens": 9}}
    with Server(smollm2().as_uri(), tmp_path_factory.mktemp("presets"), engine=engine) as server:
        server.load()
        yield server


def chat(server: Server, name: str, **body: Any) -> dict[str, Any]:
    ask = {"model": f"m:{name}" if name else "m", "messages": ASK, "temperature": 0, **body}
    return server.http.post("/v1/chat/completions", json=ask).raise_for_status().json()


def prompt(server: Server, name: str, **body: Any) -> str:
    return server.http.post("/apply-template", json={"model": f"m:{name}", "messages": ASK, **body}).json()["prompt"]


@pytest.mark.model
def test_sampling_is_the_presets_where_the_request_says_nothing(several: Server) -> None:
    assert chat(several, "exact", ignore_eos=True)["usage"]["completion_tokens"] == 4
    assert chat(several, "quick", ignore_eos=True)["usage"]["completion_tokens"] == 9
    assert chat(several, "exact", ignore_eos=True, max_tokens=2)["usage"]["completion_tokens"] == 2
    answers = {several.http.post("/v1/completions", json={"model": "m:exact", "prompt": "The sea"}).json()["choices"][0]["text"] for _ in range(4)}
    assert len(answers) == 1
    native = several.http.post("/completion", json={"model": "m:exact", "prompt": "The sea", "ignore_eos": True}).json()
    assert native["tokens_predicted"] == 4
    assert native["generation_settings"]["temperature"] == 0


@pytest.mark.model
def test_a_system_prompt_is_said_unless_the_conversation_has_one(several: Server) -> None:
    pirate = prompt(several, "pirate")
    own = {"role": "system", "content": "You are a pirate."}
    assert pirate == prompt(several, "", messages=[own, *ASK]) != prompt(several, "")
    other = [{"role": "system", "content": "You are a poet."}, *ASK]
    assert prompt(several, "pirate", messages=other) == prompt(several, "", messages=other)
    counts = [
        several.http.post("/v1/responses/input_tokens", json={"model": "m:pirate", "input": "Why?"}).json(),
        several.http.post("/v1/responses/input_tokens", json={"model": "m", "input": "Why?", "instructions": "You are a pirate."}).json(),
    ]
    assert counts[0] == counts[1]
    claude = {"model": "m:pirate", "messages": ASK, "max_tokens": 4}
    told = several.http.post("/v1/messages/count_tokens", json={**claude, "model": "m", "system": "You are a pirate."}).json()
    assert several.http.post("/v1/messages/count_tokens", json=claude).json() == told


@pytest.mark.model
def test_a_preset_turns_thinking_off_and_a_request_on_again(several: Server) -> None:
    assert prompt(several, "quick") == prompt(several, "", reasoning_effort="none") != prompt(several, "")
    on = {"chat_template_kwargs": {"enable_thinking": True}}
    assert prompt(several, "quick", reasoning_effort="high", **on) == prompt(several, "", reasoning_effort="high", **on)


@pytest.mark.model
def test_the_gateways_word_counts_and_all_names_share_one_cache(several: Server) -> None:
    headers = {"x-corral-adapter": "exact", "x-corral-served-name": "models/tested:exact"}
    ask = {"model": "models/tested:exact", "messages": ASK, "ignore_eos": True}
    answer = several.http.post("/v1/chat/completions", json=ask, headers=headers).json()
    assert (answer["model"], answer["usage"]["completion_tokens"]) == ("models/tested:exact", 4)
    again = chat(several, "")
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert several.status()["loads"] == 1
    unknown = several.http.post("/v1/chat/completions", json=ask, headers={"x-corral-adapter": "nobody"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "adapter_not_found")


@pytest.mark.parametrize(
    ("presets", "field"),
    [
        ({"name": "a"}, "presets"),
        (["a"], "presets[0]"),
        ([{}], "presets[0].name"),
        ([{"name": "a"}, {"name": "a"}], "presets[1].name"),
        ([{"name": "sql"}], "presets[0].name"),
        ([{"name": "a", "adapter": "nobody"}], "presets[0].adapter"),
        ([{"name": "a", "reasoningEffort": "Much"}], "presets[0].reasoningEffort"),
        ([{"name": "a", "sampling": {"topP": "7"}}], "presets[0].sampling.topP"),
        ([{"name": "a", "systemPrompt": 7}], "presets[0].systemPrompt"),
    ],
)
def test_a_wrong_preset_is_named(presets: object, field: str) -> None:
    with pytest.raises(Failure) as caught:
        parse_engine({"adapters": [{"name": "sql", "source": "file:///a.gguf"}], "presets": presets})
    assert f"engine.{field}" in str(caught.value)


def test_a_preset_may_use_an_adapter() -> None:
    raw = {"adapters": [{"name": "sql", "source": "file:///a.gguf"}], "presets": [{"name": "a", "adapter": "sql", "reasoningEffort": "High"}]}
    (preset,) = parse_engine(raw).presets
    assert (preset.adapter, preset.reasoning_effort) == ("sql", "high")
