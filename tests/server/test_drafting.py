"""Guesses from the text: an answer is the same with and without them, and costs fewer steps."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.server.harness import Server
from tests.support.greedy import assert_same_or_tied
from tests.support.models import smollm2
from tests.support.random_models import Shape, random_model

from corral_server.engine.drafting import MOST, NgramDraft

PROMPTS = [
    "one two three four five six seven one two three four five six seven one two three four",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef mul(a, b):\n    return",
    "The capital of France is",
    "Write a list:\n- apple\n- pear\n- apple\n- pear\n-",
    "Once upon a time there was a king, and the king had a daughter, and the daughter",
    "a b c d a b c d a b c d a b",
]


@pytest.fixture(scope="module")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(smollm2().as_uri(), tmp_path_factory.mktemp("drafting"), engine={"contextLength": 512, "draft": {"ngram": True}}) as server:
        server.load()
        yield server


def complete(server: Server, prompt: str, **more: object) -> dict:
    body = {"prompt": prompt, "n_predict": 48, "temperature": 0, "return_tokens": True, "cache_prompt": False, **more}
    answer = server.http.post("/completion", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.model
def test_greedy_answers_are_the_same_alone_and_together(smol: Server, drafting: Server):
    plain = [complete(smol, p, n_probs=2) for p in PROMPTS]
    alone = [complete(drafting, p, n_probs=2) for p in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(lambda p: complete(drafting, p, n_probs=2), PROMPTS))
    for without, one, other in zip(plain, alone, together, strict=True):
        assert_same_or_tied(without, one)
        assert_same_or_tied(without, other)
    assert sum(a["timings"].get("draft_n_accepted", 0) for a in alone) > 40
    assert all("draft_n" not in complete(smol, p)["timings"] for p in PROMPTS[:1])


@pytest.mark.model
def test_limits_stops_schemas_and_the_cache_hold(smol: Server, drafting: Server):
    for most in (1, 2, 5, 9):
        answer = complete(drafting, PROMPTS[0], n_predict=most)
        assert answer["tokens_predicted"] == len(answer["tokens"]) == most
    stopped = complete(drafting, PROMPTS[5], stop=[" c"])
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", " c")
    schema = {"type": "array", "items": {"enum": ["apple", "pear"]}, "minItems": 4, "maxItems": 6}
    fruit = json.loads(complete(drafting, PROMPTS[3], json_schema=schema)["content"])
    assert 4 <= len(fruit) <= 6
    assert set(fruit) <= {"apple", "pear"}
    first = complete(drafting, PROMPTS[0], cache_prompt=True)
    longer = PROMPTS[0] + first["content"] + " and then"
    again = complete(drafting, longer, cache_prompt=True)
    assert again["timings"]["cache_n"] > 40
    assert_same_or_tied(complete(smol, longer, n_probs=2), again)


@pytest.mark.model
def test_probabilities_come_for_guessed_tokens_too(drafting: Server):
    answer = complete(drafting, PROMPTS[5], n_probs=2)
    assert [p["id"] for p in answer["completion_probabilities"]] == answer["tokens"]
    assert answer["timings"]["draft_n_accepted"] > 0


@pytest.mark.model
def test_the_metrics_count_guesses(drafting: Server):
    complete(drafting, PROMPTS[5])
    text = drafting.http.get("/metrics").text
    values = {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines() if line.startswith("llamacpp:")}
    offered, accepted = (values[f"llamacpp:spec_decode_num_{kind}_tokens_total"] for kind in ("draft", "accepted"))
    assert 0 < accepted <= offered
    assert values["llamacpp:n_decode_total"] > 0


WORDS = 49152


def guessing(folder: Path, draft: Path, *, model: Path | None = None, **engine: object) -> Server:
    settings = {"contextLength": 512, "draft": {"source": draft.as_uri()}, **engine}
    return Server((model or smollm2()).as_uri(), folder, engine=settings)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SmolLM2 that guesses for itself."""
    with guessing(tmp_path_factory.mktemp("twin"), smollm2()) as server:
        server.load()
        yield server


@pytest.fixture(scope="module")
def clueless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SmolLM2 with a draft that knows its words and nothing else."""
    draft = random_model(Shape("llama", layers=2, width=64, feed_forward=128, vocabulary=WORDS, words_of=smollm2()))
    with guessing(tmp_path_factory.mktemp("clueless"), draft) as server:
        server.load()
        yield server


def guesses(answer: dict) -> tuple[int, int]:
    return answer["timings"].get("draft_n", 0), answer["timings"].get("draft_n_accepted", 0)


@pytest.mark.model
def test_a_model_that_guesses_for_itself_is_nearly_always_right_and_says_the_same(smol: Server, twin: Server):
    plain = [complete(smol, p, n_probs=2) for p in PROMPTS]
    every = {"n_probs": 2, "speculative.p_min": 0}
    alone = [complete(twin, p, **every) for p in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: complete(twin, p, **every), PROMPTS))
    for without, one, other in zip(plain, alone, together, strict=True):
        assert_same_or_tied(without, one)
        assert_same_or_tied(without, other)
    for answers in (alone, together):
        offered, accepted = (sum(column) for column in zip(*map(guesses, answers), strict=True))
        assert accepted > 200
        assert accepted > 0.95 * offered


def test_what_followed_before_is_guessed():
    draft = NgramDraft()
    assert draft.guess([1, 2, 3, 9, 8, 7, 1, 2, 3], 8) == [9, 8, 7, 1]
    assert draft.guess([1, 2, 3, 9, 8, 7, 1, 2, 3], 2) == [9, 8]
    assert draft.guess([1, 2, 3, 9, 8, 7, 1, 2, 3, 4], 8) == []
    assert NgramDraft().guess([1, 2], 8) == []
    assert NgramDraft().guess([5, 5, 5, 5], 0) == []


def test_the_latest_occurrence_counts_and_the_length_follows_success():
    draft = NgramDraft()
    tokens = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3]
    assert draft.guess(tokens, 1) == [5]
    repeated = list(range(20)) * 2 + [0, 1, 2]
    for _ in range(3):
        draft.judged(4, 4)
    assert len(NgramDraft().guess(repeated, 99)) == MOST // 2
    assert len(draft.guess(repeated, 99)) == MOST
    for _ in range(5):
        draft.judged(4, 0)
    assert len(draft.guess(repeated, 99)) == 1
