"""Forms of calls in which every argument has tags of its own, and the one of Kimi, whose calls stand in a section. Pure data."""

from corral_server.dialects.shapes import Dialect, Shape, Tags

QWEN_CODER = Dialect(
    "qwen-coder", Shape.TAGGED, "<tool_call>", "</tool_call>", preserved=("<tool_call>", "</tool_call>"), short="<function=",
    ends_thought=True, tags=Tags("<function=", ">", "<parameter=", (">",), "</parameter>", "</function>", padded=True),
)  # fmt: skip
"""Qwen3-Coder and Qwen3.5, Nemotron 3, Step 3.5."""
SEED = Dialect(
    "seed", Shape.TAGGED, "<seed:tool_call>", "</seed:tool_call>", preserved=("<seed:tool_call>", "</seed:tool_call>"),
    tags=Tags("<function=", ">", "<parameter=", (">",), "</parameter>", "</function>"),
)  # fmt: skip
GLM = Dialect(
    "glm", Shape.TAGGED, "<tool_call>", "</tool_call>",
    preserved=("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    tags=Tags("", "", "<arg_key>", ("</arg_key>", "<arg_value>"), "</arg_value>", breaks=""),
)  # fmt: skip
"""GLM 4.5 to 4.7; 4.7 writes no line breaks."""
MINIMAX = Dialect(
    "minimax", Shape.TAGGED, "<minimax:tool_call>", "</minimax:tool_call>", preserved=("<minimax:tool_call>", "</minimax:tool_call>"),
    tags=Tags('<invoke name="', '">', '<parameter name="', ('">',), "</parameter>", "</invoke>", nested=True),
)  # fmt: skip


def _dsml(name: str, section: str) -> Dialect:
    mark = "｜DSML｜"  # noqa: RUF001  the model's own character
    tags = Tags(
        f'<{mark}invoke name="', '">', f'<{mark}parameter name="', ('" string="',), f"</{mark}parameter>", f"</{mark}invoke>", typed=True, nested=True
    )
    return Dialect(name, Shape.TAGGED, f"<{mark}{section}>", f"</{mark}{section}>", preserved=(mark,), tags=tags, ends_thought=True)


DSML, DSML_4 = _dsml("deepseek-3.2", "function_calls"), _dsml("deepseek-4", "tool_calls")

KIMI_CALL, KIMI_ARGUMENTS, KIMI_CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
KIMI = Dialect(
    "kimi", Shape.SECTION, "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", short=KIMI_CALL, ends_thought=True,
    preserved=("<|tool_calls_section_begin|>", KIMI_CALL, KIMI_ARGUMENTS, KIMI_CALL_END, "<|tool_calls_section_end|>"),
)  # fmt: skip
