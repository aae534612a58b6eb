"""LoRA adapters: by name and by number, side by side in one server, and never a word of one in another's cache."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.server.harness import Server
from tests.support.adapter_files import write_adapter
from tests.support.exact_models import exact_smollm2
from tests.support.greedy import assert_same_or_tied
from tests.support.models import smollm2

from corral_server.engine.adapters import TURN, Switch, parse_set
from corral_server.engine.scheduling import IdleSlot, Rewind, choose_slot, choose_source

PROMPT = "The old man walked down to the harbour, where the boats lay, and there he met a woman who told him about the sea and the weather. She"


PRESETS = [{"name": "brief", "adapter": "poet", "sampling": {"maxTokens": 3}}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("adapters")
    files = [write_adapter(folder / f"{name}.gguf", seed) for seed, name in enumerate(("poet", "clerk"))]
    adapters = [{"name": f.stem, "source": f.as_uri(), "scale": "1.0"} for f in files]
    with Server(exact_smollm2().as_uri(), folder, engine={"contextLength": 512, "slots": 4, "adapters": adapters, "presets": PRESETS}) as server:
        server.load()
        yield server


def complete(server: Server, name: str = "", **more: object) -> dict:
    headers = {"x-corral-adapter": name} if name else {}
    body = {"prompt": PROMPT, "n_predict": 16, "temperature": 0, **more}
    answer = server.http.post("/completion", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.model
def test_each_adapter_speaks_for_itself_and_the_bare_model_stays_as_it_was(server: Server):
    bare = complete(server, cache_prompt=False)["content"]
    said = {name: complete(server, name, cache_prompt=False)["content"] for name in ("poet", "clerk")}
    assert len({bare, *said.values()}) == 3
    assert complete(server, cache_prompt=False)["content"] == bare
    assert complete(server, lora=[{"id": 0, "scale": 1.0}], cache_prompt=False)["content"] == said["poet"]
    assert complete(server, "poet", lora=[{"id": 1, "scale": 1.0}, {"id": 0, "scale": 0.0}], cache_prompt=False)["content"] == said["clerk"]
    assert complete(server, model="tested:poet", cache_prompt=False)["content"] == said["poet"]
    assert complete(server, "brief", cache_prompt=False, n_predict=None)["content"] == complete(server, "poet", n_predict=3)["content"]
    assert complete(server, model="tested:brief", cache_prompt=False)["content"] == said["poet"]
    chat = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 12, "temperature": 0}
    answers = [server.http.post("/v1/chat/completions", json={**chat, "model": m}).json() for m in ("tested", "tested:poet")]
    assert answers[0]["choices"][0]["message"]["content"] != answers[1]["choices"][0]["message"]["content"]


@pytest.mark.model
def test_a_prefix_is_shared_within_a_set_and_never_across(server: Server):
    prompt = PROMPT + " laughed at him, and they went on together for an hour."
    fresh = {name: complete(server, name, prompt=prompt, cache_prompt=False)["content"] for name in ("", "poet")}
    first = complete(server, "poet", prompt=prompt)
    other = complete(server, "", prompt=prompt)
    again = complete(server, "poet", prompt=prompt)
    assert again["timings"]["cache_n"] > 20
    assert (first["content"], other["content"], again["content"]) == (fresh["poet"], fresh[""], fresh["poet"])
    scaled = complete(server, lora=[{"id": 0, "scale": 0.5}], prompt=prompt)
    assert scaled["timings"]["cache_n"] == 0


@pytest.mark.model
def test_requests_of_several_sets_at_once_are_each_answered_as_alone(server: Server):
    names = ["", "poet", "clerk", "", "poet", "clerk", "poet", ""]
    asked = {"cache_prompt": False, "n_predict": 24, "return_tokens": True, "n_probs": 2}
    alone = {name: complete(server, name, **asked) for name in set(names)}
    with ThreadPoolExecutor(len(names)) as pool:
        together = list(pool.map(lambda name: complete(server, name, **asked), names))
    for name, answer in zip(names, together, strict=True):
        assert_same_or_tied(alone[name], answer)


@pytest.mark.model
def test_scales_for_those_who_name_none(server: Server):
    bare, poet = complete(server, cache_prompt=False)["content"], complete(server, "poet", cache_prompt=False)["content"]
    assert [(a["id"], a["name"], a["scale"]) for a in server.http.get("/lora-adapters").json()] == [(0, "poet", 0.0), (1, "clerk", 0.0)]
    assert server.http.post("/lora-adapters", json=[{"id": 0, "scale": 1.0}]).json() == {"success": True}
    assert server.http.get("/lora-adapters").json()[0]["scale"] == 1.0
    assert complete(server, cache_prompt=False)["content"] == poet
    assert complete(server, lora=[{"id": 0, "scale": 0.0}], cache_prompt=False)["content"] == bare
    server.http.post("/lora-adapters", json=[])
    assert complete(server, cache_prompt=False)["content"] == bare


@pytest.mark.model
@pytest.mark.parametrize("lora", [[{"id": 2, "scale": 1.0}], [{"id": -1}], [{"scale": 1.0}], {"id": 0}, [{"id": 0, "scale": "x"}], [0], "poet"])
def test_a_set_that_is_none_is_refused(server: Server, lora: object):
    for route, body in (("/completion", {"prompt": "x", "lora": lora}), ("/lora-adapters", lora)):
        assert server.http.post(route, json=body).status_code == 400
    assert server.http.post("/completion", json={"prompt": "x"}, headers={"x-corral-adapter": "novelist"}).status_code == 404


@pytest.mark.model
def test_a_conversation_with_an_adapter_is_found_again_after_sleep_by_the_same_set_only(server: Server):
    prompt = " ".join(f"Line {i} of the long report was read aloud." for i in range(30))
    asked = {"prompt": prompt, "n_predict": 4}
    said = complete(server, "clerk", **asked)["content"]
    server.drain(ifIdle=True)
    assert server.sleep().status_code == 200
    server.load()
    bare, clerk = complete(server, **asked), complete(server, "clerk", **asked)
    assert bare["timings"]["cache_n"] == 0
    assert clerk["timings"]["prompt_n"] <= 4
    assert clerk["content"] == said


@pytest.mark.model
def test_a_file_that_is_no_adapter_of_the_model_is_reported(tmp_path: Path):
    wrong = write_adapter(tmp_path / "wrong.gguf", 1, width=64, layers=1)
    with Server(smollm2().as_uri(), tmp_path, engine={"adapters": [{"name": "wrong", "source": wrong.as_uri()}]}) as server:
        server.until("Sleeping")
        server.wake()
        server.until("Loading", "Sleeping")
        status = server.until("Sleeping", "Loaded")
    assert status["error"]["reason"] == "LoadFailed"
    assert "wrong" in status["error"]["message"]


def test_a_set_keeps_the_batch_for_some_steps_and_then_gives_way():
    class Recording(Switch):
        def _apply(self, chosen: tuple) -> None:
            self._current = chosen

    switch = Recording(None, [None, None])
    a, b, bare = ((0, 1.0),), ((1, 1.0),), ()
    assert [switch.choose({a: 1.0}) for _ in range(2 * TURN)] == [a] * (2 * TURN)
    assert switch.choose({a: 1.0, b: 2.0}) == b
    order = [switch.choose({a: 1.0, b: 2.0, bare: 3.0}) for _ in range(2 * TURN)]
    assert order == [b] * (TURN - 1) + [a] * TURN + [order[-1]]
    assert order[-1] != a


def test_a_set_leaves_out_what_has_no_effect():
    assert parse_set([[1, 0.5], [0, 0.0]], 2) == ((1, 0.5),)
    assert parse_set(None, 0) == ()
    with pytest.raises(ValueError, match="adapter 2"):
        parse_set([[2, 1.0]], 2)


def test_a_sequence_of_another_set_spares_nothing():
    held = list(range(100))
    ours, theirs = IdleSlot(0, held[:40], 1), IdleSlot(1, held, 2, foreign=True)
    assert choose_slot([ours, theirs], held, Rewind()) == (ours, 40)
    assert choose_slot([theirs], held, Rewind()) == (theirs, 0)
    assert choose_source([theirs], held, Rewind(), 0) is None
