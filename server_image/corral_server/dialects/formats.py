"""The ways in which models write tool calls and thoughts, and how to tell from a chat template which one a model was trained on. Pure data."""

from dataclasses import dataclass
from enum import Enum


class Shape(Enum):
    """How the text of a call is built."""

    OBJECTS = "objects"
    """A marker, an object with name and arguments, a closing marker; again for the next call."""
    ARRAY = "array"
    """A marker and a list of such objects."""
    BARE = "bare"
    """The object alone is the answer."""
    NAMED = "named"
    """A marker, the name, a separator, the arguments alone."""
    HARMONY = "harmony"
    """Channels: the call is a message to `functions.NAME`."""
    GENERIC = "generic"
    """The model was not trained on tools: every answer is an object of our own, by grammar."""


@dataclass(frozen=True)
class Dialect:
    name: str
    shape: Shape
    opening: str = ""
    closing: str = ""
    between: str = ""
    """Between the arguments' end and the next call, inside one opening."""
    separator: str = ""
    """Between name and arguments, where the name stands alone."""
    arguments_key: str = "arguments"
    name_key: str = "name"
    preserved: tuple[str, ...] = ()
    """Special tokens that have to come out as text."""
    parallel: bool = True


@dataclass(frozen=True)
class Thinking:
    opening: str
    closing: str


DEEPSEEK_CALL, DEEPSEEK_CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"  # noqa: RUF001  the model's own characters
DEEPSEEK_SEP = "<｜tool▁sep｜>"  # noqa: RUF001
DEEPSEEK_ALL, DEEPSEEK_ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"  # noqa: RUF001

HERMES = Dialect("hermes", Shape.OBJECTS, "<tool_call>", "</tool_call>", preserved=("<tool_call>", "</tool_call>"))
LLAMA3 = Dialect("llama3", Shape.BARE, "<|python_tag|>", arguments_key="parameters", preserved=("<|python_tag|>",), parallel=False)
MISTRAL = Dialect("mistral", Shape.ARRAY, "[TOOL_CALLS]", preserved=("[TOOL_CALLS]",))
MISTRAL_ARGS = Dialect(
    "mistral-args", Shape.NAMED, "[TOOL_CALLS]", separator="[ARGS]", preserved=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]")
)
DEEPSEEK = Dialect(
    "deepseek", Shape.NAMED, DEEPSEEK_ALL, DEEPSEEK_ALL_END, separator=DEEPSEEK_SEP,
    preserved=(DEEPSEEK_CALL, DEEPSEEK_CALL_END, DEEPSEEK_SEP, DEEPSEEK_ALL, DEEPSEEK_ALL_END),
)  # fmt: skip
HARMONY = Dialect(
    "gpt-oss", Shape.HARMONY, "<|channel|>", preserved=("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>", "<|call|>")
)
GRANITE = Dialect("granite", Shape.ARRAY, "<|tool_call|>", preserved=("<|tool_call|>", "<|/tool_call|>"))
NEMOTRON = Dialect("nemotron", Shape.ARRAY, "<TOOLCALL>", "</TOOLCALL>", preserved=("<TOOLCALL>", "</TOOLCALL>"))
COMMAND = Dialect(
    "command-r", Shape.ARRAY, "<|START_ACTION|>", "<|END_ACTION|>", name_key="tool_name", arguments_key="parameters",
    preserved=("<|START_ACTION|>", "<|END_ACTION|>", "<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)  # fmt: skip
FUNCTOOLS = Dialect("functools", Shape.ARRAY, " functools")
GENERIC = Dialect("generic", Shape.GENERIC, parallel=False)

_TELLING: tuple[tuple[str, Dialect], ...] = (
    ("<|channel|>", HARMONY),
    (DEEPSEEK_ALL, DEEPSEEK),
    ("<|START_ACTION|>", COMMAND),
    ("[ARGS]", MISTRAL_ARGS),
    ("[TOOL_CALLS]", MISTRAL),
    (" functools[", FUNCTOOLS),
    ("<TOOLCALL>", NEMOTRON),
    ("<tool_call>", HERMES),
    ("<|tool_call|>", GRANITE),
)
_THOUGHTS = (
    Thinking("<think>", "</think>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
    Thinking("<seed:think>", "</seed:think>"),
)


def dialect_of(template: str) -> Dialect:
    """The dialect that a chat template speaks; the generic one when it knows no tools or an unknown form of them."""
    for mark, dialect in _TELLING:
        if mark in template:
            # Some write the same marker around XML, which the generic form does better than a guess.
            return GENERIC if dialect is HERMES and "<function=" in template else dialect
    if "<|start_header_id|>" in template and "parameters" in template and "tools" in template:
        return LLAMA3
    return GENERIC


def thinking_of(template: str) -> Thinking:
    """The marks around a thought; the common ones when the template says nothing."""
    return next((t for t in _THOUGHTS if t.closing in template), _THOUGHTS[0])
