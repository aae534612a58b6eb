"""`/v1/completions`."""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from corral_server.channel import Message
from corral_server.engine_client import EngineError
from corral_server.openai import fields
from corral_server.openai.answers import DONE, EventStream, Head, Usage, counted_response, engine_error_event, sse, timings, unless_gone
from corral_server.openai.chat import FINGERPRINT
from corral_server.openai.errors import ApiError, invalid
from corral_server.openai.generation import Begun, Finished, Generation, begin
from corral_server.openai.infilling import infill_prompt
from corral_server.openai.logprobs import completion_logprobs
from corral_server.openai.native_answer import verbose
from corral_server.openai.native_fields import NativeFields, native_fields
from corral_server.openai.sampling import OPENAI_HOTTEST, reseeded, sampling_of
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
    best_of = fields.whole(body, "best_of", 1, 128, count) or count
    top = fields.whole(body, "logprobs", 0, 20)
    defaults = service.defaults(service.preset(request, body))
    limit = fields.whole(body, "n_predict", -1, 1 << 31, fields.whole(body, "max_tokens", -1, 1 << 31, defaults.get("max_tokens", 16)))
    fields.text(body, "model")
    fields.text(body, "user")
    echo, suffix = fields.flag(body, "echo"), fields.text(body, "suffix")
    streaming, usage_chunk = fields.flag(body, "stream"), fields.stream_usage(body)
    sampling = sampling_of(body, defaults, hottest=OPENAI_HOTTEST, vocabulary=service.vocabulary)
    if best_of < count:
        raise invalid("best_of", f"best_of is {best_of}; it has to be at least n, which is {count}")
    if best_of > count and streaming:
        raise invalid("best_of", "best_of cannot be streamed: which answers are best is known at the end")
    scores = echo and top is not None
    if scores and suffix:
        raise ApiError(400, "unsupported_parameter", "echo with logprobs is not supported together with suffix", "suffix")
    if top is not None or best_of > count:
        sampling["n_probs"] = max(top or 0, 1)
    stop, own = fields.stops(body), native_fields(body)
    adapters = service.adapters(request, body)
    service.generator(len(prompts) * best_of)
    constraint = await unless_gone(request, service.constraint(body))
    spoken = [await _as_text(service, request, p) if echo else "" for p in prompts]
    # The token that the tokeniser puts before a text is no part of what was said.
    skipped = [int(isinstance(p, str) and bool(service.model.get("addBos"))) for p in prompts]
    if suffix:
        if not all(isinstance(p, str) for p in prompts):
            raise invalid("suffix", "suffix needs prompts that are strings")
        prompts = [infill_prompt(p, suffix, service.fim, param="suffix") for p in prompts]
    jobs = [
        {
            **constraint, **adapters,
            "prompt": p, "prompt_param": "prompt", "max_tokens": limit, "stop": stop, "cache_prompt": fields.flag(body, "cache_prompt", default=True),
            "sampling": reseeded(sampling, i), **own.job,
            **({"prompt_probs": top} if scores and not i else {}),
        }
        for p in prompts
        for i in range(best_of)
    ]  # fmt: skip
    head = Head.make("cmpl-", service.served_name(request, body))
    # Asked again: others may have come meanwhile, or another engine.
    generation = Generation(service.generator(len(jobs)), jobs)
    usage = Usage()
    if streaming:
        begun = await begin(request, generation)
        told = [_Told(text, skip) for text, skip in zip(spoken, skipped, strict=True)]
        blocks = _chunks(head, generation, begun, usage, usage_chunk=usage_chunk, top=top, per_prompt=count, told=told, scores=scores, own=own)
        return EventStream(blocks, request, usage)
    finished = await unless_gone(request, generation.collect())
    choices: list[dict[str, Any]] = []
    for number, (before, skip) in enumerate(zip(spoken, skipped, strict=True)):
        of_prompt = finished[number * best_of : (number + 1) * best_of]
        for index, answer in enumerate(of_prompt):
            usage.add(answer.usage, first=index == 0)
        asked = of_prompt[0].prompt_logprobs[skip:]
        best = sorted(of_prompt, key=_mean_logprob, reverse=True) if best_of > count else of_prompt
        for answer in best[:count]:
            logprobs = completion_logprobs([*asked, *answer.logprobs], top, 0 if asked else len(before)) if top is not None else None
            choices.append({"index": len(choices), "text": before + answer.text, "logprobs": logprobs, "finish_reason": answer.reason})
    shape = {
        "id": head.id, "object": "text_completion", "created": head.created, "model": head.model, "system_fingerprint": FINGERPRINT,
        "choices": choices, "usage": usage.shape(), "timings": timings(finished[0].usage),
    }  # fmt: skip
    if own.verbose:
        shape["__verbose"] = verbose(jobs[0], 0, head.model, finished[0].events)
    return counted_response(request, shape, usage)


async def _as_text(service: Service, request: Request, prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return str((await service.ask(request, "detokenize", {"tokens": prompt}))["text"])


def _mean_logprob(answer: Finished) -> float:
    values = [chosen[2] for chosen, _ in answer.logprobs]
    return sum(values) / len(values) if values else float("-inf")


class _Told(NamedTuple):
    """What a choice begins with when the prompt is repeated: the text, and how many of its tokens are no part of it."""

    text: str
    skip: int


async def _chunks(
    head: Head, generation: Generation, begun: Begun, usage: Usage, *, usage_chunk: bool, top: int | None, per_prompt: int, told: list[_Told],
    scores: bool, own: NativeFields,
) -> AsyncIterator[bytes]:  # fmt: skip
    base = {"id": head.id, "object": "text_completion", "created": head.created, "model": head.model, "system_fingerprint": FINGERPRINT}
    tail = {"usage": None} if usage_chunk else {}
    offsets = {i: len(told[i // per_prompt].text) for i in range(generation.count)}

    def chunk(index: int, text: str, reason: str | None = None, logprobs: Any = None, **more: Any) -> bytes:
        return sse({**base, "choices": [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}], **tail, **more})

    def opened(prompt: int, entries: list[Any]) -> bytes:
        """The prompt, for each of its choices."""
        before = told[prompt]
        logprobs = completion_logprobs(entries[before.skip :], top or 0) if scores else None
        return b"".join(chunk(i, before.text, logprobs=logprobs) for i in range(prompt * per_prompt, (prompt + 1) * per_prompt) if before.text)

    def render(batch: list[tuple[int, Message]]) -> bytes:
        out = b""
        for index, event in batch:
            text, reason = event.get("d", ""), event.get("f")
            if "pl" in event:
                out += opened(index // per_prompt, event["pl"])
            if "pp" in event and own.progress:
                out += chunk(index, "", prompt_progress=event["pp"])
            if not (text or reason or "lp" in event):
                continue
            figures: dict[str, Any] = {"timings": timings(event["u"])} if "u" in event and (reason or own.timings) else {}
            logprobs = None
            if top is not None and "lp" in event:
                logprobs = completion_logprobs([event["lp"]], top, offsets[index])
                offsets[index] += len(logprobs["tokens"][0])
            if reason:
                usage.add(event["u"], first=index % per_prompt == 0)
            out += chunk(index, text, reason, logprobs, **figures)
        return out

    try:
        opening = b"" if scores else b"".join(opened(prompt, []) for prompt in range(len(told)))
        async for batch in begun.batches():
            if block := opening + render(batch):
                yield block
            opening = b""
        if usage_chunk:
            yield sse({**base, "choices": [], "usage": usage.shape()})
        yield DONE
    except EngineError as error:
        yield engine_error_event(error)
    finally:
        generation.close()
