"""Answers that the client has begun: the assistant's message at the end of a conversation, from which the model goes on. Pure."""

from dataclasses import dataclass
from typing import Any

from corral_server.dialects.formats import Thinking
from corral_server.openai import fields
from corral_server.openai.errors import invalid

_PARTS = ("reasoning_content", "content")
_NAME = "continue_final_message"


@dataclass(frozen=True)
class Beginning:
    """What stands already of an answer."""

    text: str
    thought: str = ""
    in_thought: bool = False
    """It ends within the thought."""


def beginning_of(body: dict[str, Any], messages: list[dict[str, Any]], *, callable_tools: bool) -> Beginning | None:
    """The beginning of the answer, when the last message is one; ApiError when it cannot be."""
    wish = _wish(body)
    wanted, prompted = bool(wish), fields.flag(body, "add_generation_prompt")
    if wanted and prompted:
        raise invalid(_NAME, f"{_NAME} and add_generation_prompt cannot both be true")
    last = messages[-1]
    if last["role"] != "assistant":
        return None
    if len(messages) < 2 and wanted:
        raise invalid("messages", "messages holds nothing but the answer that is to be continued; it needs what was answered")
    if len(messages) > 1 and messages[-2]["role"] == "assistant":
        raise invalid("messages", "messages ends with two messages of the assistant; only one can be continued")
    if last.get("tool_calls"):
        if wanted:
            raise invalid(_NAME, f"{_NAME} is {fields.shown(wish)}, but the last message calls tools; only words can be continued")
        return None
    # A model that may call tools is asked anew, unless the client says otherwise.
    if not wanted and (wish is False or prompted or callable_tools or len(messages) < 2):
        return None
    text, thought = _joined(last["content"]), str(last.get("reasoning_content") or "")
    if not text and not thought:
        return None
    return Beginning(text, thought, in_thought=wish == "reasoning_content" or (wish != "content" and not text))


def with_beginning(prompt: str, marks: Thinking, begun: Beginning, *, thinks: bool) -> str:
    """The prompt with what stands already. `thinks`: the model's template knows thoughts."""
    opened = prompt.rstrip().endswith(marks.opening)
    if begun.in_thought and thinks:
        return (prompt if opened else f"{prompt}{marks.opening}\n") + begun.thought
    if begun.thought and thinks:
        return f"{prompt if opened else prompt + marks.opening}{begun.thought}{marks.closing}{begun.text}"
    # What is to be continued are words, so there is no thought before them.
    return (f"{prompt}{marks.closing}\n\n" if opened else prompt) + begun.text


def _wish(body: dict[str, Any]) -> bool | str | None:
    """Whether to continue, or the part of the message that goes on; None when nothing was said."""
    raw = body.get(_NAME)
    if isinstance(raw, str):
        return fields.choice(body, _NAME, _PARTS, "")
    return None if raw is None else fields.flag(body, _NAME)


def _joined(content: Any) -> str:
    return "\n\n".join(part["text"] for part in content) if isinstance(content, list) else str(content or "")
