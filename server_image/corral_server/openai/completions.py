"""`/v1/completions`."""

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from corral_server.channel import Message
from corral_server.engine_client import EngineError
from corral_server.openai import fields
from corral_server.openai.answers import DONE, EventStream, Head, Usage, engine_error_event, json_response, sse, timings, unless_gone
from corral_server.openai.chat import FINGERPRINT
from corral_server.openai.errors import invalid
from corral_server.openai.generation import Generation, first_of
from corral_server.openai.logprobs import completion_logprobs
from corral_server.openai.sampling import sampling_of
from corral_server.openai.service import Service

_MAX_PROMPTS = 2048


def parse_prompts(body: dict[str, Any]) -> list[Any]:
    """The prompts of a request: a string, strings, token numbers, or lists of those."""
    raw = body.get("prompt")
    if isinstance(raw, str):
        return [raw]
    if isinstance(raw, list) and raw and len(raw) <= _MAX_PROMPTS:
        if all(isinstance(p, str) for p in raw):
            return list(raw)
        if all(_is_token(t) for t in raw):
            return [raw]
        if all(isinstance(p, list) and p and all(_is_token(t) for t in p) for p in raw):
            return list(raw)
    raise invalid("prompt", f"prompt is {fields.shown(raw)}; it has to be a string, a list of strings, or token numbers")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


async def completions(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    prompts = parse_prompts(body)
    count = fields.whole(body, "n", 1, 128, 1) or 1
    top = fields.whole(body, "logprobs", 0, 20)
    limit = fields.whole(body, "max_tokens", -1, 1 << 31, 16)
    streaming, usage_chunk = fields.flag(body, "stream"), fields.stream_usage(body)
    sampling = sampling_of(body, service.defaults)
    if top is not None:
        sampling["n_probs"] = max(top, 1)
    stop = fields.stops(body)
    engine = service.generator(len(prompts) * count)
    constraint = await unless_gone(request, service.constraint(body))
    jobs = [
        {
            **constraint,
            "prompt": p, "prompt_param": "prompt", "max_tokens": limit, "stop": stop, "cache_prompt": fields.flag(body, "cache_prompt", default=True),
            "sampling": {**sampling, "seed": sampling["seed"] + i} if "seed" in sampling and i else sampling,
        }
        for p in prompts
        for i in range(count)
    ]  # fmt: skip
    head = Head.make("cmpl", service.served_name(request, body))
    generation = Generation(engine, jobs)
    if streaming:
        events = generation.events()
        try:
            first = await unless_gone(request, first_of(events))
        except BaseException:
            generation.close()
            raise
        return EventStream(_chunks(head, generation, events, first, usage_chunk=usage_chunk, top=top, per_prompt=count))
    finished = await unless_gone(request, generation.collect())
    usage = Usage()
    choices = []
    for index, answer in enumerate(finished):
        usage.add(answer.usage, first=index % count == 0)
        logprobs = completion_logprobs(answer.logprobs, top) if top is not None else None
        choices.append({"index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": answer.reason})
    return json_response(
        {
            "id": head.id, "object": "text_completion", "created": head.created, "model": head.model, "system_fingerprint": FINGERPRINT,
            "choices": choices, "usage": usage.shape(), "timings": timings(finished[0].usage),
        }
    )  # fmt: skip


async def _chunks(
    head: Head, generation: Generation, events: AsyncIterator[list[tuple[int, Message]]], first: list[tuple[int, Message]], *, usage_chunk: bool,
    top: int | None, per_prompt: int,
) -> AsyncIterator[bytes]:  # fmt: skip
    base = {"id": head.id, "object": "text_completion", "created": head.created, "model": head.model, "system_fingerprint": FINGERPRINT}
    tail = {"usage": None} if usage_chunk else {}
    usage = Usage()
    offsets: dict[int, int] = {}

    def render(batch: list[tuple[int, Message]]) -> bytes:
        out = b""
        for index, event in batch:
            text, reason = event.get("d", ""), event.get("f")
            if "start" in event or not (text or reason or "lp" in event):
                continue
            logprobs = None
            if top is not None and "lp" in event:
                logprobs = completion_logprobs([event["lp"]], top, offsets.get(index, 0))
                offsets[index] = offsets.get(index, 0) + len(logprobs["tokens"][0])
            if reason:
                usage.add(event["u"], first=index % per_prompt == 0)
            out += sse({**base, "choices": [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}], **tail})
        return out

    try:
        if block := render(first):
            yield block
        async for batch in events:
            if block := render(batch):
                yield block
        if usage_chunk:
            yield sse({**base, "choices": [], "usage": usage.shape()})
        yield DONE
    except EngineError as error:
        yield engine_error_event(error)
    finally:
        generation.close()
