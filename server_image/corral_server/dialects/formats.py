"""The ways in which models write tool calls and thoughts, and how to tell from a chat template which one a model was trained on. Pure data."""

from corral_server.dialects.shapes import Dialect, Shape, Tags, Thinking
from corral_server.dialects.tagged_formats import DSML, DSML_4, GLM, KIMI, MINIMAX, QWEN_CODER, SEED

__all__ = [
    "APRIEL", "COMMAND", "DEEPSEEK", "DSML", "DSML_4", "FUNCTION_GEMMA", "FUNCTOOLS", "GEMMA", "GENERIC", "GLM", "GRANITE", "HARMONY", "HERMES",
    "KIMI", "LFM", "LLAMA3", "MINIMAX", "MISTRAL", "MISTRAL_ARGS", "NEMOTRON", "QWEN_CODER", "SEED", "Dialect", "Shape", "Tags", "Thinking",
    "dialect_of", "thinking_of",
]  # fmt: skip

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
GEMMA = Dialect(
    "gemma-4", Shape.BRACED, "<|tool_call>", "<tool_call|>", quote='<|"|>', preserved=("<|tool_call>", "<tool_call|>", '<|"|>'),
)  # fmt: skip
FUNCTION_GEMMA = Dialect(
    "function-gemma", Shape.BRACED, "<start_function_call>", "<end_function_call>", quote="<escape>",
    preserved=("<start_function_call>", "<end_function_call>", "<escape>"),
)  # fmt: skip
LFM = Dialect("lfm-2", Shape.PYTHON, "<|tool_call_start|>", "<|tool_call_end|>", preserved=("<|tool_call_start|>", "<|tool_call_end|>"))
APRIEL = Dialect("apriel", Shape.ARRAY, "<tool_calls>", "</tool_calls>", preserved=("<tool_calls>", "</tool_calls>"))
GENERIC = Dialect("generic", Shape.GENERIC, parallel=False)

# The marks that all have to be there; the first that fit tell, so what others contain comes later.
_TELLING: tuple[tuple[tuple[str, ...], Dialect], ...] = (
    (("<|channel|>",), HARMONY),
    ((DEEPSEEK_ALL,), DEEPSEEK),
    (("｜DSML｜", "tool_calls>"), DSML_4),  # noqa: RUF001
    (("｜DSML｜",), DSML),  # noqa: RUF001
    (("<|START_ACTION|>",), COMMAND),
    (("[ARGS]",), MISTRAL_ARGS),
    (("[TOOL_CALLS]",), MISTRAL),
    ((" functools[",), FUNCTOOLS),
    (("<TOOLCALL>",), NEMOTRON),
    (("<|tool_calls_section_begin|>",), KIMI),
    (("<minimax:tool_call>",), MINIMAX),
    (("<seed:tool_call>",), SEED),
    (("<tool_calls>[",), APRIEL),
    (("<tool_call>", "<arg_key>"), GLM),
    (("<tool_call>", "<function="), QWEN_CODER),
    # Tags of a form that is not read here, which our own does better than a guess.
    (("<tool_call>", "<invoke "), GENERIC),
    (("<tool_call>",), HERMES),
    (("<|tool_call|>",), GRANITE),
    (("<|tool_call>", "call:"), GEMMA),
    (("<start_function_call>",), FUNCTION_GEMMA),
    # The first of these templates write no earlier calls, so only the list of tools tells.
    (("<|tool_list_start|>",), LFM),
    (("<|tool_call_start|>",), LFM),
    (('"List of tools: ["', "<|im_start|>"), LFM),
)
_THOUGHTS = (
    Thinking("<think>", "</think>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("<|channel>thought", "<channel|>", ("<|channel>", "<channel|>")),
)


def dialect_of(template: str) -> Dialect:
    """The dialect that a chat template speaks; the generic one when it knows no tools or an unknown form of them."""
    for marks, dialect in _TELLING:
        if all(mark in template for mark in marks):
            return dialect
    if "<|start_header_id|>" in template and "parameters" in template and "tools" in template:
        # Functionary was made from it, but writes calls in two ways of its own.
        return GENERIC if "<function=" in template or "'>>>" in template else LLAMA3
    return GENERIC


def thinking_of(template: str) -> Thinking:
    """The marks around a thought; the common ones when the template says nothing."""
    return next((t for t in _THOUGHTS if t.closing in template), _THOUGHTS[0])
