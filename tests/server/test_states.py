"""The prompt cache over a sleep, and rewinds: what is taken from a cache has to mean the same as a fresh evaluation."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.server.harness import Server
from tests.support.gguf_files import sentence_model
from tests.support.models import gemma, smollm2
from tests.support.random_models import Shape, random_model

pytestmark = pytest.mark.model

WORDS = [f"{w}{n}" for n in range(60) for w in ("river ", "stone ", "cloud ", "amber ", "harbour ")]
NOISE = 0.9
RECURRENT = ("lfm2", "mamba")


def file_of(name: str) -> Path:
    return random_model(Shape(name)) if name in RECURRENT else {"smollm2": smollm2, "gemma": gemma}[name]()


@pytest.fixture(scope="module", params=["smollm2", "gemma", *RECURRENT])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = file_of(request.param)
    with Server(path.as_uri(), tmp_path_factory.mktemp(request.param), engine={"contextLength": 1280, "kvTokens": 2560}) as server:
        server.load()
        yield server


def ask(server: Server, tokens: list[int], *, cached: bool = True) -> tuple[dict[str, float], dict]:
    """The likeliest next tokens with their logprobs, and what the server says of its work."""
    body = {"prompt": tokens, "max_tokens": 1, "temperature": 0, "logprobs": 10, "cache_prompt": cached}
    answer = server.http.post("/v1/completions", json=body).raise_for_status().json()
    return answer["choices"][0]["logprobs"]["top_logprobs"][0], answer["timings"]


def close(a: dict[str, float], b: dict[str, float]) -> bool:
    """Within batching noise: the best of one is about as good in the other."""
    best = max(a, key=lambda t: a[t])
    return best in b and abs(a[best] - b[best]) < NOISE


def tokens_of(server: Server, text: str) -> list[int]:
    return server.http.post("/tokenize", json={"content": text, "add_special": True}).json()["tokens"]


def saved(server: Server) -> list[Path]:
    return sorted((server.folder / "cache" / "states").glob("*/*.state"))


def ask_until_saved(server: Server, tokens: list[int]) -> Path:
    """The state that this very request left: those of earlier ones, which the server may still be writing, lie beside it."""
    ask(server, tokens)
    numbers = np.asarray(tokens, dtype="<i4").tobytes()
    while not (found := [path for path in saved(server) if numbers in path.read_bytes()]):
        server.status()
    return found[0]


def nap(server: Server) -> None:
    assert server.drain(ifIdle=True, ttl="20s").status_code == 200
    assert server.sleep().status_code == 200
    server.load()


@pytest.mark.parametrize("back", [1, 600, 1000])
def test_a_rewind_means_the_same_as_a_fresh_evaluation(server: Server, back: int):
    tokens = tokens_of(server, "".join(WORDS))[:1150]
    ask(server, tokens)
    turned = [*tokens[: len(tokens) - back], *tokens_of(server, "and then")]
    rewound, timings = ask(server, turned)
    fresh, _ = ask(server, turned, cached=False)
    assert close(fresh, rewound)
    assert timings["prompt_n"] + timings["cache_n"] == len(turned)
    if server.status()["model"]["architecture"] in RECURRENT:
        # From the checkpoint before the prompt's end, the one at 512 tokens, from the start.
        assert timings["cache_n"] == {1: 1146, 600: 512, 1000: 0}[back]


def test_what_was_answered_last_is_kept_though_the_sleep_comes_at_once(server: Server):
    """An eviction waits for nothing but the end of the last answer: its order is there before the engine could turn to keeping anything."""
    tokens = tokens_of(server, "The very last that was said before the model had to go: " + "".join(WORDS[:120]))[:300]
    asked = {"prompt": tokens, "max_tokens": 600, "ignore_eos": True, "stream": True}
    engine = server.engine_pid()
    with server.http.stream("POST", "/v1/completions", json=asked) as answer:
        next(answer.iter_lines())
        os.kill(engine, signal.SIGSTOP)
    try:
        while server.status()["inFlight"]:
            pass
        assert server.drain(ifIdle=True).status_code == 200
        sleeping = threading.Thread(target=server.sleep)
        sleeping.start()
        time.sleep(0.3)  # its order waits in the stopped engine's socket; were it not there yet, the engine would have an easier time
    finally:
        os.kill(engine, signal.SIGCONT)
    sleeping.join()
    server.load()
    _, timings = ask(server, tokens)
    assert timings["cache_n"] >= 296  # a recurrent state goes back to its last checkpoint, four tokens before the end


def test_a_conversation_goes_on_after_a_sleep_with_its_new_tokens_only(server: Server):
    tokens = tokens_of(server, "A story. " + "".join(reversed(WORDS)))[:300]
    state = ask_until_saved(server, tokens)
    assert state.stat().st_mode & 0o077 == 0
    nap(server)
    turn = [*tokens, *tokens_of(server, " What next?")]
    continued, timings = ask(server, turn)
    assert timings["prompt_n"] == len(turn) - len(tokens)
    fresh, _ = ask(server, turn, cached=False)
    assert close(fresh, continued)


def test_a_turn_that_departs_before_the_end_goes_on_from_a_checkpoint_that_was_saved(server: Server):
    tokens = tokens_of(server, "Or so they say. " + "".join(WORDS[7:]))[:400]
    ask_until_saved(server, tokens)
    nap(server)
    turned = [*tokens[:398], *tokens_of(server, " no more")]
    rewound, timings = ask(server, turned)
    fresh, _ = ask(server, turned, cached=False)
    assert close(fresh, rewound)
    assert timings["cache_n"] == (396 if server.status()["model"]["architecture"] in RECURRENT else 398)


def test_a_long_conversation_evaluates_only_its_new_tokens_after_a_swap(tmp_path: Path):
    with Server(sentence_model(context=4096).as_uri(), tmp_path, engine={"contextLength": 4096}) as server:
        server.load()
        ask_until_saved(server, [100] * 2000)
        nap(server)
        _, timings = ask(server, [*[100] * 2000, 101, 102, 103])
        assert (timings["cache_n"], timings["prompt_n"]) == (2000, 3)


def test_a_damaged_state_is_not_used(server: Server):
    tokens = tokens_of(server, "Another tale. " + "".join(WORDS[100:]))[:200]
    ask_until_saved(server, tokens)
    nap(server)
    for path in saved(server):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    turn = [*tokens, 5, 6]
    got, timings = ask(server, turn)
    assert timings["cache_n"] == 0
    fresh, _ = ask(server, turn, cached=False)
    assert close(fresh, got)


def test_nothing_is_left_when_the_server_ends(tmp_path: Path):
    with Server(smollm2().as_uri(), tmp_path, engine={"contextLength": 512}) as server:
        server.load()
        ask(server, list(range(100, 250)))
        while not saved(server):
            server.status()
    assert not (tmp_path / "cache" / "states").exists() or not saved(server)


def test_a_saved_conversation_leaves_the_cells_to_others_and_comes_back(server: Server):
    tokens = tokens_of(server, "A third tale. " + "".join(WORDS[40:]))[:300]
    ask_until_saved(server, tokens)
    deadline = time.monotonic() + 60
    while (held := max(slot.get("n_past", 0) for slot in server.http.get("/slots").json())) >= 300 and time.monotonic() < deadline:
        ask(server, tokens_of(server, "Hello"))
    assert held < 300
    _, timings = ask(server, [*tokens, *tokens[:5]])
    assert timings["cache_n"] == 300
