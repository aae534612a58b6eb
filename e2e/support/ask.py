"""The official client, as a user holds it: one question, or a stream that a test watches from outside."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import openai
from e2e.support.world import World


def client(world: World, *, base: str = "", **options: Any) -> openai.OpenAI:
    headers = {} if base else {"Host": world.host}
    return openai.OpenAI(
        base_url=f"{base or world.gateway}/v1", api_key="none", timeout=options.pop("timeout", 180), default_headers=headers, **options
    )


def ask(world: World, model: str, text: str = "Who are you?", *, base: str = "", **options: Any) -> str:
    # Closed here: a connection that is left to the garbage collector is a warning, and so an error, of whatever test runs by then.
    with client(world, base=base, max_retries=options.pop("max_retries", 0)) as asking:
        answer = asking.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=options.pop("max_tokens", 16), **options
        )
    return (answer.choices[0].message.content or "").strip()


@dataclass
class Watched:
    """A stream in a thread of its own."""

    pieces: int = 0
    text: str = ""
    ended: bool = False
    error: Exception | None = None
    replica: str = ""
    thread: threading.Thread | None = None

    def join(self, timeout: float) -> None:
        assert self.thread is not None
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "the stream did not end"


def stream(world: World, model: str, stop: threading.Event, *, base: str = "", max_tokens: int = 64) -> Watched:
    """Stream until the model ends or `stop` is set (then the connection is closed, as an impatient user would)."""
    watched = Watched()

    def run() -> None:
        try:
            with (
                client(world, base=base, max_retries=0) as asking,
                asking.chat.completions.with_streaming_response.create(
                    model=model, messages=[{"role": "user", "content": "Go on."}], stream=True, max_tokens=max_tokens, temperature=0
                ) as response,
            ):
                watched.replica = response.headers.get("x-corral-replica", "")
                for chunk in response.parse():
                    if chunk.choices and chunk.choices[0].delta.content:
                        watched.pieces += 1
                        watched.text += chunk.choices[0].delta.content
                    if stop.is_set():
                        break
        except Exception as error:
            watched.error = error
        finally:
            watched.ended = True

    watched.thread = threading.Thread(target=run, daemon=True)
    watched.thread.start()
    return watched
