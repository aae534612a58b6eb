"""The items of an answer of the responses API as they grow, and the events that tell of each step. Pure: it knows no engine and no socket."""

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from corral_server.dialects.reader import Part
from corral_server.kept_responses import item_id
from corral_server.openai.conversation import call_id
from corral_server.openai.logprobs import chat_logprobs
from corral_server.openai.responses_tools import named

_CALLS = {"arguments": "function_call_arguments", "input": "custom_tool_call_input"}
"""What grows in an item that is a call, and its events' name."""


class _Words(NamedTuple):
    """Where words go in their item, and the names of their events."""

    within: str
    part: str
    text: str
    place: str
    begun: dict[str, Any]


_WORDS = {
    "text": _Words("content", "content_part", "output_text", "content_index", {"type": "output_text", "text": "", "annotations": [], "logprobs": []}),
    "thought": _Words("content", "content_part", "reasoning_text", "content_index", {"type": "reasoning_text", "text": ""}),
    "summary": _Words("summary", "reasoning_summary_part", "reasoning_summary_text", "summary_index", {"type": "summary_text", "text": ""}),
}
_KINDS = {"call": "arguments", "custom": "input"}
_PREFIXES = {"text": "msg", "thought": "rs", "summary": "rs", "arguments": "fc", "input": "ctc"}
"""With what an item's id begins."""


class Output:
    """`tell` hears of each step. A client that asks for summaries of thoughts gets the thought itself as one: OpenAI's own show nothing else."""

    def __init__(self, base: dict[str, Any], top: int | None, tell: Callable[..., None] = lambda *_, **__: None) -> None:
        self.items: list[dict[str, Any]] = []
        self.logprobs: list[Any] = []
        self._top = top
        self._response: str = base["id"]
        self._tools: list[dict[str, Any]] = base["tools"]
        self._kinds = {**_KINDS, "thought": "summary"} if base["reasoning"]["summary"] else _KINDS
        self._tell = tell
        self._open: tuple[str, int] | None = None

    def part(self, part: Part, logprobs: list[Any] | None = None) -> None:
        self.logprobs += logprobs or []
        kind = self._kinds.get(part.kind, part.kind)
        if self._open != (kind, part.call):
            self._close()
            self._begin(kind, part)
        if part.kind in ("call", "custom") or not (part.text or logprobs):
            return
        item = self.items[-1]
        if kind in _CALLS:
            item[kind] += part.text
            self._say(f"{_CALLS[kind]}.delta", delta=part.text)
            return
        words = _WORDS[kind]
        item[words.within][0]["text"] += part.text
        more = {"logprobs": self._shaped(logprobs or [])} if kind == "text" else {}
        self._say(f"{words.text}.delta", **{words.place: 0}, delta=part.text, **more)

    def end(self, *, cut: bool = False) -> None:
        if not self.items:
            self.part(Part("text", ""))
        self._close(cut=cut)

    def _shaped(self, entries: list[Any]) -> list[Any]:
        return list(chat_logprobs(entries, self._top)["content"]) if self._top is not None else []

    def _say(self, kind: str, **more: Any) -> None:
        self._tell("response." + kind, item_id=self.items[-1]["id"], output_index=len(self.items) - 1, **more)

    def _begin(self, kind: str, part: Part) -> None:
        self._open = (kind, part.call)
        name = item_id(_PREFIXES[kind], self._response, len(self.items))
        item: dict[str, Any] = {"id": name, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        if kind in _CALLS:
            called = {"call_id": call_id(), **named(self._tools, part.text), kind: ""}
            item = {"id": name, "type": "function_call" if kind == "arguments" else "custom_tool_call", **called, "status": "in_progress"}
        elif kind != "text":
            item = {"id": name, "type": "reasoning", "summary": [], "content": [], "status": "in_progress"}
        self.items.append(item)
        self._tell("response.output_item.added", output_index=len(self.items) - 1, item=orjson.Fragment(orjson.dumps(item)))
        if kind not in _CALLS:
            words = _WORDS[kind]
            self._say(f"{words.part}.added", **{words.place: 0}, part=words.begun)
            item[words.within].append(dict(words.begun))

    def _close(self, *, cut: bool = False) -> None:
        if self._open is None:
            return
        kind, item = self._open[0], self.items[-1]
        self._open = None
        item["status"] = "incomplete" if cut else "completed"
        if kind == "arguments":
            self._say("function_call_arguments.done", name=item["name"], arguments=item["arguments"])
        elif kind == "input":
            self._say("custom_tool_call_input.done", input=item["input"])
        else:
            words = _WORDS[kind]
            content = item[words.within][0]
            more = {}
            if kind == "text":
                more["logprobs"] = content["logprobs"] = self._shaped(self.logprobs)
            self._say(f"{words.text}.done", **{words.place: 0}, text=content["text"], **more)
            self._say(f"{words.part}.done", **{words.place: 0}, part=content)
        self._tell("response.output_item.done", output_index=len(self.items) - 1, item=item)
