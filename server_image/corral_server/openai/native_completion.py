"""`/completion` and `/infill`: llama.cpp's own fields and answers."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from corral_server.channel import Message
from corral_server.decoding import Decoded
from corral_server.engine_client import EngineError
from corral_server.openai import fields
from corral_server.openai.answers import EventStream, Usage, counted_response, engine_error_event, unless_gone
from corral_server.openai.errors import invalid
from corral_server.openai.generation import Begun, Generation, begin
from corral_server.openai.infilling import infill_prompt
from corral_server.openai.media import PLAIN_MARK, MediaParts
from corral_server.openai.native_answer import Answer, Asked
from corral_server.openai.native_fields import native_fields
from corral_server.openai.native_settings import settings
from corral_server.openai.sampling import reseeded, sampling_of
from corral_server.openai.service import Service

_MAX_PROMPTS = 2048
_MAX_PROBABILITIES = 1024


async def completion(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    media = MediaParts(service.able)
    prompts, several = parse_prompts(body.get("prompt"), media)
    return await _answer(service, request, body, prompts, "prompt", several=several, media=media)


async def infill(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    before, after = fields.text(body, "input_prefix", ""), fields.text(body, "input_suffix", "")
    # What the middle begins with already stands where the prefix ends.
    started = fields.text(body, "prompt", "")
    prompt = infill_prompt(f"{before}{started}", after or "", service.fim, param="input_prefix", extra=body.get("input_extra"))
    return await _answer(service, request, body, [prompt], "input_prefix", several=False)


def parse_prompts(raw: Any, media: MediaParts | None = None) -> tuple[list[Any], bool]:
    """The prompts of a request, and whether a list of answers is expected: a text, token numbers, both mixed, an object, or a list of those."""
    if isinstance(raw, list) and raw and len(raw) <= _MAX_PROMPTS and not all(_is_piece(p) for p in raw):
        return [_one_prompt(p, media, f"prompt[{index}]") for index, p in enumerate(raw)], True
    if isinstance(raw, list) and len(raw) > 1 and all(isinstance(p, str) for p in raw):
        return list(raw), True
    return [_one_prompt(raw, media, "prompt")], False


def _is_piece(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31)


@dataclass(frozen=True)
class _Shown:
    """A prompt with marks, and which of the request's files belong to it."""

    text: str
    start: int
    end: int


def _one_prompt(raw: Any, media: MediaParts | None, where: str) -> Any:
    if isinstance(raw, dict):
        files = raw.get("multimodal_data")
        raw = raw.get("prompt_string")
        if files:
            return _shown(raw, files, media or MediaParts({}), where)
    if isinstance(raw, str) or (isinstance(raw, list) and raw and all(_is_piece(p) for p in raw)):
        return raw
    raise invalid(
        "prompt", f"prompt is {fields.shown(raw)}; it has to be a string, a list of strings and token numbers, or an object with prompt_string"
    )


def _shown(text: Any, files: Any, media: MediaParts, where: str) -> _Shown:
    if not isinstance(text, str) or not isinstance(files, list):
        raise invalid("prompt", f"{where} has to hold prompt_string, a string, and multimodal_data, a list")
    start = len(media.items)
    for index, data in enumerate(files):
        media.any(data, f"{where}.multimodal_data[{index}]")
    if media.mark not in text:
        text = text.replace(PLAIN_MARK, media.mark)
    if text.count(media.mark) != len(files):
        raise invalid("prompt", f"{where} has {text.count(media.mark)} places marked {PLAIN_MARK} for {len(files)} images or pieces of audio")
    return _Shown(text, start, len(media.items))


async def _answer(
    service: Service, request: Request, body: dict[str, Any], prompts: list[Any], param: str, *, several: bool, media: MediaParts | None = None
) -> Response:
    defaults = service.defaults(service.preset(request, body))
    limits = [fields.whole(body, name, -1, 1 << 31) for name in ("n_predict", "max_completion_tokens", "max_tokens")]
    limit = next((found for found in limits if found is not None), defaults.get("max_tokens"))
    sampling = sampling_of(body, defaults, vocabulary=service.vocabulary, texts=True)
    top = fields.whole(body, "n_probs", 0, _MAX_PROBABILITIES) or fields.whole(body, "logprobs", 0, _MAX_PROBABILITIES) or 0
    if top:
        sampling["n_probs"] = top
    if fields.flag(body, "post_sampling_probs") and top:
        sampling["post_sampling"] = True
    own = native_fields(body)
    streaming, stop = fields.flag(body, "stream"), fields.stops(body)
    count = fields.whole(body, "n_cmpl", 1, 128) or fields.whole(body, "n", 1, 128) or 1
    adapters = service.adapters(request, body)
    service.generator(len(prompts) * count)
    constraint = await unless_gone(request, service.constraint(body))
    asked = Asked(
        name=service.served_name(request, body), top=top, after_filters=bool(sampling.get("post_sampling")),
        tokens=fields.flag(body, "return_tokens") or streaming, progress=own.progress,
        timings=own.timings, only=_names(body),
        settings=settings(
            sampling, limit=limit, stop=stop, stream=streaming, grammar=constraint.get("grammar", ""),
            adapters=adapters.get("adapters") or (), timings=own.timings, drafts=service.model.get("drafts", ""),
        ),
    )  # fmt: skip
    job = {
        **constraint, **adapters, "prompt_param": param, "max_tokens": limit, "stop": stop,
        "cache_prompt": fields.flag(body, "cache_prompt", default=True),
        **own.job, "tells_tokens": True, "tells_prompt": True, **_lazy(body, constraint),
    }  # fmt: skip
    decoded = await service.decoded(request, media.items) if media is not None else None
    asks = [_asking(p, decoded) for p in prompts]
    jobs = [{**job, **ask, "sampling": reseeded(sampling, i)} for ask in asks for i in range(count)]
    # Asked again: others may have come meanwhile, or another engine.
    generation = Generation(service.generator(len(jobs)), jobs)
    usage = Usage()
    if streaming:
        return EventStream(_blocks(generation, await begin(request, generation), asked, usage, count), request, usage)
    answers = [Answer(asked, index) for index in range(len(jobs))]
    await unless_gone(request, _collect(generation, answers))
    for index, answer in enumerate(answers):
        usage.add(answer.usage, first=index % count == 0)
    shapes = [answer.whole() for answer in answers]
    return counted_response(request, shapes if several or count > 1 else shapes[0], usage)


def _asking(prompt: Any, decoded: Decoded | None) -> dict[str, Any]:
    if isinstance(prompt, _Shown) and decoded is not None:
        return {"prompt": prompt.text, "media": decoded.some(prompt.start, prompt.end)}
    return {"prompt": prompt}


def _lazy(body: dict[str, Any], constraint: dict[str, Any]) -> dict[str, Any]:
    """A grammar that holds only after one of some words, each of them one token of the model."""
    preserved = fields.texts(body, "preserved_tokens")
    if not fields.flag(body, "grammar_lazy") or "grammar" not in constraint:
        return {"preserved": preserved}
    raw = body.get("grammar_triggers")
    words = [t.get("value") for t in raw if isinstance(t, dict)] if isinstance(raw, list) else []
    if not words or not all(isinstance(w, str) and w for w in words):
        raise invalid("grammar_triggers", f"grammar_triggers is {fields.shown(raw)}; it has to be a list of objects with a value")
    return {"preserved": preserved, "triggers": words}


def _names(body: dict[str, Any]) -> list[str]:
    raw = body.get("response_fields")
    if raw is None:
        return []
    if not isinstance(raw, list) or not all(isinstance(n, str) for n in raw):
        raise invalid("response_fields", f"response_fields is {fields.shown(raw)}; it has to be a list of names")
    return raw


async def _collect(generation: Generation, answers: list[Answer]) -> None:
    try:
        async for batch in generation.events():
            for index, event in batch:
                answers[index].take(event)
    finally:
        generation.close()


async def _blocks(generation: Generation, begun: Begun, asked: Asked, usage: Usage, count: int) -> AsyncIterator[bytes]:
    answers = [Answer(asked, index) for index in range(generation.count)]

    def render(index: int, event: Message) -> bytes:
        answer = answers[index]
        answer.take(event)
        block = answer.part(event)
        if "f" in event:
            usage.add(event["u"], first=index % count == 0)
            block += answer.last()
        return block

    try:
        async for batch in begun.batches():
            if block := b"".join(render(index, event) for index, event in batch):
                yield block
    except EngineError as error:
        yield engine_error_event(error)
    finally:
        generation.close()
