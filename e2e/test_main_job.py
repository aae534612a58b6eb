"""Three models on two nodes with room for two: they answer, and the least recently used one makes room."""

from __future__ import annotations

import concurrent.futures
import threading
import time

import openai
import pytest
from e2e.support.ask import ask, client, stream
from e2e.support.kubectl import until
from e2e.support.world import MODELS, World, deployment

TRIO = ("alpaca", "badger", "camel")


@pytest.fixture
def trio(world: World):
    """Three models of one size; the pool's capacity lets one be loaded per node."""
    world.apply(*(deployment(name, world.sources[name]) for name in TRIO))
    world.wait_ready(*TRIO)
    yield TRIO
    world.remove_models()


def test_three_models_take_the_room_of_two_and_the_least_recently_used_makes_room(world: World, trio):
    for name in trio:
        world.wait_condition(name, "Loaded", "False", "Idle")  # `kubectl wait` called them Ready although nothing is loaded
    assert ask(world, "alpaca") == "I am alpaca."
    assert ask(world, "badger") == "I am badger."
    until("alpaca and badger are loaded", lambda: world.loaded() == {"alpaca", "badger"}, 20)
    assert ask(world, "camel") == "I am camel."
    until("camel took the room of alpaca, not of badger", lambda: world.loaded() == {"badger", "camel"}, 20)
    evicted = world.model("alpaca")["status"]
    assert evicted["evictions"] == 1
    nodes = {p["node"] for name in ("badger", "camel") for p in world.model(name)["status"]["placements"] if p["state"] == "Loaded"}
    assert nodes == set(world.nodes)
    table = world.kubectl.run("get", "md", "-n", MODELS)
    rows = {line.split()[0]: line.split() for line in table.splitlines()[1:]}
    assert rows["camel"][1:3] == ["True", "Loaded"]
    assert rows["alpaca"][1] == "True"
    assert rows["alpaca"][2] == "Sleeping"
    events = world.kubectl.run("get", "events", "-n", MODELS, "--field-selector", "involvedObject.name=alpaca")
    assert "Evicted" in events
    assert "camel" in events


def test_use_refreshes_the_order_of_eviction(world: World, trio):
    ask(world, "alpaca")
    ask(world, "badger")
    ask(world, "alpaca")
    ask(world, "camel")
    until("badger made room", lambda: world.loaded() == {"alpaca", "camel"}, 20)


def test_a_request_to_a_model_at_rest_is_held_and_ten_at_once_cause_one_load(world: World, trio):
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: ask(world, "alpaca"), range(10)))
    assert answers == ["I am alpaca."] * 10
    loads = list(world.pods("alpaca"))
    assert len(loads) == 1
    uid = world.model("alpaca")["metadata"]["uid"]  # its namesakes of other scenarios were loaded too
    events = world.kubectl.json("get", "events", "-n", MODELS, "--field-selector", f"involvedObject.uid={uid},reason=Loaded")["items"]
    assert sum(e.get("count") or 1 for e in events) == 1


def test_an_unknown_model_is_a_404(world: World):
    with pytest.raises(openai.NotFoundError) as error:
        ask(world, "unicorn")
    assert error.value.code == "model_not_found"
    assert "unicorn" in error.value.message


def test_a_model_that_can_never_fit_answers_at_once_with_the_arithmetic_and_evicts_nobody(world: World, trio):
    ask(world, "alpaca")
    world.apply(deployment("whale", world.sources["whale"]))
    stalled = world.wait_condition("whale", "Stalled", "True", "DoesNotFit")
    assert "margin" in stalled["message"]
    with pytest.raises(openai.APIStatusError) as error:
        ask(world, "whale", max_retries=0)
    assert error.value.status_code == 503
    assert error.value.body["code"] == "does_not_fit"
    assert "margin" in error.value.body["message"]
    assert "alpaca" in world.loaded()
    assert not world.pods("whale")


def test_nothing_evicts_a_model_while_a_client_streams_from_it(world: World, settings):
    settings(fairness={"maxWait": "90s", "turn": "10s"})
    world.apply(*(deployment(name, world.sources[f"{name}-for-ever"]) for name in ("alpaca", "badger")), deployment("camel", world.sources["camel"]))
    world.wait_ready("alpaca", "badger", "camel")
    stop = threading.Event()
    streams = [stream(world, name, stop, max_tokens=100_000) for name in ("alpaca", "badger")]
    until("both stream", lambda: all(s.pieces > 3 for s in streams), 60)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        late = pool.submit(ask, world, "camel")
        until("camel waits", lambda: world.condition("camel", "Loaded").get("reason", "").startswith("WaitingFor"), 60)
        time.sleep(2)  # long enough for a wrong eviction to show, short of the pool's maxWait
        assert world.loaded() == {"alpaca", "badger"}
        assert not any(s.ended for s in streams)
        until("camel's pod has started and it is told whom it waits for", lambda: "in flight" in world.condition("camel", "Loaded")["message"], 30)
        stop.set()
        assert late.result(60) == "I am camel."


def test_a_busy_models_turn_ends_when_another_has_waited_long_enough(world: World, settings):
    settings(fairness={"maxWait": "2s", "turn": "2s"}, eviction={"minResidency": "0s", "drainTimeout": "3s"})
    world.apply(*(deployment(name, world.sources[f"{name}-for-ever"]) for name in ("alpaca", "badger")), deployment("camel", world.sources["camel"]))
    world.wait_ready("alpaca", "badger", "camel")
    stop = threading.Event()
    streams = [stream(world, name, stop, max_tokens=100_000) for name in ("alpaca", "badger")]
    until("both stream", lambda: all(s.pieces > 3 for s in streams), 60)
    assert ask(world, "camel") == "I am camel."
    ended = until("one of the streams was ended", lambda: next((s for s in streams if s.ended), None), 30)
    assert "turn" in str(ended.error)
    stop.set()


def test_every_answer_has_the_headers_of_its_way(world: World, trio):
    with client(world) as asking:
        answer = asking.chat.completions.with_raw_response.create(model="alpaca", messages=[{"role": "user", "content": "Who?"}])
        assert answer.parse().model == "alpaca"
    assert answer.headers["x-corral-model"] == "models/alpaca"
    assert answer.headers["x-corral-replica"].startswith("alpaca-")
    assert answer.headers["x-request-id"]


def test_a_long_template_reaches_its_pod_as_it_was_written(world: World):
    """More than one environment variable can hold, and what Kubernetes would take for a variable and for an escaped dollar sign."""
    template = "{# " + 30_000 * "\u7f8a" + " #}$$ $(CORRAL_POD_UID) {{ messages[0].content }}"
    world.apply(deployment("alpaca", world.sources["alpaca"], engine={"chatTemplate": template}))
    try:
        world.wait_ready("alpaca")
        with client(world) as asking:
            body = {"model": "alpaca", "messages": [{"role": "user", "content": "$$ $(HOME)"}]}
            rendered = asking.post(str(asking.base_url.join("/apply-template")), body=body, cast_to=object)
        assert rendered == {"prompt": "$$ $(CORRAL_POD_UID) $$ $(HOME)"}
    finally:
        world.remove_models()


def test_a_stored_response_is_found_at_the_replica_that_keeps_it(world: World):
    world.apply(deployment("alpaca", world.sources["alpaca"], scaling={"minReplicas": 2, "maxReplicas": 2}))
    try:
        until("both replicas are loaded", lambda: (world.model("alpaca") or {}).get("status", {}).get("loadedReplicas") == 2, 120)
        with client(world) as asking:
            homes: dict[str, str] = {}
            for number in range(60):  # conversations are spread by their beginnings
                raw = asking.responses.with_raw_response.create(model="alpaca", input=f"Who are you? {number}")
                homes[raw.headers["x-corral-replica"]] = raw.parse().id
                if len(homes) == 2:
                    break
            assert len(homes) == 2, "one of the replicas was never asked"
            for home, name in homes.items():
                for _ in range(4):
                    second = asking.responses.with_raw_response.create(model="alpaca", input="And now?", previous_response_id=name)
                    assert second.headers["x-corral-replica"] == home
                read = asking.responses.with_raw_response.retrieve(name)
                assert (read.headers["x-corral-replica"], read.parse().output_text) == (home, "I am alpaca.")
            gone, name = homes.popitem()
            world.kubectl.run("delete", "pod", "-n", MODELS, gone, "--wait=false")
            until("the response is gone with its pod", lambda: _retrieved(asking, name) is None, 60)
            (kept,) = homes.values()
            assert _retrieved(asking, kept) == "I am alpaca."
    finally:
        world.remove_models()


def _retrieved(asking: openai.OpenAI, name: str) -> str | None:
    try:
        return asking.responses.retrieve(name).output_text
    except openai.NotFoundError as error:
        if error.code != "response_not_found":
            raise
        return None
