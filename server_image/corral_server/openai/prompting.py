"""From a chat body to the prompt: the model's own template, tools described in words where it knows none, an answer that is to be continued."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from corral_server.dialects.formats import GENERIC, Dialect, dialect_of, thinking_of
from corral_server.openai import fields
from corral_server.openai.messages import parse_messages
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


async def render_prompt(service: Service, body: dict[str, Any], named: Sequence[str] | None = None) -> Prompt:
    """The prompt of a chat body, tools and all; `named`: what the client's own body calls the messages."""
    messages = parse_messages(body, named)
    toolbox = parse_tools(body)
    extra = dict(fields.mapping(body, "chat_template_kwargs"))
    effort = fields.choice(body, "reasoning_effort", EFFORTS, "")
    if effort:
        extra.setdefault("reasoning_effort", effort)
        if effort in ("none", "minimal"):
            extra.setdefault("enable_thinking", False)
    begun = _begun(messages) if not toolbox.callable else ""
    if begun:
        messages = messages[:-1]
        # What is to be continued are words, so there is no thought before them.
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
    if begun:
        marks = thinking_of(template)
        text += (f"{marks.closing}\n\n" if text.rstrip().endswith(marks.opening) else "") + begun
    return Prompt(text, toolbox, dialect, template, thinks=_reasoning(service, body))


def _begun(messages: list[dict[str, Any]]) -> str:
    """The beginning of an answer that the client wrote itself, as the last message; the model goes on from there."""
    last = messages[-1]
    if len(messages) < 2 or last["role"] != "assistant" or last.get("tool_calls"):
        return ""
    content = last["content"]
    return "".join(part["text"] for part in content) if isinstance(content, list) else str(content or "")


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
