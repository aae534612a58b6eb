"""One answer in llama.cpp's own shape, whole or in pieces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corral_server.channel import Message
from corral_server.openai.answers import sse, timings
from corral_server.openai.native_settings import chosen_fields, settings


@dataclass
class Asked:
    """What a request wants to be told."""

    name: str
    top: int
    after_filters: bool
    tokens: bool
    progress: bool
    timings: bool
    settings: dict[str, Any]
    only: list[str] = field(default_factory=list)


class Answer:
    """One answer as it comes, in llama.cpp's shape."""

    def __init__(self, asked: Asked, index: int) -> None:
        self._asked = asked
        self._index = index
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._probabilities: list[dict[str, Any]] = []
        self._start: Message = {}
        self._end: Message = {}

    @property
    def usage(self) -> dict[str, Any]:
        return dict(self._end["u"])

    def take(self, event: Message) -> None:
        if "start" in event:
            self._start = event["start"]
        if text := event.get("d"):
            self._text.append(text)
        self._tokens += event.get("t", ())
        if "lp" in event:
            self._probabilities.append(self._probability(event["lp"]))
        if "f" in event:
            self._end = event

    def part(self, event: Message) -> bytes:
        """The piece of a stream that an event is; empty when it has nothing to tell."""
        base = {"index": self._index, "content": "", "tokens": [], "stop": False, "id_slot": self._start.get("slot", -1)}
        if "pp" in event and self._asked.progress:
            share = event["pp"]
            more = {"timings": timings_of(share)} if self._asked.timings else {}
            return sse({**base, "tokens_predicted": 0, "tokens_evaluated": share["total"], "prompt_progress": share, **more})
        if not event.get("d") and "lp" not in event:
            return b""
        piece = {**base, "content": event.get("d", ""), "tokens": event.get("t", [])}
        piece |= {"tokens_predicted": len(self._tokens), "tokens_evaluated": self._start.get("prompt", 0)}
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


def timings_of(share: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a prompt that has been evaluated so far."""
    spent = 0.0 if share["processed"] == share["cache"] else share["time_ms"]
    return timings({"prompt": share["processed"], "cached": share["cache"], "completion": 0, "prompt_ms": spent, "predicted_ms": 0.0})


def verbose(job: Mapping[str, Any], index: int, name: str, events: Sequence[Message], *, stream: bool = False) -> dict[str, Any]:
    """`__verbose`: what llama.cpp's own endpoint would have said of an answer of another one's."""
    sampling, limit, top = job["sampling"], job["max_tokens"], job["sampling"].get("n_probs", 0)
    shown = settings(sampling, limit=limit, stop=job["stop"], stream=stream, grammar=job.get("grammar", ""), adapters=job.get("adapters") or ())
    answer = Answer(Asked(name, top, after_filters=False, tokens=True, progress=False, timings=False, settings=shown), index)
    for event in events:
        answer.take(event)
    return answer.whole()
