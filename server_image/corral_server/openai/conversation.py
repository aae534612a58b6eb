"""A chat request, whatever API it came by: from its fields to the engine's jobs, and from the engine's text to words, thoughts and tool calls.

The endpoints bring their bodies into the form of chat completions first; nothing here knows in which shape the answer goes out.
"""

import uuid
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.requests import Request

from corral_server.dialects.formats import GENERIC, Dialect, Shape, Thinking, dialect_of, thinking_of
from corral_server.dialects.grammars import calls_grammar
from corral_server.dialects.reader import Part, Reader
from corral_server.openai import fields
from corral_server.openai.answers import unless_gone
from corral_server.openai.errors import invalid
from corral_server.openai.generation import Finished, Generation
from corral_server.openai.messages import parse_messages
from corral_server.openai.sampling import sampling_of
from corral_server.openai.service import Service
from corral_server.openai.tools import Toolbox, parse_tools
from corral_server.template_needs import joined

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def call_id() -> str:
    return "call_" + uuid.uuid4().hex[:24]


@dataclass
class Call:
    name: str
    arguments: str = ""
    id: str = field(default_factory=call_id)


@dataclass
class Said:
    """One whole answer, taken apart."""

    text: str
    thought: str
    calls: list[Call]
    finished: Finished

    @property
    def reason(self) -> str:
        return "tool_calls" if self.calls and self.finished.reason == "stop" else self.finished.reason


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

    def reader(self) -> Reader:
        return Reader(self.dialect, self.toolbox.allowed, thinking=self.thinking, open_thought=self.open_thought, harmony=self.harmony)

    def said(self, finished: Finished) -> Said:
        reader = self.reader()
        parts = reader.feed(finished.text) + reader.finish()
        calls: list[Call] = []
        for part in parts:
            if part.kind == "call":
                calls.append(Call(part.text))
            elif part.kind == "arguments":
                calls[part.call].arguments += part.text
        return Said(_of_kind(parts, "text"), _of_kind(parts, "thought"), calls, finished)

    def start(self, service: Service) -> Generation:
        return Generation(service.generator(len(self.jobs)), self.jobs)


def _of_kind(parts: list[Part], kind: str) -> str:
    return "".join(p.text for p in parts if p.kind == kind)


@dataclass(frozen=True)
class Prompt:
    text: str
    toolbox: Toolbox
    dialect: Dialect
    template: str
    thinks: bool


async def render_prompt(service: Service, body: dict[str, Any]) -> Prompt:
    """The prompt of a chat body, tools and all."""
    messages = parse_messages(body)
    toolbox = parse_tools(body)
    extra = dict(fields.mapping(body, "chat_template_kwargs"))
    effort = fields.text(body, "reasoning_effort")
    if effort is not None:
        if effort not in _EFFORTS:
            raise invalid("reasoning_effort", f"reasoning_effort is {fields.shown(effort)}; it has to be one of {', '.join(_EFFORTS)}")
        extra.setdefault("reasoning_effort", effort)
        if effort in ("none", "minimal"):
            extra.setdefault("enable_thinking", False)
    template = service.template(with_tools=toolbox.callable)
    dialect = dialect_of(template)
    tools: list[Any] | None = [t for t in toolbox.tools if t["function"]["name"] in toolbox.allowed] if toolbox.callable else None
    if dialect is GENERIC:
        if "tool_calls" not in template:
            messages = _in_words(messages)
        if tools:
            messages = _told(messages, tools, toolbox)
            tools = tools if "tools" in template else None
    text = await service.render(messages, tools, extra, with_tools=toolbox.callable)
    return Prompt(text, toolbox, dialect, template, thinks=_reasoning(service, body))


def _told(messages: list[dict[str, Any]], tools: list[Any], toolbox: Toolbox) -> list[dict[str, Any]]:
    """The messages for a model that knows no tools: a system message describes them."""
    form = '{"tool_call": {"name": "<function>", "arguments": {…}}}'
    wanted = f"Respond with a JSON object: {form} to call a function" + (
        "." if toolbox.choice == "required" else ', or {"response": "<your answer>"} to answer.'
    )
    described = "\n".join(orjson.dumps(t["function"]).decode() for t in tools)
    text = f"You can call these functions:\n{described}\n{wanted}"
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{joined(messages[0]['content'])}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _in_words(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls and results as what was said, for templates that know neither."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        if message.get("tool_calls"):
            calls = "\n".join(orjson.dumps({"tool_call": c["function"]}).decode() for c in message["tool_calls"])
            plain.append({"role": "assistant", "content": f"{joined(message['content'])}\n{calls}" if message["content"] else calls})
        elif message["role"] in ("tool", "function"):
            plain.append({"role": "user", "content": "Result of the function: " + joined(message["content"])})
        else:
            plain.append(message)
    return plain


def _reasoning(service: Service, body: dict[str, Any]) -> bool:
    """Whether thoughts are told apart: as the model is served, unless the request says otherwise."""
    asked = fields.choice(body, "reasoning_format", ("auto", "none", "deepseek", "deepseek-legacy"), "auto")
    return service.tells_thoughts and asked != "none"


async def prepare(service: Service, request: Request, body: dict[str, Any]) -> Conversation:
    """Everything that can be wrong with a chat request is found here, before the engine hears of it."""
    count = fields.whole(body, "n", 1, 128, 1) or 1
    top = fields.whole(body, "top_logprobs", 0, 20, 0) or 0
    wants_logprobs = fields.flag(body, "logprobs")
    if top and not wants_logprobs:
        raise invalid("top_logprobs", "top_logprobs is only allowed when logprobs is true")
    limit = fields.whole(body, "max_completion_tokens", -1, 1 << 31)
    if limit is None:
        limit = fields.whole(body, "max_tokens", -1, 1 << 31)
    sampling = sampling_of(body, service.defaults)
    if wants_logprobs:
        sampling["n_probs"] = max(top, 1)
    stop = fields.stops(body) + service.template_stops
    cache = fields.flag(body, "cache_prompt", default=True)
    service.refuse_adapters(request, body)
    service.generator(count)
    prompt = await unless_gone(request, render_prompt(service, body))
    harmony = prompt.dialect.shape is Shape.HARMONY
    marks = thinking_of(prompt.template)
    tail = prompt.text.rstrip()
    open_thought = not harmony and tail.endswith(marks.opening)
    thinking = marks if prompt.thinks else None
    constraint = await unless_gone(request, _constraint(service, body, prompt, marks if open_thought else None))
    job = {
        **constraint, "prompt": prompt.text, "max_tokens": limit, "sampling": sampling, "stop": stop, "cache_prompt": cache,
        "preserved": _preserved(prompt, marks, thinking),
    }  # fmt: skip
    jobs = [job] + [{**job, "sampling": _reseeded(sampling, i)} for i in range(1, count)]
    dialect = prompt.dialect if prompt.toolbox.callable else None
    return Conversation(jobs, prompt.toolbox, dialect, thinking, open_thought and thinking is not None, harmony, top if wants_logprobs else None)


def _preserved(prompt: Prompt, marks: Thinking, thinking: Thinking | None) -> list[str]:
    found = list(prompt.dialect.preserved) if prompt.toolbox.callable or prompt.dialect.shape is Shape.HARMONY else []
    return found + ([marks.opening, marks.closing] if thinking is not None else [])


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
    rules = await service.rules(toolbox.schemas(), "tools")
    roots = [f"s{i}-root" for i in range(len(toolbox.allowed))]
    parallel = dialect.parallel if toolbox.parallel is None else toolbox.parallel
    one = len(toolbox.allowed) == 1 and isinstance(body.get("tool_choice"), dict)
    lazy = toolbox.choice == "auto" and dialect.shape is not Shape.GENERIC
    grammar = calls_grammar(
        dialect, toolbox.allowed, roots, rules,
        parallel=parallel and not one, thinking=None if lazy else thinking, content=toolbox.choice == "auto",
    )  # fmt: skip
    return {"grammar": grammar, "grammar_param": "tools", **({"triggers": [dialect.opening]} if lazy else {})}


def _reseeded(sampling: dict[str, Any], index: int) -> dict[str, Any]:
    return {**sampling, "seed": sampling["seed"] + index} if "seed" in sampling else sampling
