"""`/completion` and `/infill`: llama.cpp's own fields and answers."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from corral_server.channel import Message
from corral_server.engine_client import EngineError
from corral_server.openai import fields
from corral_server.openai.answers import EventStream, Usage, counted_response, engine_error_event, sse, timings, unless_gone
from corral_server.openai.errors import invalid
from corral_server.openai.generation import Begun, Generation, begin
from corral_server.openai.infilling import infill_prompt
from corral_server.openai.native_settings import chosen_fields, settings
from corral_server.openai.sampling import sampling_of
from corral_server.openai.service import Service

_MAX_PROMPTS = 2048
_MAX_PROBABILITIES = 1024


async def completion(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    prompts, several = parse_prompts(body.get("prompt"))
    return await _answer(service, request, body, prompts, "prompt", several=several)


async def infill(service: Service, request: Request) -> Response:
    body = fields.parse_body(await service.body(request))
    before, after = fields.text(body, "input_prefix", ""), fields.text(body, "input_suffix", "")
    # What the middle begins with already stands where the prefix ends.
    started = fields.text(body, "prompt", "")
    prompt = infill_prompt(f"{before}{started}", after or "", service.fim, param="input_prefix", extra=body.get("input_extra"))
    return await _answer(service, request, body, [prompt], "input_prefix", several=False)


def parse_prompts(raw: Any) -> tuple[list[Any], bool]:
    """The prompts of a request, and whether a list of answers is expected: a text, token numbers, both mixed, an object, or a list of those."""
    if isinstance(raw, list) and raw and len(raw) <= _MAX_PROMPTS and not all(_is_piece(p) for p in raw):
        return [_one_prompt(p) for p in raw], True
    if isinstance(raw, list) and len(raw) > 1 and all(isinstance(p, str) for p in raw):
        return list(raw), True
    return [_one_prompt(raw)], False


def _is_piece(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31)


def _one_prompt(raw: Any) -> Any:
    if isinstance(raw, dict):
        if raw.get("multimodal_data"):
            raise invalid("prompt", "prompt holds multimodal_data, but this model takes text only")
        raw = raw.get("prompt_string")
    if isinstance(raw, str) or (isinstance(raw, list) and raw and all(_is_piece(p) for p in raw)):
        return raw
    raise invalid(
        "prompt", f"prompt is {fields.shown(raw)}; it has to be a string, a list of strings and token numbers, or an object with prompt_string"
    )


@dataclass
class _Asked:
    """What a request wants to be told."""

    name: str
    top: int
    after_filters: bool
    tokens: bool
    progress: bool
    timings: bool
    settings: dict[str, Any]
    only: list[str] = field(default_factory=list)


async def _answer(service: Service, request: Request, body: dict[str, Any], prompts: list[Any], param: str, *, several: bool) -> Response:
    limit = fields.whole(body, "n_predict", -1, 1 << 31)
    if limit is None:
        limit = fields.whole(body, "max_tokens", -1, 1 << 31)
    sampling = sampling_of(body, service.defaults, vocabulary=service.vocabulary, texts=True)
    top = fields.whole(body, "n_probs", 0, _MAX_PROBABILITIES) or fields.whole(body, "logprobs", 0, _MAX_PROBABILITIES) or 0
    if top:
        sampling["n_probs"] = top
    if fields.flag(body, "post_sampling_probs") and top:
        sampling["post_sampling"] = True
    streaming, stop = fields.flag(body, "stream"), fields.stops(body)
    count = fields.whole(body, "n_cmpl", 1, 128) or fields.whole(body, "n", 1, 128) or 1
    adapters = service.adapters(request, body)
    engine = service.generator(len(prompts) * count)
    constraint = await unless_gone(request, service.constraint(body))
    asked = _Asked(
        name=service.served_name(request, body), top=top, after_filters=bool(sampling.get("post_sampling")),
        tokens=fields.flag(body, "return_tokens") or streaming, progress=fields.flag(body, "return_progress"),
        timings=fields.flag(body, "timings_per_token"), only=_names(body),
        settings=settings(
            sampling, limit=limit, stop=stop, stream=streaming, grammar=constraint.get("grammar", ""),
            adapters=adapters.get("adapters") or (), timings=fields.flag(body, "timings_per_token"), drafts=bool(service.model.get("drafts")),
        ),
    )  # fmt: skip
    slot = fields.whole(body, "id_slot", -1, 1 << 16, -1)
    job = {
        **constraint, **adapters, "prompt_param": param, "max_tokens": limit, "stop": stop,
        "cache_prompt": fields.flag(body, "cache_prompt", default=True), "slot": slot if slot is not None and slot >= 0 else None,
        "tells_tokens": True, "tells_prompt": True, "tells_progress": asked.progress or asked.timings,
    }  # fmt: skip
    jobs = [{**job, "prompt": p, "sampling": _reseeded(sampling, i)} for p in prompts for i in range(count)]
    generation = Generation(engine, jobs)
    usage = Usage()
    if streaming:
        return EventStream(_blocks(generation, await begin(request, generation), asked, usage, count), request, usage)
    answers = [_Answer(asked, index) for index in range(len(jobs))]
    await unless_gone(request, _collect(generation, answers))
    for index, answer in enumerate(answers):
        usage.add(answer.usage, first=index % count == 0)
    shapes = [answer.whole() for answer in answers]
    return counted_response(request, shapes if several or count > 1 else shapes[0], usage)


def _names(body: dict[str, Any]) -> list[str]:
    raw = body.get("response_fields")
    if raw is None:
        return []
    if not isinstance(raw, list) or not all(isinstance(n, str) for n in raw):
        raise invalid("response_fields", f"response_fields is {fields.shown(raw)}; it has to be a list of names")
    return raw


def _reseeded(sampling: dict[str, Any], index: int) -> dict[str, Any]:
    return {**sampling, "seed": sampling["seed"] + index} if "seed" in sampling and index else sampling


class _Answer:
    """One answer as it comes, in llama.cpp's shape."""

    def __init__(self, asked: _Asked, index: int) -> None:
        self._asked = asked
        self._index = index
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._probabilities: list[dict[str, Any]] = []
        self._end: Message = {}

    @property
    def usage(self) -> dict[str, Any]:
        return dict(self._end["u"])

    def take(self, event: Message) -> None:
        if text := event.get("d"):
            self._text.append(text)
        self._tokens += event.get("t", ())
        if "lp" in event:
            self._probabilities.append(self._probability(event["lp"]))
        if "f" in event:
            self._end = event

    def part(self, event: Message) -> bytes:
        """The piece of a stream that an event is; empty when it has nothing to tell."""
        base = {"index": self._index, "content": "", "tokens": [], "stop": False, "id_slot": -1}
        if "pp" in event and self._asked.progress:
            share = event["pp"]
            figures = {"prompt": share["processed"], "cached": share["cache"], "completion": 0, "prompt_ms": share["time_ms"], "predicted_ms": 0.0}
            if share["processed"] == share["cache"]:
                figures["prompt_ms"] = 0.0
            more = {"timings": timings(figures)} if self._asked.timings else {}
            return sse({**base, "tokens_predicted": 0, "tokens_evaluated": share["total"], "prompt_progress": share, **more})
        if not event.get("d") and "lp" not in event:
            return b""
        piece = {**base, "content": event.get("d", ""), "tokens": event.get("t", [])}
        piece |= {"tokens_predicted": len(self._tokens), "tokens_evaluated": event.get("u", {}).get("prompt", 0)}
        if self._asked.timings and "u" in event:
            piece["timings"] = timings(event["u"])
        if "lp" in event:
            piece["completion_probabilities"] = [self._probability(event["lp"])]
        return sse(piece)

    def last(self) -> bytes:
        """The end of a stream: the whole answer without what was said already."""
        return sse({**self._shape(), "content": "", "tokens": []})

    def whole(self) -> dict[str, Any]:
        shape = self._shape()
        if not self._asked.tokens:
            shape["tokens"] = []
        if self._asked.top:
            shape["completion_probabilities"] = self._probabilities
        return chosen_fields(shape, self._asked.only) if self._asked.only else shape

    def _shape(self) -> dict[str, Any]:
        end, usage, text = self._end, self._end["u"], "".join(self._text)
        asked = self._asked.settings
        if "ends" in end:
            asked = {**asked, "logit_bias": [*asked["logit_bias"], *({"token": t, "bias": None} for t in end["ends"])]}
        stopped_by = end.get("stop")
        kinds = {"length": "limit", "stop": "word" if stopped_by else "eos"}
        return {
            "index": self._index, "content": text, "tokens": self._tokens, "id_slot": end.get("slot", 0), "stop": True, "model": self._asked.name,
            "tokens_predicted": usage["completion"], "tokens_evaluated": usage["prompt"], "generation_settings": asked,
            "prompt": end.get("prompt", ""), "has_new_line": "\n" in text, "truncated": bool(end.get("full")),
            "stop_type": kinds.get(end["f"], "none"), "stopping_word": stopped_by or "", "tokens_cached": usage["prompt"] + usage["completion"] - 1,
            "timings": timings(usage),
        }  # fmt: skip

    def _probability(self, entry: list[Any]) -> dict[str, Any]:
        chosen, others = entry
        name = "top_probs" if self._asked.after_filters else "top_logprobs"
        return {**self._one(chosen), name: [self._one(o) for o in others[: self._asked.top]]}

    def _one(self, entry: list[Any]) -> dict[str, Any]:
        name = "prob" if self._asked.after_filters else "logprob"
        return {"id": entry[0], "token": bytes(entry[1]).decode("utf-8", "replace"), "bytes": entry[1], name: entry[2]}


async def _collect(generation: Generation, answers: list[_Answer]) -> None:
    try:
        async for batch in generation.events():
            for index, event in batch:
                answers[index].take(event)
    finally:
        generation.close()


async def _blocks(generation: Generation, begun: Begun, asked: _Asked, usage: Usage, count: int) -> AsyncIterator[bytes]:
    answers = [_Answer(asked, index) for index in range(len(generation.streams))]

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
