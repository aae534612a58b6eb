"""Half a minute and more of mixed requests while everything that can be replaced is: no request fails whose model fits."""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import pytest
from e2e.support.ask import ask, client
from e2e.support.kubectl import until
from e2e.support.world import MODELS, SYSTEM, World, deployment

GATEWAY = "app.kubernetes.io/component=gateway"
LEAST_SECONDS = 30
ANSWER = "I am {}."


@dataclass
class Load:
    """Clients that ask without pause, without retries of their own, each a kind of request and a model."""

    world: World
    models: tuple[str, ...]
    stop: threading.Event = field(default_factory=threading.Event)
    answered: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    failed: list[str] = field(default_factory=list)
    killed: set[str] = field(default_factory=set)
    """Pods that were killed without grace: what streamed there may break off, and is counted."""
    broken: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        kinds: dict[str, Callable[[Any, str], str]] = {"whole": _whole, "stream": _stream, "text": _text, "message": _message}
        for name, (kind, act) in itertools.product(self.models, kinds.items()):
            self.threads.append(threading.Thread(target=self._run, args=(name, kind, act), daemon=True))
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(150)

    def _run(self, name: str, kind: str, act: Callable[[Any, str], str]) -> None:
        with client(self.world, max_retries=0) as asking:
            while not self.stop.is_set():
                began = time.monotonic()
                replica = ""
                try:
                    text = act(asking, name)
                    if text.strip() != ANSWER.format(name):
                        raise AssertionError(f"answered {text!r}")  # noqa: TRY301 - counted like every other failure
                    self.answered[name, kind] += 1
                except Exception as error:
                    replica = str(getattr(error, "replica", ""))
                    told = f"{name} {kind} after {time.monotonic() - began:.1f}s at {replica or '?'}: {error!r}"
                    (self.broken if replica in self.killed else self.failed).append(told)
                self.stop.wait(0.1)

    def seen(self, name: str) -> int:
        return sum(count for (model, _), count in self.answered.items() if model == name)

    def goes_on(self, name: str) -> None:
        """Every kind of request for this model is answered anew."""
        before = dict(self.answered)
        kinds = {kind for model, kind in before if model == name}
        until(f"{name} to be answered anew", lambda: all(self.answered[name, kind] > before[name, kind] for kind in kinds) or self.failed, 120)
        assert not self.failed, self.failed


def _whole(asking: Any, name: str) -> str:
    answer = asking.chat.completions.create(model=name, messages=[{"role": "user", "content": "Who are you?"}], temperature=0, max_tokens=16)
    return answer.choices[0].message.content or ""


def _stream(asking: Any, name: str) -> str:
    text = ""
    messages = [{"role": "user", "content": "Who are you?"}]
    options = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 16, "stream": True}
    with asking.chat.completions.with_streaming_response.create(**options) as response:
        try:
            for chunk in response.parse():
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        except Exception as error:
            error.replica = response.headers.get("x-corral-replica", "")  # type: ignore[attr-defined]
            raise
    return text


def _text(asking: Any, name: str) -> str:
    # The chat template of these models ends where the sentence begins.
    answer = asking.responses.create(model=name, input="Who are you?", temperature=0, max_output_tokens=16)
    return answer.output_text


def _message(asking: Any, name: str) -> str:
    body = {"model": name, "max_tokens": 16, "temperature": 0, "messages": [{"role": "user", "content": "Who are you?"}]}
    answer = asking.post("/messages", body=body, cast_to=object)
    return "".join(part["text"] for part in answer["content"])


@pytest.fixture
def loaded(world: World) -> Iterator[World]:
    names = ("alpaca", "badger", "camel")
    world.apply(*(deployment(name, world.sources[name]) for name in names))
    world.wait_ready(*names)
    for name in ("camel", "alpaca", "badger"):  # every model has a pod with its file; alpaca and badger end up loaded
        assert ask(world, name) == ANSWER.format(name)
    yield world
    gateways_ready(world)
    world.remove_models()


def gateways(world: World) -> dict[str, str]:
    """Name to uid of those that are not on their way out."""
    return {
        pod["metadata"]["name"]: pod["metadata"]["uid"]
        for pod in world.kubectl.list("pods", SYSTEM, GATEWAY)
        if not pod["metadata"].get("deletionTimestamp")
    }


def gateways_ready(world: World) -> None:
    world.kubectl.run("rollout", "status", "deployment", "-n", SYSTEM, "-l", GATEWAY, "--timeout=120s", timeout=130)


def server_pods(world: World, name: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in world.pods(name) if not pod["metadata"].get("deletionTimestamp")}


def evictions(world: World) -> int:
    return sum((md.get("status") or {}).get("evictions", 0) for md in world.kubectl.list("md", MODELS))


def test_no_request_fails_while_everything_is_replaced(loaded: World):
    world = loaded
    began = time.monotonic()
    with Load(world, ("alpaca", "badger")) as load:
        for name in load.models:
            until(f"{name} is asked in every way", lambda name=name: len([1 for model, _ in load.answered if model == name]) == 4 or load.failed, 60)
        # A gateway is deleted.
        before = gateways(world)
        world.kubectl.delete("pod", next(iter(before)), namespace=SYSTEM, wait=False)
        until("another gateway", lambda: set(gateways(world).values()) - set(before.values()), 60)
        gateways_ready(world)
        assert not load.failed, load.failed
        # All of them are replaced, one after the other.
        before = gateways(world)
        world.kubectl.run("rollout", "restart", "deployment", "-n", SYSTEM, "-l", GATEWAY)
        gateways_ready(world)
        until("new gateways only", lambda: not set(gateways(world).values()) & set(before.values()), 60)
        assert not load.failed, load.failed
        # A model's pod is deleted.
        pods = server_pods(world, "alpaca")
        world.kubectl.delete("pod", *(pod["metadata"]["name"] for pod in world.pods("alpaca")), namespace=MODELS, wait=False)
        until("another pod of alpaca", lambda: server_pods(world, "alpaca") - pods, 60)
        load.goes_on("alpaca")
        # Its deployment is changed, so that its pod is replaced.
        pods = server_pods(world, "badger")
        world.apply(deployment("badger", world.sources["badger"], engine={"contextLength": 256}))
        until("another pod of badger", lambda: server_pods(world, "badger") - pods, 90)
        load.goes_on("badger")
        # A third model takes the place of one of them.
        evicted = evictions(world)
        assert ask(world, "camel") == ANSWER.format("camel")
        until("an eviction is told", lambda: evictions(world) > evicted, 20)
        for name in load.models:
            load.goes_on(name)
        until("time enough", lambda: time.monotonic() - began > LEAST_SECONDS, LEAST_SECONDS + 10)
    assert not load.failed, load.failed
    print(f"\n{sum(load.answered.values())} requests in {time.monotonic() - began:.0f}s: {dict(load.answered)}; broken off with a killed pod: 0")


def test_only_what_was_there_is_lost_with_a_killed_pod(loaded: World):
    """A model's pod dies without a word: its running requests may fail, and say so; whoever comes then is answered by the next."""
    world = loaded
    with Load(world, ("alpaca", "badger")) as load:
        for name in load.models:
            until(f"{name} is asked", lambda name=name: load.seen(name) > 4 or load.failed, 60)
        pods = server_pods(world, "alpaca")
        for pod in world.pods("alpaca"):
            load.killed.add(pod["metadata"]["name"])
            world.kubectl.delete("pod", pod["metadata"]["name"], "--grace-period=0", "--force", namespace=MODELS, wait=False)
        until("another pod of alpaca", lambda: server_pods(world, "alpaca") - pods, 60)
        seen = load.seen("alpaca")
        until("alpaca answers again", lambda: load.seen("alpaca") > seen + 8, 120)
    # Four clients had one request each at that pod, at most.
    lost = load.failed + load.broken
    assert len(lost) <= 4, lost
    assert all(entry.startswith("alpaca ") for entry in lost), lost
    print(f"\n{sum(load.answered.values())} requests; lost with the killed pod: {len(lost)}: {lost}")
