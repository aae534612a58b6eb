"""What all answers share: ids, usage, timings, and sending events as they come."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from corral_server.engine_client import EngineError
from corral_server.openai.errors import error_body

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
USAGE_HEADER = "x-corral-usage"


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Head:
    """The fields that every part of one answer repeats."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def make(cls, prefix: str, model: str) -> "Head":
        """`prefix` with what separates it: OpenAI's kinds of ids differ in that."""
        return cls(f"{prefix}{uuid.uuid4().hex}", model)


@dataclass
class Usage:
    """Exact counts over the choices of one answer; the prompt counts once."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def add(self, usage: dict[str, Any], *, first: bool, reasoning: int = 0) -> None:
        if first:
            self.prompt += usage["prompt"]
            self.cached += usage.get("cached", 0)
        completion = usage.get("completion", 0)
        self.completion += completion
        self.reasoning += min(reasoning, completion)

    def shape(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
            },
        }  # fmt: skip


def timings(usage: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp's own figures of one answer."""
    evaluated = usage["prompt"] - usage["cached"]
    predicted = usage["completion"]
    # The first token comes from the prompt's own evaluation: only the others took a step each.
    steps = max(predicted - 1, 0)
    drafts = {"draft_n": usage["draft"], "draft_n_accepted": usage["accepted"]} if "draft" in usage else {}
    prompt_ms, predicted_ms = usage["prompt_ms"], usage["predicted_ms"]
    return {
        "cache_n": usage["cached"],
        "prompt_n": evaluated,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / max(evaluated, 1),
        "prompt_per_second": evaluated / prompt_ms * 1e3 if prompt_ms else 0.0,
        "predicted_n": predicted,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / steps if steps else 0.0,
        "predicted_per_second": steps / predicted_ms * 1e3 if predicted_ms else 0.0,
        **drafts,
    }


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def sse(body: Any) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def engine_error_event(error: EngineError) -> bytes:
    return sse(error_body(error.status, error.code, str(error), error.param, error.details))


def counted_response(request: Request, body: Any, usage: Usage) -> Response:
    """An answer, with its counts in a header when the gateway asked for them."""
    return json_response(body, 200, {USAGE_HEADER: f"{usage.prompt},{usage.completion}"} if wants_usage(request) else None)


def wants_usage(request: Request) -> bool:
    return request.headers.get(USAGE_HEADER) == "1"


def quiet_seconds(request: Request) -> float | None:
    """How long a stream may say nothing; None: for ever, the client wants no comments."""
    return None if request.headers.get("x-corral-hold", "").lower() == "silent" else float(request.app.state.quiet_seconds)


class EventStream(Response):
    """Server-sent events from an iterator of byte blocks; ends the iterator when the client is gone.

    With `usage`, which the iterator fills, a gateway that asked for the counts gets them in a last comment. While there is nothing to say, as
    during a long prompt, comments keep the connection alive, unless the client wants none (`x-corral-hold: silent`).
    """

    def __init__(self, blocks: AsyncIterator[bytes], request: Request, usage: Usage | None = None) -> None:
        super().__init__(media_type="text/event-stream; charset=utf-8", headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._blocks = blocks
        self._usage = usage if wants_usage(request) else None
        self._quiet = quiet_seconds(request)
        self._blocks_sent = 0
        self._over = False

    def init_headers(self, headers: Any = None) -> None:
        super().init_headers(headers)
        self.raw_headers = [(k, v) for k, v in self.raw_headers if k != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  the signature is ASGI's
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        producer = asyncio.create_task(self._produce(send))
        watcher = asyncio.create_task(_disconnected(receive))
        alive = asyncio.create_task(self._keep_alive(send))
        try:
            await asyncio.wait({producer, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (producer, watcher, alive):
                if not task.done():
                    task.cancel()
            results = await asyncio.gather(producer, watcher, alive, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _produce(self, send: Send) -> None:
        try:
            async for block in self._blocks:
                self._blocks_sent += 1
                await send({"type": "http.response.body", "body": block, "more_body": True})
            self._over = True
            last = (
                b": corral-usage %d,%d\n\n" % (self._usage.prompt, self._usage.completion) if self._usage is not None and self._usage.prompt else b""
            )
            await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            close = getattr(self._blocks, "aclose", None)
            if close is not None:
                await close()

    async def _keep_alive(self, send: Send) -> None:
        while self._quiet is not None and not self._over:
            before = self._blocks_sent
            await asyncio.sleep(self._quiet)
            if self._blocks_sent == before and not self._over:
                await send({"type": "http.response.body", "body": b": still working\n\n", "more_body": True})


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of the work, or ClientGoneError as soon as the client hangs up."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for each in (task, watcher):
            if not each.done():
                each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
