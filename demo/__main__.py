"""`make demo` and `make up`: three models, room for two, asked in an order that makes them give way to each other."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import openai
from rich.console import Console

from corral.api.types import format_rounded, parse_quantity
from corral.local.client import LocalClient, NotRunningError
from demo.instance import Instance, InstanceError
from demo.prepare import WORK, manifests, model_files
from demo.timeline import Answer, Timeline, needs_of

SENTENCES = ("A cat sleeps on the sofa.", "A kitten naps on the couch.", "The stock market fell today.")
TOUR = (
    ("smollm2", "Write one sentence about the sea."),
    ("gemma", "The three most visited cities of Italy are"),
    ("smollm2", "What do bees make?"),
    ("minilm", "Which of these two is closer to 'A cat sleeps on the sofa.'?"),
    ("gemma", "Once upon a time there was a horse that"),
)
"""smollm2 and gemma fit together; smollm2 is used again, so gemma is the one to give way to minilm; then gemma comes back in smollm2's place."""
EVICTIONS = 2


class Events:
    """Follows the operator's events in a thread."""

    def __init__(self, client: LocalClient) -> None:
        self._client = client
        self._found: list[dict[str, Any]] = []
        self._taken = 0
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        after = 0
        while True:
            try:
                fresh = self._client.events(after, wait=5)
            except NotRunningError:
                return
            if fresh:
                after = fresh[-1]["number"]
                self._found.extend(fresh)

    def take(self, *, until: str = "") -> list[dict[str, Any]]:
        """What is new; waits a moment for an event of this reason."""
        limit = time.monotonic() + 3
        while until and time.monotonic() < limit and not any(event["reason"] == until for event in self._found[self._taken :]):
            time.sleep(0.02)
        time.sleep(0.1)
        fresh = self._found[self._taken :]
        self._taken += len(fresh)
        return fresh


def ask(client: openai.OpenAI, model: str, question: str) -> Answer:
    """Ask as anybody would, with the official client; text is streamed."""
    asked = time.time()
    if model == "minilm":
        raw = client.embeddings.with_raw_response.create(model=model, input=list(SENTENCES), encoding_format="float")
        vectors = [item.embedding for item in raw.parse().data]
        near, far = (_cosine(vectors[0], vector) for vector in vectors[1:])
        text = f"'{SENTENCES[1]}' {near:.2f}, '{SENTENCES[2]}' {far:.2f} (cosine of {len(vectors[0])} dimensions)"
        done = time.time()
        return Answer(model, question, text, asked, done, done, _held(raw.headers), 1)
    pieces: list[str] = []
    first = 0.0
    if model == "gemma":  # a base model: it goes on with a text
        completion = client.completions.with_streaming_response.create(model=model, prompt=question, max_tokens=24, temperature=0, stream=True)
    else:
        completion = client.chat.completions.with_streaming_response.create(  # type: ignore[assignment]
            model=model, messages=[{"role": "user", "content": question}], max_tokens=48, temperature=0, stream=True
        )
    with completion as answer:
        for chunk in answer.parse():
            choice = chunk.choices[0] if chunk.choices else None
            piece = getattr(choice, "text", None) or getattr(getattr(choice, "delta", None), "content", None) or ""
            if piece:
                first = first or time.time()
                pieces.append(piece)
        held = _held(answer.headers)
    return Answer(model, question, "".join(pieces), asked, first or time.time(), time.time(), held, len(pieces))


def _held(headers: Any) -> int | None:
    """How long the gateway held the request for a model that was not resident; None: it was."""
    value = headers.get("x-corral-waited-ms")
    return int(value) if value else None


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True)) / (math.hypot(*left) * math.hypot(*right))


def _budget(state: Any) -> tuple[int, int]:
    spec = state["pools"][0]["spec"]
    return parse_quantity(spec["devices"]["hostMemory"]["capacity"]), parse_quantity(spec["memoryMargin"])


def _resident(state: Any, needs: dict[str, int]) -> dict[str, int]:
    return {model["metadata"]["name"]: needs[model["metadata"]["name"]] for model in state["models"] if model["status"].get("loadedReplicas")}


def _evictions(state: Any) -> int:
    return sum(model["status"].get("evictions", 0) for model in state["models"])


def tour(client: LocalClient, timeline: Timeline, models: list[dict[str, Any]]) -> list[str]:
    """Ask everybody; what went otherwise than it should."""
    needs, (capacity, margin) = needs_of(models), _budget(client.state())
    timeline.heading("Three models, and a budget that has room for any two of them")
    timeline.budget(needs, capacity, margin)
    worst = max(sum(pair) for pair in itertools.combinations(needs.values(), 2))
    if not worst <= capacity - margin < sum(needs.values()):
        return [f"the budget of {format_rounded(capacity - margin)} has to hold any two of the models ({format_rounded(worst)}) and not all three"]
    timeline.heading("What happens when each of them is asked")
    events, answers, problems = Events(client), [], []
    events.take()
    openai_client = openai.OpenAI(base_url=f"{client.endpoint}/v1", api_key="unused", max_retries=0)
    timeline.began = time.time()
    for model, question in TOUR:
        timeline.question(time.time(), model, question)
        answer = ask(openai_client, model, question)
        for event in events.take(until="Loaded" if answer.held_ms is not None else ""):
            timeline.event(event)
        timeline.answer(answer)
        timeline.memory(_resident(client.state(), needs), capacity, margin)
        answers.append(answer)
        if not answer.text.strip():
            problems.append(f"{model} answered nothing")
    evictions = _evictions(client.state())
    if evictions != EVICTIONS:
        problems.append(f"there were {evictions} evictions; {EVICTIONS} were to be expected")
    timeline.summary(answers, evictions)
    return problems


def demo(console: Console) -> int:
    sources = model_files(lambda label: console.print(f"model file: {label}"))
    folder = manifests(sources)
    run_dir = WORK / "state"
    run_dir.mkdir(parents=True, exist_ok=True)
    log = run_dir / "up.log"
    timeline = Timeline(console, ("smollm2", "gemma", "minilm"))
    with log.open("wb") as output:
        instance = Instance(folder, run_dir, output)
        try:
            client = instance.connect()
            timeline.say(
                f"corral up -f {os.path.relpath(folder)} serves {client.endpoint}/v1; it reads each file's header to learn what the model needs"
            )
            problems = tour(client, timeline, instance.wait_ready(client))
            instance.look()
        except (InstanceError, NotRunningError, openai.OpenAIError) as error:
            problems = [f"{error}; see {os.path.relpath(log)} and {os.path.relpath(run_dir / 'logs')}"]
        finally:
            left = instance.stop()
    problems += [f"a process is left: {process}" for process in left]
    for problem in problems:
        console.print(f"[bold red]failed:[/] {problem}")
    if not problems:
        console.print("corral up was stopped; no process is left. `make up` starts it again and keeps it running.")
    return 1 if problems else 0


def up(console: Console, port: int) -> None:
    """Replace this process by `corral up` over the same folder, kept as the user edited it."""
    folder = manifests(model_files(lambda label: console.print(f"model file: {label}")), keep=True)
    console.print(f"manifests: {os.path.relpath(folder)} (edit them while it runs)")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "corral.cli", "up", "-f", str(folder), "--port", str(port), "--run-dir", str(WORK / "state")])  # noqa: S606


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--keep-running", action="store_true", help="no tour: serve until Ctrl-C")
    parser.add_argument("--port", type=int, default=8080, help="port of the endpoint with --keep-running")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    if arguments.keep_running:
        up(console, arguments.port)
    return demo(console)


if __name__ == "__main__":
    sys.exit(main())
