"""A chat request, whatever API it came by: from its fields to the engine's jobs, and from the engine's text to words, thoughts and tool calls.

The endpoints bring their bodies into the form of chat completions first; nothing here knows in which shape the answer goes out.
"""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from corral_server.channel import Message
from corral_server.dialects.formats import Dialect, Shape, Thinking, thinking_of
from corral_server.dialects.grammars import calls_grammar, ruled_schemas
from corral_server.dialects.reader import Part, Reader
from corral_server.openai import fields
from corral_server.openai.answers import unless_gone
from corral_server.openai.custom_tools import FreeText
from corral_server.openai.errors import ApiError, invalid
from corral_server.openai.generation import Finished, Generation
from corral_server.openai.known_fields import check_chat
from corral_server.openai.native_fields import NativeFields, native_fields
from corral_server.openai.prompting import Prompt, render_prompt
from corral_server.openai.sampling import OPENAI_HOTTEST, reseeded, sampling_of
from corral_server.openai.service import Service
from corral_server.openai.tools import Toolbox


def call_id() -> str:
    return "call_" + uuid.uuid4().hex[:24]


@dataclass
class Call:
    name: str
    arguments: str = ""
    """Of a custom tool: its text."""
    id: str = field(default_factory=call_id)
    custom: bool = False


@dataclass
class Said:
    """One whole answer, taken apart."""

    text: str
    thought: str
    calls: list[Call]
    finished: Finished
    thought_tokens: int = 0


class Reading:
    """One answer as it is read; counts the tokens of its thoughts, marks and all.

    A call of a custom tool comes as the parts `custom` (its name) and `input` instead of `call` and `arguments`.
    """

    def __init__(self, reader: Reader, customs: Collection[str] = ()) -> None:
        self._reader = reader
        self._customs = customs
        self._custom: tuple[int, FreeText] | None = None
        self.thought_tokens = 0

    @property
    def plain(self) -> bool:
        return self._reader.plain and self._custom is None

    @property
    def calls(self) -> int:
        return self._reader.calls

    def feed(self, text: str, tokens: int = 1) -> list[Part]:
        thinking = self._reader.in_thought
        parts = self._reader.feed(text)
        if thinking or self._reader.in_thought:
            self.thought_tokens += tokens
        return self._freed(parts) if self._customs else parts

    def take(self, event: Message) -> list[Part]:
        """What an engine's event adds."""
        text = event.get("d", "")
        return self.feed(text, event.get("n", 1)) if text else []

    def finish(self) -> list[Part]:
        parts = self._reader.finish()
        return self._freed(parts) + self._rest() if self._customs else parts

    def _freed(self, parts: list[Part]) -> list[Part]:
        found: list[Part] = []
        for part in parts:
            if self._custom is not None and part.kind == "arguments" and part.call == self._custom[0]:
                text = self._custom[1].feed(part.text)
                found += [Part("input", text, part.call)] if text else []
                continue
            found += self._rest()
            if part.kind == "call" and part.text in self._customs:
                self._custom = part.call, FreeText()
                part = part._replace(kind="custom")  # noqa: PLW2901  the same call under its other name
            found.append(part)
        return found

    def _rest(self) -> list[Part]:
        """What is left of the call that has ended."""
        ended, self._custom = self._custom, None
        text = ended[1].finish() if ended is not None else ""
        return [Part("input", text, ended[0])] if ended is not None and text else []


@dataclass
class Conversation:
    """What a request came to: the jobs to run and how their text is to be read."""

    jobs: list[dict[str, Any]]
    toolbox: Toolbox
    dialect: Dialect | None
    thinking: Thinking | None
    open_thought: bool
    harmony: bool
    top: int | None
    own: NativeFields

    def reading(self) -> Reading:
        box, thinking = self.toolbox, self.thinking
        reader = Reader(self.dialect, box.allowed, box.schemas(), thinking=thinking, open_thought=self.open_thought, harmony=self.harmony)
        return Reading(reader, box.customs)

    def said(self, finished: Finished) -> Said:
        reading = self.reading()
        parts = [part for text, tokens in finished.pieces for part in reading.feed(text, tokens)] + reading.finish()
        calls: list[Call] = []
        for part in parts:
            if part.kind in ("call", "custom"):
                calls.append(Call(part.text, custom=part.kind == "custom"))
            elif part.kind in ("arguments", "input"):
                calls[part.call].arguments += part.text
        return Said(_of_kind(parts, "text"), _of_kind(parts, "thought"), calls, finished, reading.thought_tokens)

    def start(self, service: Service) -> Generation:
        return Generation(service.generator(len(self.jobs)), self.jobs)


def _of_kind(parts: list[Part], kind: str) -> str:
    return "".join(p.text for p in parts if p.kind == kind)


async def prepare(service: Service, request: Request, body: dict[str, Any], named: Sequence[str] | None = None) -> Conversation:
    """Everything that can be wrong with a chat request is found here, before the engine hears of it. `named`: what the client calls the messages."""
    check_chat(body)
    count = fields.whole(body, "n", 1, 128, 1) or 1
    top = fields.whole(body, "top_logprobs", 0, 20, 0) or 0
    wants_logprobs = fields.flag(body, "logprobs")
    if top and not wants_logprobs:
        raise invalid("top_logprobs", "top_logprobs is only allowed when logprobs is true")
    defaults = service.defaults(service.preset(request, body))
    limit, own = _limit(body, defaults.get("max_tokens")), native_fields(body)
    sampling = sampling_of(body, defaults, hottest=OPENAI_HOTTEST, vocabulary=service.vocabulary)
    if wants_logprobs:
        sampling["n_probs"] = max(top, 1)
    stop = fields.stops(body) + service.template_stops
    cache = fields.flag(body, "cache_prompt", default=True)
    adapters = service.adapters(request, body)
    service.generator(count)
    prompt = await unless_gone(request, render_prompt(service, request, body, named))
    harmony = prompt.dialect.shape is Shape.HARMONY
    marks = thinking_of(prompt.template)
    open_thought = not harmony and prompt.opened
    thinking = marks if prompt.thinks else None
    constraint = await unless_gone(request, _constraint(service, body, prompt, marks if open_thought else None))
    job = {
        **constraint, **adapters, "prompt": prompt.text, "max_tokens": limit, "sampling": sampling, "stop": stop, "cache_prompt": cache,
        **await shown(service, request, prompt),
        "preserved": _preserved(prompt, marks, thinking), **_thought_limit(body, prompt, marks), **own.job,
    }  # fmt: skip
    jobs = [job] + [{**job, "sampling": reseeded(sampling, i)} for i in range(1, count)]
    dialect = prompt.dialect if prompt.toolbox.callable else None
    return Conversation(jobs, prompt.toolbox, dialect, thinking, open_thought and thinking is not None, harmony, top if wants_logprobs else None, own)


async def shown(service: Service, request: Request, prompt: Prompt) -> dict[str, Any]:
    """The images and audio of a prompt, decoded, for the engine's message."""
    if not prompt.media:
        return {}
    if prompt.text.count(str(service.able["marker"])) != len(prompt.media):
        raise ApiError(400, "template_failed", "the chat template leaves out some of the images or audio", prompt.media[0].where)
    decoded = await service.decoded(request, prompt.media)
    return {"media": decoded.some(0, len(prompt.media))} if decoded is not None else {}


def _limit(body: dict[str, Any], default: int | None) -> int | None:
    """How many tokens an answer may have; -1 is llama.cpp's "as many as fit"."""
    found = None
    for name in ("max_tokens", "max_completion_tokens", "n_predict"):
        limit = fields.whole(body, name, -1, 1 << 31)
        if limit == 0:
            raise invalid(name, f"{name} is 0; it has to be a whole number of at least 1")
        found = found if limit is None else limit
    return default if found is None else found


def _thought_limit(body: dict[str, Any], prompt: Prompt, marks: Thinking) -> dict[str, Any]:
    """How long the model may think, in llama.cpp's two names for it; -1 is as long as it likes."""
    limit = None
    for name in ("thinking_budget_tokens", "reasoning_budget_tokens"):
        found = fields.whole(body, name, -1, 1 << 31)
        limit = limit if found is None else found
    message = fields.text(body, "reasoning_budget_message", "")
    if limit is None or limit < 0 or marks.closing not in prompt.template:
        return {}
    return {"thought": {"limit": limit, "opening": marks.opening, "closing": marks.closing, "message": message, "open": prompt.opened}}


def _preserved(prompt: Prompt, marks: Thinking, thinking: Thinking | None) -> list[str]:
    found = list(prompt.dialect.preserved) if prompt.toolbox.callable or prompt.dialect.shape is Shape.HARMONY else []
    return found + (list(marks.preserved) if thinking is not None else [])


async def _constraint(service: Service, body: dict[str, Any], prompt: Prompt, thinking: Thinking | None) -> dict[str, Any]:
    asked = await service.constraint(body, thinking)
    toolbox, dialect = prompt.toolbox, prompt.dialect
    if not toolbox.callable:
        return asked
    if asked:
        if body.get("grammar") or toolbox.choice == "required":
            raise invalid("tools", "a grammar or response_format cannot hold for an answer that has to call a tool; leave one of them away")
        # The schema holds for an answer in words, so no calls are made beside it.
        return asked
    if toolbox.choice == "auto" and dialect.shape in (Shape.BARE, Shape.HARMONY):
        # Nothing in these tells a call's beginning surely enough to start a grammar there; the reader takes what comes.
        return {}
    schemas = toolbox.schemas()
    rules = await service.rules(ruled_schemas(dialect, schemas), "tools", toolbox.allowed, loose=not toolbox.strict)
    parallel = dialect.parallel if toolbox.parallel is None else toolbox.parallel
    lazy = toolbox.choice == "auto" and dialect.shape is not Shape.GENERIC
    grammar = calls_grammar(
        dialect, toolbox.allowed, schemas, rules,
        parallel=parallel and not toolbox.named, thinking=None if lazy else thinking, content=toolbox.choice == "auto",
    )  # fmt: skip
    return {"grammar": grammar, "grammar_param": "tools", **({"triggers": [dialect.opening]} if lazy else {})}
