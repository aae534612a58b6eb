"""From a chat body to the prompt: the model's own template, tools described in words where it knows none, an answer that is to be continued."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request

from corral_server.decoding import MediaItem
from corral_server.dialects.formats import COMMAND, GENERIC, Dialect, Shape, Thinking, dialect_of, thinking_of
from corral_server.dialects.pythonic import written
from corral_server.openai import fields
from corral_server.openai.continuing import beginning_of, with_beginning
from corral_server.openai.errors import invalid
from corral_server.openai.media import MediaParts
from corral_server.openai.messages import parse_messages
from corral_server.openai.presets import greeted
from corral_server.openai.service import Service
from corral_server.openai.tools import Toolbox, parse_tools
from corral_server.template_needs import joined

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True)
class Prompt:
    text: str
    toolbox: Toolbox
    dialect: Dialect
    template: str
    thinks: bool
    """Whether thoughts are told apart."""
    opened: bool
    """It ends within a thought."""
    media: list[MediaItem]
    """What it shows, in the order of the marks in its text."""


async def render_prompt(service: Service, request: Request, body: dict[str, Any], named: Sequence[str] | None = None) -> Prompt:
    """The prompt of a chat body, tools and all; `named`: what the client's own body calls the messages."""
    media = MediaParts(service.able)
    preset = service.preset(request, body)
    messages = greeted(parse_messages(body, named, media), preset)
    toolbox = parse_tools(body)
    extra = dict(fields.mapping(body, "chat_template_kwargs"))
    if isinstance(extra.get("enable_thinking"), str):
        raise invalid("chat_template_kwargs.enable_thinking", "chat_template_kwargs.enable_thinking is a string; it has to be true or false")
    effort = fields.choice(body, "reasoning_effort", EFFORTS, preset.reasoning_effort if preset else "")
    if effort:
        extra.setdefault("reasoning_effort", effort)
        if effort in ("none", "minimal"):
            extra.setdefault("enable_thinking", False)
    begun = beginning_of(body, messages, callable_tools=toolbox.callable)
    if begun is not None:
        messages = messages[:-1]
        extra.setdefault("enable_thinking", begun.in_thought)
    template = service.template(with_tools=toolbox.callable)
    dialect = dialect_of(template)
    tools: list[Any] | None = [t for t in toolbox.tools if t["function"]["name"] in toolbox.allowed] if toolbox.callable else None
    if dialect is GENERIC:
        if "tool_calls" not in template:
            messages = _in_words(messages)
        if tools:
            messages = _told(messages, tools, toolbox)
            tools = tools if "tools" in template else None
    elif dialect.shape is Shape.PYTHON and "tool_calls" not in template:
        messages = _in_its_form(messages, dialect)
    if begun is None and not fields.flag(body, "add_generation_prompt", default=True):
        extra["add_generation_prompt"] = False
    text = await service.render(messages, tools, extra, with_tools=toolbox.callable)
    marks = thinking_of(template)
    if begun is not None:
        text = with_beginning(text, marks, begun, thinks=marks.closing in template)
    elif extra.get("enable_thinking") is False:
        text = _without_thought(text, dialect, marks)
    opened = text.rstrip().endswith(marks.opening) or (begun is not None and begun.in_thought and marks.closing in template)
    return Prompt(text, toolbox, dialect, template, thinks=_reasoning(service, body), opened=opened, media=media.items)


def _without_thought(text: str, dialect: Dialect, marks: Thinking) -> str:
    """The prompt of an answer without a thought: what the template opens all the same is closed."""
    if text.rstrip().endswith(marks.opening):
        return text + marks.closing
    # This one's template knows no such wish; the model was trained to pass over the thought after these.
    return text + marks.opening + marks.closing if dialect is COMMAND and text.endswith("<|CHATBOT_TOKEN|>") else text


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


def _in_its_form(messages: list[dict[str, Any]], dialect: Dialect) -> list[dict[str, Any]]:
    """Calls as the model writes them, for templates that leave earlier ones out."""
    plain = []
    for message in messages:
        calls = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls") or ()]
        said = f"{joined(message['content'])}{dialect.opening}[{written(calls)}]{dialect.closing}" if calls else message["content"]
        plain.append({**message, "content": said})
    return plain


def _reasoning(service: Service, body: dict[str, Any]) -> bool:
    """Whether thoughts are told apart: as the model is served, unless the request says otherwise."""
    asked = fields.choice(body, "reasoning_format", ("auto", "none", "deepseek", "deepseek-legacy"), "auto")
    return service.tells_thoughts and asked != "none"
