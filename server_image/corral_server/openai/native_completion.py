"""`/completion` and `/infill`: llama.cpp's own fields and answers."""

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from corral_server.channel import Message
from corral_server.engine_client import EngineError
from corral_server.openai import fields
from corral_server.openai.answers import EventStream, Usage, counted_response, engine_error_event, sse, timings, unless_gone
from corral_server.openai.errors import invalid
from corral_server.openai.generation import Begun, Finished, Generation, begin
from corral_server.openai.infilling import infill_prompt
from corral_server.openai.sampling import sampling_of
from corral_server.openai.service import Service


async def completion(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    prompt = body.get("prompt")
    mixed = (
        isinstance(prompt, list)
        and prompt
        and all(isinstance(p, str) or (isinstance(p, int) and not isinstance(p, bool) and 0 <= p < 1 << 31) for p in prompt)
    )
    if not isinstance(prompt, str) and not mixed:
        raise invalid("prompt", f"prompt is {fields.shown(prompt)}; it has to be a string, or a list of strings and token numbers")
    return await _answer(service, request, body, prompt, "prompt")


async def infill(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    before, after = fields.text(body, "input_prefix", ""), fields.text(body, "input_suffix", "")
    prompt = infill_prompt(before or "", after or "", service.fim, param="input_prefix", extra=body.get("input_extra"))
    started = fields.text(body, "prompt", "")
    return await _answer(service, request, body, [*prompt, started] if started else prompt, "input_prefix")


async def _answer(service: Service, request: Request, body: dict[str, Any], prompt: Any, param: str) -> Response:
    limit = fields.whole(body, "n_predict", -1, 1 << 31)
    if limit is None:
        limit = fields.whole(body, "max_tokens", -1, 1 << 31)
    sampling = sampling_of(body, service.defaults)
    top = fields.whole(body, "n_probs", 0, 20, 0) or 0
    if top:
        sampling["n_probs"] = top
    streaming = fields.flag(body, "stream")
    service.refuse_adapters(request, body)
    engine = service.generator()
    job = {
        **await unless_gone(request, service.constraint(body)),
        "prompt": prompt,
        "prompt_param": param,
        "max_tokens": limit,
        "sampling": sampling,
        "stop": fields.stops(body),
        "cache_prompt": fields.flag(body, "cache_prompt", default=True),
    }
    generation = Generation(engine, [job])
    name = service.served_name(request, body)
    usage = Usage()
    if not streaming:
        (finished,) = await unless_gone(request, generation.collect())
        usage.add(finished.usage, first=True)
        shape = {**_final(finished, name), "content": finished.text, "generation_settings": sampling}
        if top:
            shape["completion_probabilities"] = [_probability(entry, top) for entry in finished.logprobs]
        return counted_response(request, shape, usage)
    return EventStream(_blocks(generation, await begin(request, generation), name, usage, top), request, usage)


def _probability(entry: list[Any], top: int) -> dict[str, Any]:
    chosen, others = entry
    return {**_one(chosen), "top_logprobs": [_one(o) for o in others[:top]]}


def _one(entry: list[Any]) -> dict[str, Any]:
    return {"id": entry[0], "token": bytes(entry[1]).decode("utf-8", "replace"), "bytes": entry[1], "logprob": entry[2]}


def _final(finished: Finished, name: str) -> dict[str, Any]:
    kinds = {"length": "limit", "stop": "word" if finished.stopped_by else "eos"}
    return {
        "index": 0, "content": "", "id_slot": 0, "stop": True, "model": name, "tokens": [],
        "tokens_predicted": finished.usage["completion"], "tokens_evaluated": finished.usage["prompt"], "tokens_cached": finished.usage["cached"],
        "has_new_line": "\n" in finished.text, "truncated": False, "stop_type": kinds.get(finished.reason, "none"),
        "stopping_word": finished.stopped_by or "", "timings": timings(finished.usage),
    }  # fmt: skip


async def _blocks(generation: Generation, begun: Begun, name: str, usage: Usage, top: int) -> AsyncIterator[bytes]:
    finished = Finished()

    def render(batch: list[tuple[int, Message]]) -> bytes:
        out = b""
        for _, event in batch:
            text = event.get("d", "")
            if text or "lp" in event:
                finished.text += text
                more = {"completion_probabilities": [_probability(event["lp"], top)]} if "lp" in event else {}
                out += sse({"index": 0, "content": text, "stop": False, "id_slot": 0, "tokens": [], **more})
            if "f" in event:
                finished.reason, finished.usage, finished.stopped_by = event["f"], event["u"], event.get("stop")
                usage.add(event["u"], first=True)
                out += sse(_final(finished, name))
        return out

    try:
        async for batch in begun.batches():
            if block := render(batch):
                yield block
    except EngineError as error:
        yield engine_error_event(error)
    finally:
        generation.close()
