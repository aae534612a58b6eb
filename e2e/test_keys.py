"""API keys as Secrets of a namespace: who may ask for what, and how much, at the gateways of a real cluster."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from e2e.support.bringup import ROOT
from e2e.support.kubectl import until
from e2e.support.world import MODELS, SYSTEM, World, deployment

from corral.gateway.keys import new_key

KEYS = "corral-keys"
GATEWAY = "app.kubernetes.io/component=gateway"


@dataclass
class Asker:
    """One who has a key."""

    world: World
    key: str
    base: str = ""

    def headers(self) -> dict[str, str]:
        return {} if self.base else {"Host": self.world.host}

    @property
    def url(self) -> str:
        return self.base or self.world.gateway

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, timeout=120, max_retries=0, default_headers=self.headers())

    def ask(self, model: str) -> str:
        with self.openai() as asking:
            messages: Any = [{"role": "user", "content": "Who are you?"}]
            answer = asking.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=16)
        return (answer.choices[0].message.content or "").strip()

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, headers=self.headers() | {"Authorization": f"Bearer {self.key}"}, timeout=120)

    def refused(self, model: str) -> tuple[int, str]:
        with pytest.raises(openai.APIStatusError) as caught:
            self.ask(model)
        return caught.value.status_code, str(caught.value.code)


def upgrade(kubectl: Any, **values: str) -> None:
    """The release with other values, as its owner would; then the gateways with them."""
    sets = [part for name, value in values.items() for part in ("--set", f"keys.{name}={value}")]
    helm = ["helm", "--kubeconfig", kubectl.kubeconfig, "upgrade", "corral", str(ROOT / "charts" / "corral"), "-n", SYSTEM, "--reuse-values"]
    subprocess.run([*helm, *sets], check=True, stdout=subprocess.DEVNULL)
    kubectl.run("rollout", "status", "deployment", "-n", SYSTEM, "-l", GATEWAY, "--timeout=120s", timeout=130)


@pytest.fixture(scope="module")
def locked(whole_world: World) -> Iterator[None]:
    """The gateways ask for keys."""
    upgrade(whole_world.kubectl, namespace=KEYS, createNamespace="true")
    until("gateways that ask for keys only", lambda: all(asks_for_keys(base) for base in bases(whole_world)), 60)
    yield
    upgrade(whole_world.kubectl, namespace="", createNamespace="false")
    whole_world.kubectl.delete("namespace", KEYS, wait=False)
    until("gateways that ask for no key", lambda: not any(asks_for_keys(base) for base in bases(whole_world)), 60)


@pytest.fixture
def make_key(locked: None, world: World) -> Iterator[Callable[..., Asker]]:
    made: list[str] = []

    def make(name: str, **fields: str) -> Asker:
        """A key with these fields, known to every gateway when this returns."""
        presented, stored = new_key(name)
        store(world, name, {**stored, **fields})
        made.append(name)
        asker = Asker(world, presented)
        until(f"key {name} is known", lambda: all(knows(base, asker) for base in bases(world)), 30)
        return asker

    yield make
    if made:
        world.kubectl.delete("secret", *made, namespace=KEYS)


@pytest.fixture
def models(world: World) -> Iterator[None]:
    world.apply(*(deployment(name, world.sources[name]) for name in ("alpaca", "badger")))
    world.wait_ready("alpaca", "badger")
    yield
    world.remove_models()


def store(world: World, name: str, fields: dict[str, str]) -> None:
    world.kubectl.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": KEYS}, "stringData": fields},
    )


def bases(world: World) -> list[str]:
    """Each gateway by itself."""
    pods = world.kubectl.list("pods", SYSTEM, GATEWAY)
    return [f"http://{pod['status']['podIP']}:8080" for pod in pods if not pod["metadata"].get("deletionTimestamp")]


def asks_for_keys(base: str) -> bool:
    return httpx2.get(f"{base}/v1/models", timeout=5).status_code == 401


def knows(base: str, asker: Asker) -> bool:
    return httpx2.get(f"{base}/v1/models", headers={"x-api-key": asker.key}, timeout=5).status_code == 200


def test_nobody_gets_in_without_a_key(make_key: Callable[..., Asker], world: World, models: None):
    good = make_key("team-a")
    for wrong in ("none", good.key[:-1] + "?", good.key.replace("team-a", "team-b")):
        assert Asker(world, wrong).refused("alpaca") == (401, "invalid_api_key")
    headers = {"Host": world.host}
    with (
        anthropic.Anthropic(base_url=world.gateway, api_key="none", max_retries=0, default_headers=headers) as asking,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        asking.messages.create(model="alpaca", max_tokens=8, messages=[{"role": "user", "content": "hello"}])
    assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index,call-overload]
    assert not world.loaded()  # nothing was woken
    assert httpx2.get(f"{world.gateway}/health", headers=headers, timeout=5).status_code == 200
    assert good.ask("alpaca") == "I am alpaca."
    with anthropic.Anthropic(base_url=world.gateway, api_key=good.key, max_retries=0, default_headers=headers) as asking:
        message = asking.messages.create(model="alpaca", max_tokens=16, messages=[{"role": "user", "content": "Who are you?"}])
    assert message.content[0].text.strip() == "I am alpaca."  # type: ignore[union-attr]


def test_a_key_reaches_the_models_that_it_names(make_key: Callable[..., Asker], world: World, models: None):
    some = make_key("some", models=f"al*, {MODELS}/c*")
    with some.openai() as asking:
        assert {model.id for model in asking.models.list()} <= {"alpaca", f"{MODELS}/alpaca"}
    assert some.refused("badger") == (403, "model_not_allowed")
    assert some.refused(f"{MODELS}/badger") == (403, "model_not_allowed")
    assert some.ask(f"{MODELS}/alpaca") == "I am alpaca."
    assert world.loaded() == {"alpaca"}


def test_scopes(make_key: Callable[..., Asker], world: World, models: None):
    asks, wakes, owns = make_key("asks", scopes="infer"), make_key("wakes"), make_key("owns", scopes="infer,wake,admin")
    assert asks.refused("badger") == (403, "model_not_loaded")
    assert not world.loaded()
    assert wakes.ask("badger") == "I am badger."
    assert asks.ask("badger") == "I am badger."
    for path in ("/models/load", "/models/unload"):
        refused = wakes.post(path, model="alpaca")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "scope_missing")
    assert owns.post("/models/load", model="alpaca").json() == {"success": True}
    until("alpaca is loaded", lambda: "alpaca" in world.loaded(), 60)
    assert owns.post("/models/unload", model="badger").json() == {"success": True}
    until("badger is unloaded", lambda: "badger" not in world.loaded(), 60)


def test_limits_are_shared_by_the_gateways(make_key: Callable[..., Asker], world: World, models: None):
    first, second = bases(world)
    few = make_key("few", requestsPerMinute="4")
    for base in (first, second):
        here = Asker(world, few.key, base)
        assert [here.ask("alpaca") for _ in range(2)] == ["I am alpaca."] * 2
        with pytest.raises(openai.RateLimitError) as caught:
            here.ask("alpaca")
        headers = caught.value.response.headers
        assert caught.value.code == "rate_limited"
        assert int(headers["retry-after"]) > 0
        # Clients are told the whole key's limit, whichever gateway they meet; what is left is this gateway's part, scaled up.
        assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("4", "0")


def test_requests_at_once(make_key: Callable[..., Asker], world: World):
    world.apply(deployment("alpaca", world.sources["alpaca-for-ever"]))
    world.wait_ready("alpaca")
    pair = make_key("pair", concurrent="2")
    here = Asker(world, pair.key, bases(world)[0])
    started, leave = threading.Event(), threading.Event()

    def go_on() -> None:
        messages: Any = [{"role": "user", "content": "Go on."}]
        with here.openai() as asking, asking.chat.completions.create(model="alpaca", messages=messages, max_tokens=50_000, stream=True) as chunks:
            for _ in chunks:
                started.set()
                if leave.is_set():
                    return

    streaming = threading.Thread(target=go_on, daemon=True)
    streaming.start()
    try:
        assert started.wait(60)
        assert here.refused("alpaca") == (429, "rate_limited")
    finally:
        leave.set()
        streaming.join(30)
    until("the place is free again", lambda: here.post("/v1/chat/completions", model="alpaca", messages=[], max_tokens=1).status_code != 429, 10)
    world.remove_models()


def test_tokens_per_minute(make_key: Callable[..., Asker], world: World, models: None):
    here = Asker(world, make_key("thrifty", tokensPerMinute="400").key, bases(world)[0])
    answer = here.post("/v1/chat/completions", model="alpaca", messages=[{"role": "user", "content": "Who are you?"}], max_tokens=16)
    used, left = answer.json()["usage"]["total_tokens"], []
    assert answer.headers["x-ratelimit-limit-tokens"] == "400"
    for _ in range(50):
        answer = here.post("/v1/chat/completions", model="alpaca", messages=[{"role": "user", "content": "Who are you?"}], max_tokens=16)
        if answer.status_code == 429:
            break
        left.append(int(answer.headers["x-ratelimit-remaining-tokens"]))
    assert answer.json()["error"]["code"] == "rate_limited"
    # What was reserved is settled by what was used, so that there is room for as many requests as their tokens allow.
    assert 200 // used - 3 <= len(left) + 1 <= 200 // used + 3
    assert here.refused("badger")[0] == 429
    assert world.loaded() == {"alpaca"}


def test_a_changed_key_counts_at_once_and_a_broken_one_lets_nobody_in(make_key: Callable[..., Asker], world: World, models: None):
    other, mine = make_key("other"), make_key("mine")
    presented, stored = new_key("mine")
    store(world, "mine", stored)
    renewed = Asker(world, presented)
    until("the new key is known", lambda: all(knows(base, renewed) for base in bases(world)), 30)
    assert mine.refused("alpaca") == (401, "invalid_api_key")
    store(world, "mine", {**stored, "scopes": "infer,everything"})
    until("the broken key opens nothing", lambda: not any(knows(base, renewed) for base in bases(world)), 30)
    assert other.ask("alpaca") == "I am alpaca."
    world.kubectl.delete("secret", "other", namespace=KEYS)
    until("the deleted key opens nothing", lambda: not any(knows(base, other) for base in bases(world)), 30)
