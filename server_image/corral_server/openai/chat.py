"""`/v1/chat/completions`."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from corral_server.channel import Message
from corral_server.engine_client import EngineError
from corral_server.openai import fields
from corral_server.openai.answers import DONE, EventStream, Head, Usage, engine_error_event, json_response, sse, timings, unless_gone
from corral_server.openai.generation import Finished, Generation, first_of
from corral_server.openai.logprobs import chat_logprobs
from corral_server.openai.messages import parse_messages
from corral_server.openai.sampling import sampling_of
from corral_server.openai.service import Service

FINGERPRINT = "corral"


async def chat_completions(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    messages = parse_messages(body)
    count = fields.whole(body, "n", 1, 128, 1) or 1
    top = fields.whole(body, "top_logprobs", 0, 20, 0) or 0
    wants_logprobs = fields.flag(body, "logprobs")
    limit = fields.whole(body, "max_completion_tokens", -1, 1 << 31)
    if limit is None:
        limit = fields.whole(body, "max_tokens", -1, 1 << 31)
    streaming, usage_chunk = fields.flag(body, "stream"), fields.stream_usage(body)
    sampling = sampling_of(body, service.defaults)
    if wants_logprobs:
        sampling["n_probs"] = max(top, 1)
    stop = fields.stops(body) + service.template_stops
    engine = service.generator(count)
    extra = fields.mapping(body, "chat_template_kwargs")
    prompt = await unless_gone(request, service.render(messages, body.get("tools") or None, extra))
    constraint = await unless_gone(request, service.constraint(body))
    job = {
        **constraint,
        "prompt": prompt,
        "max_tokens": limit,
        "sampling": sampling,
        "stop": stop,
        "cache_prompt": fields.flag(body, "cache_prompt", default=True),
    }
    jobs = [job] + [{**job, "sampling": _reseeded(sampling, i)} for i in range(1, count)]
    head = Head.make("chatcmpl", service.served_name(request, body))
    generation = Generation(engine, jobs)
    if not streaming:
        finished = await unless_gone(request, generation.collect())
        return json_response(_whole(head, finished, top if wants_logprobs else None))
    events = generation.events()
    try:
        first = await unless_gone(request, first_of(events))
    except BaseException:
        generation.close()
        raise
    return EventStream(_chunks(head, generation, events, first, usage_chunk=usage_chunk, top=top if wants_logprobs else None))


def _reseeded(sampling: dict[str, Any], index: int) -> dict[str, Any]:
    return {**sampling, "seed": sampling["seed"] + index} if "seed" in sampling else sampling


def _whole(head: Head, finished: list[Finished], top: int | None) -> dict[str, Any]:
    usage = Usage()
    choices = []
    for index, answer in enumerate(finished):
        usage.add(answer.usage, first=index == 0)
        choices.append(
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []},
                "logprobs": chat_logprobs(answer.logprobs, top) if top is not None else None,
                "finish_reason": answer.reason,
            }
        )
    return {
        "id": head.id, "object": "chat.completion", "created": head.created, "model": head.model, "system_fingerprint": FINGERPRINT,
        "choices": choices, "usage": usage.shape(), "timings": timings(finished[0].usage),
    }  # fmt: skip


async def _chunks(
    head: Head, generation: Generation, events: AsyncIterator[list[tuple[int, Message]]], first: list[tuple[int, Message]], *, usage_chunk: bool,
    top: int | None,
) -> AsyncIterator[bytes]:  # fmt: skip
    base = {"id": head.id, "object": "chat.completion.chunk", "created": head.created, "model": head.model, "system_fingerprint": FINGERPRINT}
    tail = {"usage": None} if usage_chunk else {}
    # The hot path splices the text between two constant pieces instead of encoding the whole document per token.
    prefix = b"data: " + orjson.dumps(base)[:-1] + b',"choices":[{"index":'
    suffix = b'},"logprobs":null,"finish_reason":null}]' + (b',"usage":null' if usage_chunk else b"") + b"}\n\n"
    usage = Usage()
    last: dict[str, Any] = {}

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None, **more: Any) -> bytes:
        return sse({**base, "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}], **tail, **more})

    def render(batch: list[tuple[int, Message]]) -> bytes:
        out = b""
        for index, event in batch:
            if "start" in event:
                continue
            text = event.get("d", "")
            if top is not None and "lp" in event:
                out += chunk(index, {"content": text}, logprobs=chat_logprobs([event["lp"]], top))
            elif text:
                out += prefix + b"%d" % index + b',"delta":{"content":' + orjson.dumps(text) + suffix
            if "f" in event:
                usage.add(event["u"], first=index == 0)
                last.update(event["u"])
                out += chunk(index, {}, event["f"], **({} if usage_chunk else {"timings": timings(event["u"])}))
        return out

    try:
        yield b"".join(chunk(i, {"role": "assistant", "content": "", "refusal": None}) for i in range(len(generation.streams))) + render(first)
        async for batch in events:
            if block := render(batch):
                yield block
        if usage_chunk:
            yield sse({**base, "choices": [], "usage": usage.shape(), "timings": timings(last)})
        yield DONE
    except EngineError as error:
        yield engine_error_event(error)
    finally:
        generation.close()
