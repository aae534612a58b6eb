"""Guesses from the text: an answer is the same with and without them, and costs fewer steps."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.server.harness import Server
from tests.server.test_estimate import assert_kept, estimate, used
from tests.server.web_source import Site, serving
from tests.support.exact_models import exact_smollm2
from tests.support.greedy import assert_same_or_tied
from tests.support.models import gemma, smollm2
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
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SmolLM2 without guesses, to compare with."""
    with Server(exact_smollm2().as_uri(), tmp_path_factory.mktemp("exact"), engine={"contextLength": 1024, "kvTokens": 2048}) as server:
        server.load()
        yield server


@pytest.fixture(scope="module")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(exact_smollm2().as_uri(), tmp_path_factory.mktemp("drafting"), engine={"contextLength": 512, "draft": {"ngram": True}}) as server:
        server.load()
        yield server


def complete(server: Server, prompt: str, **more: object) -> dict:
    body = {"prompt": prompt, "n_predict": 48, "temperature": 0, "return_tokens": True, "cache_prompt": False, **more}
    answer = server.http.post("/completion", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.model
def test_greedy_answers_are_the_same_alone_and_together(exact: Server, drafting: Server):
    plain = [complete(exact, p, n_probs=2) for p in PROMPTS]
    alone = [complete(drafting, p, n_probs=2) for p in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(lambda p: complete(drafting, p, n_probs=2), PROMPTS))
    for without, one, other in zip(plain, alone, together, strict=True):
        assert_same_or_tied(without, one)
        assert_same_or_tied(without, other)
    assert sum(a["timings"].get("draft_n_accepted", 0) for a in alone) > 40
    assert all("draft_n" not in complete(exact, p)["timings"] for p in PROMPTS[:1])


@pytest.mark.model
def test_limits_stops_schemas_and_the_cache_hold(exact: Server, drafting: Server):
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
    assert_same_or_tied(complete(exact, longer, n_probs=2), again)


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
    settings = {"contextLength": 512, **engine, "draft": {"source": draft.as_uri()}}
    return Server((model or exact_smollm2()).as_uri(), folder, engine=settings)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SmolLM2 that guesses for itself."""
    with guessing(tmp_path_factory.mktemp("twin"), exact_smollm2()) as server:
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
def test_a_model_that_guesses_for_itself_is_nearly_always_right_and_says_the_same(exact: Server, twin: Server):
    plain = [complete(exact, p, n_probs=2) for p in PROMPTS]
    every = {"n_probs": 2, "speculative.p_min": 0}
    alone = [complete(twin, p, **every) for p in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: complete(twin, p, **every), PROMPTS))
    for without, one, other in zip(plain, alone, together, strict=True):
        assert_same_or_tied(without, one)
        assert_same_or_tied(without, other)
    for answers in (alone, together):
        offered, accepted = (sum(column) for column in zip(*map(guesses, answers), strict=True))
        # Of five words four are guessed. Where two are all but equally likely, the batch's shape decides, and what was guessed behind falls too.
        assert accepted > 0.7 * sum(len(a["tokens"]) for a in answers)
        assert accepted > 0.95 * offered, (offered, accepted)


@pytest.mark.model
def test_a_draft_that_knows_nothing_changes_no_answer_and_soon_rests(exact: Server, clueless: Server):
    for prompt in PROMPTS[:3]:
        without = complete(exact, prompt, n_probs=2)
        assert_same_or_tied(without, complete(clueless, prompt, n_probs=2))
        eager = complete(clueless, prompt, n_probs=2, **{"speculative.p_min": 0})
        assert_same_or_tied(without, eager)
        offered, accepted = guesses(eager)
        # Four, two, one, and then one now and then.
        assert 3 <= offered <= 16
        assert accepted <= 2


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """A small model of exact figures, alone and guessing for itself: here answers can be compared token by token, sampled ones too."""
    model = random_model(EXACT)
    engine = {"contextLength": 1024, "kvTokens": 2048, "microBatch": 64, "kvCache": "F32", "flashAttention": "Off"}
    alone = Server(model.as_uri(), tmp_path_factory.mktemp("alone"), engine=engine)
    with alone, guessing(tmp_path_factory.mktemp("guessing"), model, model=model, **engine) as other:
        alone.load()
        other.load()
        yield alone, other


EXACT = Shape("llama", layers=2, width=128, feed_forward=256, quantised="F32")
BYTES = {"ignore_eos": True, "speculative.p_min": 0}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0.7, "seed": 11},
        {"temperature": 1.3, "seed": 5, "top_k": 0, "top_p": 0.9},
        {"temperature": 0.7, "seed": 3, "repeat_penalty": 1.3},
        {"speculative.n_max": 1},
        {"speculative.n_max": 3, "speculative.n_min": 3},
        {"cache_prompt": True},
    ],
)
def test_an_answer_is_the_same_token_by_token(pair: tuple[Server, Server], more: dict):
    alone, guessing = pair
    prompts = [f"{n} times something that is said" for n in range(6)]
    plain = [complete(alone, p, **BYTES, **more)["tokens"] for p in prompts]
    first = [complete(guessing, p, **(BYTES | more)) for p in prompts]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda p: complete(guessing, p, **(BYTES | more)), prompts))
    assert [a["tokens"] for a in first] == plain
    assert [a["tokens"] for a in together] == plain
    assert all(guesses(a)[0] > 0 for a in [*first, *together])
    if "temperature" not in more:
        assert all(guesses(a)[0] == guesses(a)[1] for a in [*first, *together])


def test_a_long_prompt_is_caught_up_with_in_pieces_and_shared_by_its_answers(pair: tuple[Server, Server]):
    alone, guessing = pair
    prompt = "what was said before, and " * 24
    body = {"prompt": prompt, "max_tokens": 64, "temperature": 0.5, "seed": 1, "n": 3, **BYTES}
    texts = [[c["text"] for c in s.http.post("/v1/completions", json=body).raise_for_status().json()["choices"]] for s in pair]
    assert texts[0] == texts[1]
    one = complete(guessing, prompt + "again", n_predict=64, **BYTES)
    assert one["tokens"] == complete(alone, prompt + "again", n_predict=64, **BYTES)["tokens"]
    offered, accepted = guesses(one)
    assert 20 < accepted == offered


def test_answers_that_give_way_to_others_go_on_as_they_were(pair: tuple[Server, Server]):
    alone, guessing = pair
    prompts = [f"{n} " + "and so on " * 20 for n in range(5)]
    plain = [complete(alone, p, n_predict=700, **BYTES)["tokens"] for p in prompts]
    with ThreadPoolExecutor(5) as pool:
        crowded = list(pool.map(lambda p: complete(guessing, p, n_predict=700, **BYTES), prompts))
    assert [a["tokens"] for a in crowded] == plain
    assert all(guesses(a)[1] > 100 for a in crowded)


def test_cancelled_answers_leave_nothing_behind(pair: tuple[Server, Server]):
    alone, guessing = pair
    for index in range(8):
        body = {"prompt": f"{index % 3} begins", "n_predict": 500, "stream": True, **BYTES}
        with guessing.http.stream("POST", "/completion", json=body) as answer:
            lines = answer.iter_lines()
            for _ in range(2 + 7 * index):
                next(lines)
    after = complete(guessing, "1 begins", n_predict=100, cache_prompt=True, **BYTES)
    assert after["tokens"] == complete(alone, "1 begins", n_predict=100, **BYTES)["tokens"]
    assert not any(s["is_processing"] for s in guessing.http.get("/slots").json())


def test_what_a_request_says_of_its_guesses_holds(pair: tuple[Server, Server]):
    alone, guessing = pair
    assert "draft_n" not in complete(guessing, "none", **(BYTES | {"speculative.n_max": 0}))["timings"]
    assert "draft_n" not in complete(guessing, "none", **(BYTES | {"speculative.n_min": MOST + 1}))["timings"]
    assert "draft_n" not in complete(alone, "none", **BYTES)["timings"]
    for server in pair:
        for name, value in (("n_max", -1), ("n_min", "few"), ("p_min", 1.5)):
            answer = server.http.post("/completion", json={"prompt": "none", f"speculative.{name}": value})
            assert answer.status_code == 400
            assert answer.json()["error"]["message"].startswith(f"speculative.{name} is ")
    settings = [complete(s, "none", n_predict=1)["generation_settings"]["speculative.types"] for s in (alone, guessing)]
    assert settings == ["none", "draft-simple"]


def test_after_a_sleep_a_conversation_and_its_guesses_go_on(pair: tuple[Server, Server]):
    alone, guessing = pair
    prompt = "a conversation that goes on and on " * 8
    first = complete(guessing, prompt, cache_prompt=True, n_predict=32, **BYTES)
    assert guessing.drain(ifIdle=True).status_code == 200
    assert guessing.sleep().status_code == 200
    guessing.load()
    longer = first["tokens"] + [70, 71, 72]
    tokens = guessing.http.post("/tokenize", json={"content": prompt, "add_special": True}).json()["tokens"] + longer
    again = complete(guessing, tokens, cache_prompt=True, **BYTES)
    assert again["timings"]["cache_n"] > 250
    assert again["tokens"] == complete(alone, tokens, **BYTES)["tokens"]
    assert guesses(again)[1] > 20


def test_the_draft_comes_from_where_models_come_from_and_into_the_same_cache(tmp_path: Path):
    data = random_model(Shape("llama")).read_bytes()
    with serving(Site({"/m.gguf": data, "/d.gguf": data}, token="let-me-in")) as site:
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret" / "token").write_text("let-me-in")
        env = {"CORRAL_SECRET_DIR": str(tmp_path / "secret")}
        for number in range(2):
            engine = {"contextLength": 256, "draft": {"source": f"{site.url}/d.gguf"}}
            with Server(f"{site.url}/m.gguf", tmp_path / str(number), engine=engine, env=env, cache=tmp_path / "cache") as server:
                server.load()
                assert guesses(complete(server, "any", **BYTES))[1] > 10
        assert sorted({path for _, path, _ in site.asked}) == ["/d.gguf", "/m.gguf"]
        # Fetched once each; the second server finds them.
        assert sum(method == "GET" for method, _, _ in site.asked) == 2
        engine = {"draft": {"source": f"{site.url}/none.gguf"}}
        with Server(f"{site.url}/m.gguf", tmp_path / "none", engine=engine, env=env, cache=tmp_path / "cache") as server:
            error = server.until("Failed")["error"]
            assert (error["reason"], "none.gguf" in error["message"]) == ("SourceNotFound", True)


@pytest.mark.model
def test_a_draft_that_cannot_guess_is_a_load_that_failed_and_says_why(tmp_path: Path):
    llama, gemma3, lfm2 = (random_model(Shape(name)) for name in ("llama", "gemma3", "lfm2"))
    nonsense = tmp_path / "nonsense.gguf"
    nonsense.write_bytes(b"nonsense" * 100)
    for number, (model, draft, reason, says) in enumerate(
        (
            (smollm2(), gemma(), "InvalidEngineSettings", "another vocabulary: it is of the type SPM, the model's is BPE"),
            (llama, random_model(Shape("llama", vocabulary=700)), "InvalidEngineSettings", "it has 700 tokens, the model has 512"),
            (llama, lfm2, "InvalidEngineSettings", "lfm2"),
            (random_model(Shape("gemma3", window=256)), llama, "InvalidEngineSettings", "sliding windows"),
        )
    ):
        with guessing(tmp_path / str(number), draft, model=model) as server:
            server.until("Sleeping")
            assert server.wake().status_code == 202
            status = server.until("Sleeping", "Loaded")
            assert (status["state"], status["error"]["reason"], status["error"]["retry"]) == ("Sleeping", reason, False)
            assert says in status["error"]["message"]
        promised = estimate(model.as_uri(), tmp_path, spec={"engine": {"draft": {"source": draft.as_uri()}}})
        assert (promised["ok"], promised["reason"]) == (False, reason)
        assert says in promised["message"]
    with guessing(tmp_path / "nonsense", nonsense, model=llama) as server:
        error = server.until("Failed")["error"]
        assert (error["reason"], "nonsense.gguf" in error["message"]) == ("NotAGGUF", True)
    with guessing(tmp_path / "windows", gemma3, model=llama) as server:
        server.load()
        assert complete(server, "any", **BYTES)["tokens_predicted"] == 48


@pytest.mark.model
def test_what_was_promised_covers_what_both_use(tmp_path: Path):
    model = random_model(Shape("llama", layers=6, width=256, feed_forward=512, vocabulary=WORDS, words_of=smollm2()))
    engine = {"contextLength": 512, "kvTokens": 1024}
    promised = estimate(model.as_uri(), tmp_path, spec={"engine": {**engine, "draft": {"source": smollm2().as_uri()}}})
    bare = estimate(model.as_uri(), tmp_path, spec={"engine": engine})
    assert promised["weights"] > bare["weights"] + smollm2().stat().st_size * 0.9
    assert sum(n * kv for n, _, kv in promised["perLayer"]) == promised["kvCache"] > 3 * bare["kvCache"]
    with guessing(tmp_path / "run", smollm2(), model=model, **engine) as server:
        status = server.load()
        for index in range(3):
            ask = {"prompt": f"{index} " + "words and more words " * 30, "max_tokens": 24, "n": 4, "logprobs": 5, **BYTES}
            server.http.post("/v1/completions", json=ask).raise_for_status()
        held = used(server)
    assert_kept(promised, status["memory"], held)


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
