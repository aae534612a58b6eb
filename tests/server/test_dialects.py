"""Answers of models in their own forms of tool calls, read in pieces of every size; and the grammars that hold a model to such a form."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral_server.dialects import formats, reader
from corral_server.dialects.formats import Dialect, Thinking

NAMES = ("get_weather", "add")
THINK = Thinking("<think>", "</think>")


def read(dialect: Dialect | None, text: str, sizes: list[int] | None = None, **more) -> tuple[str, str, list[tuple[str, str]]]:
    return taken_apart(reader.Reader(dialect, NAMES, **more), text, sizes)


def taken_apart(made: reader.Reader, text: str, sizes: list[int] | None = None) -> tuple[str, str, list[tuple[str, str]]]:
    """Words, thoughts and calls of a text that comes in pieces of these sizes."""
    parts = []
    at = 0
    for size in sizes or [len(text)]:
        parts += made.feed(text[at : at + size])
        at += size
    parts += made.feed(text[at:]) + made.finish()
    calls: list[list[str]] = []
    for part in parts:
        if part.kind == "call":
            assert part.call == len(calls)
            calls.append([part.text, ""])
        elif part.kind == "arguments":
            calls[part.call][1] += part.text
    say = "".join(p.text for p in parts if p.kind == "text")
    return say, "".join(p.text for p in parts if p.kind == "thought"), [(n, a) for n, a in calls]


HARMONY_TEXT = (
    "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
    '<|constrain|>json<|message|>{"city": "Oslo"}'
)
OSLO, BOTH = [("get_weather", '{"city": "Oslo"}')], [("get_weather", '{"city": "Oslo"}'), ("add", '{"a": [1, {"b": "}"}]}')]
CASES = [
    ("hermes", formats.HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>', ("", "", OSLO)),
    (
        "hermes, two after words",
        formats.HERMES,
        (
            'Let me see.<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>\n<tool_call>\n'
            '{"arguments": {"a": [1, {"b": "}"}]}, "name": "add"}</tool_call>'
        ),
        ("Let me see.", "", BOTH),
    ),
    (
        "hermes, arguments in a string",
        formats.HERMES,
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        ("", "", [("add", '{"a": 1}')]),
    ),
    ("hermes, broken", formats.HERMES, "I say <tool_call>nothing</tool_call> more", ("I say <tool_call>nothing</tool_call> more", "", [])),
    ("llama", formats.LLAMA3, '{"name": "get_weather", "parameters": {"city": "Oslo"}}', ("", "", OSLO)),
    ("llama, marked", formats.LLAMA3, '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Oslo"}}', ("", "", OSLO)),
    ("llama, other JSON", formats.LLAMA3, '{"name": "Ada", "age": 36}', ('{"name": "Ada", "age": 36}', "", [])),
    ("llama, words", formats.LLAMA3, "It is warm {today}.", ("It is warm {today}.", "", [])),
    (
        "mistral",
        formats.MISTRAL,
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "a"}, {"name": "add", "arguments": {"a": [1, {"b": "}"}]}}]',
        ("", "", BOTH),
    ),
    (
        "mistral, names apart",
        formats.MISTRAL_ARGS,
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]add[CALL_ID]x[ARGS]{"a": [1, {"b": "}"}]}',
        ("", "", BOTH),
    ),
    (
        "deepseek 3",
        formats.DEEPSEEK,
        (
            f"{formats.DEEPSEEK_ALL}{formats.DEEPSEEK_CALL}function{formats.DEEPSEEK_SEP}get_weather\n```json\n"
            f'{{"city": "Oslo"}}\n```{formats.DEEPSEEK_CALL_END}{formats.DEEPSEEK_ALL_END}'
        ),
        ("", "", OSLO),
    ),
    (
        "deepseek 3.1",
        formats.DEEPSEEK,
        (
            f'ok{formats.DEEPSEEK_ALL}{formats.DEEPSEEK_CALL}get_weather{formats.DEEPSEEK_SEP}{{"city": "Oslo"}}{formats.DEEPSEEK_CALL_END}'
            f'{formats.DEEPSEEK_CALL}add{formats.DEEPSEEK_SEP}{{"a": [1, {{"b": "}}"}}]}}{formats.DEEPSEEK_CALL_END}{formats.DEEPSEEK_ALL_END}'
        ),
        ("ok", "", BOTH),
    ),
    ("gpt-oss", formats.HARMONY, HARMONY_TEXT, ("", "Need it.", OSLO)),
    ("gpt-oss, to whom first", formats.HARMONY, ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Oslo"}', ("", "", OSLO)),
    (
        "gpt-oss, to whom before the channel",
        formats.HARMONY,
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>"
            '{"city": "Oslo"}'
        ),
        ("", "Hm.", OSLO),
    ),
    ("gpt-oss, to nobody", formats.HARMONY, "<|channel|>commentary to=assistant<|message|>So.<|end|>", ("So.", "", [])),
    ("gpt-oss, words", formats.HARMONY, " to=be", (" to=be", "", [])),
    (
        "gpt-oss, an answer",
        formats.HARMONY,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Warm < cold.",
        ("Warm < cold.", "Hm.", []),
    ),
    ("granite", formats.GRANITE, '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Oslo"}}]', ("", "", OSLO)),
    ("nemotron", formats.NEMOTRON, '<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Oslo"}}]</TOOLCALL>', ("", "", OSLO)),
    (
        "command r",
        formats.COMMAND,
        '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Oslo"}}]<|END_ACTION|>',
        ("", "", OSLO),
    ),
    ("firefunction", formats.FUNCTOOLS, 'Yes. functools[{"name": "get_weather", "arguments": {"city": "Oslo"}}]', ("Yes.", "", OSLO)),
    ("our own, a call", formats.GENERIC, '{"tool_call": {"name": "get_weather", "arguments": {"city": "Oslo"}}}', ("", "", OSLO)),
    ("our own, words", formats.GENERIC, '{"response": "It\'s \\"warm\\"\\n\\u00e9\\ud83d\\ude00!"}', ('It\'s "warm"\né😀!', "", [])),
    ("our own, neither", formats.GENERIC, '{"mood": "fine"}', ('{"mood": "fine"}', "", [])),
]


@pytest.mark.parametrize(("dialect", "text", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_an_answer_reads_the_same_however_it_comes(dialect: Dialect, text: str, expected: tuple):
    harmony = dialect is formats.HARMONY
    dice = random.Random(7)
    for sizes in ([len(text)], [1] * len(text), *([dice.randint(1, 9) for _ in text] for _ in range(20))):
        assert read(dialect, text, sizes, thinking=THINK, harmony=harmony) == expected


ALL = [getattr(formats, name) for name in dir(formats) if isinstance(getattr(formats, name), Dialect)]
FRAGMENTS = sorted(
    {mark for d in ALL for mark in (d.opening, d.closing, d.separator, *d.preserved) if mark}
    | {f'{{"{d.name_key}": "add", "{d.arguments_key}": {{"a": 1}}}}' for d in ALL}
    | {
        "<think>",
        "</think>",
        "function",
        "add",
        "get_weather",
        "```json\n",
        "\n```",
        " ",
        "\n",
        "{",
        "}",
        "[",
        "]",
        '"',
        ",",
        ":",
        "\\",
        "é😀",
        "<",
        ";",
    }
    | {'"name": "add"', '"arguments": ', '{"a": "}"}', '{"response": "', '{"tool_call": ', '{"tool_calls": [', "\\ud83d\\ude00", "\\ud83d", "\\u00e9"}
    | {"<|channel|>analysis<|message|>", "<|channel|>commentary to=functions.add <|constrain|>json<|message|>", "<|channel|>final<|message|>"}
)


@settings(max_examples=400, deadline=None)
@given(
    dialect=st.sampled_from([None, *ALL]),
    pieces=st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=14),
    sizes=st.lists(st.integers(1, 12), max_size=60),
    thinks=st.booleans(),
    opened=st.booleans(),
)
def test_pieces_of_any_size_give_the_same_as_the_whole(dialect: Dialect | None, pieces: list[str], sizes: list[int], thinks: bool, opened: bool):
    text, harmony = "".join(pieces), dialect is formats.HARMONY
    more = {"thinking": THINK if thinks else None, "open_thought": thinks and opened, "harmony": harmony}
    whole = read(dialect, text, **more)
    assert read(dialect, text, sizes, **more) == whole
    assert read(dialect, text, [1] * len(text), **more) == whole


@pytest.mark.parametrize("dialect", [d for d in ALL if d.shape in (formats.Shape.OBJECTS, formats.Shape.ARRAY)], ids=lambda d: d.name)
def test_a_mark_without_a_call_hides_none_that_follows(dialect: Dialect):
    call = f'{{"{dialect.name_key}": "add", "{dialect.arguments_key}": {{"a": 1}}}}'
    text = f"{dialect.opening}{{oh {dialect.opening}{call}{dialect.closing}"
    for sizes in ([len(text)], [1] * len(text)):
        assert read(dialect, text, sizes) == (f"{dialect.opening}{{oh ", "", [("add", '{"a": 1}')])


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_thoughts_are_told_apart(size: int):
    def said(text: str, **more) -> tuple:
        return read(None, text, [size] * len(text), **more)[:2]

    assert said("<think>\nI am\n</think>\n\nYes.", thinking=THINK) == ("Yes.", "I am\n")
    assert said("So it is.</think>Yes.", thinking=THINK, open_thought=True) == ("Yes.", "So it is.")
    assert said("No <think> here", thinking=THINK) == ("No <think> here", "")
    assert said("<think>cut off", thinking=THINK) == ("", "cut off")
    assert said(" <thin air", thinking=THINK) == (" <thin air", "")
    assert said("<think>x</think>y") == ("<think>x</think>y", "")


def test_a_thought_in_a_channel():
    marks = formats.thinking_of("<|channel>thought\n<channel|>")
    assert set(marks.preserved) == {"<|channel>", "<channel|>"}
    text = "<|channel>thought\nHm.<channel|>Yes.<|tool_call>call:add{}<tool_call|>"
    for size in (1, 4, len(text)):
        assert read(formats.GEMMA, text, [size] * len(text), thinking=marks) == ("Yes.", "Hm.", [("add", "{}")])


def test_a_thought_comes_before_a_call():
    text = '<think>Hm.</think>\n<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    assert read(formats.HERMES, text, [1] * len(text), thinking=THINK) == ("", "Hm.", [("add", "{}")])


@pytest.mark.parametrize(
    ("template", "dialect"),
    [
        ("{% if tools %}<tools></tools>…<tool_call>{% endif %}", formats.HERMES),
        ("<|start_header_id|>… tools … parameters", formats.LLAMA3),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", formats.MISTRAL),
        ("[TOOL_CALLS] [ARGS]", formats.MISTRAL_ARGS),
        (formats.DEEPSEEK_ALL, formats.DEEPSEEK),
        ("<|start|>assistant<|channel|>", formats.HARMONY),
        ("functions … ' functools[' + calls", formats.FUNCTOOLS),
        ("… <tool_call>\n<function=example>\n<parameter=", formats.QWEN_CODER),
        ("… <seed:tool_call>\n<function=", formats.SEED),
        ("… <tool_call>{name}\n<arg_key>", formats.GLM),
        ('set begin = "<minimax:tool_call>" … <invoke name=', formats.MINIMAX),
        ("set token = '｜DSML｜' … '<' + token + 'function_calls>'", formats.DSML),  # noqa: RUF001
        ("set token = '｜DSML｜' … '<' + token + 'tool_calls>'", formats.DSML_4),  # noqa: RUF001
        ("<|tool_calls_section_begin|><|tool_call_begin|>", formats.KIMI),
        ("namespace ~ '<tool_call>' … '<invoke name='", formats.GENERIC),
        ("'<|tool_call>call:' + name + '{'", formats.GEMMA),
        ("<start_function_call>call:", formats.FUNCTION_GEMMA),
        ("List of tools: <|tool_list_start|>[", formats.LFM),
        ('<|im_start|> … "List of tools: ["', formats.LFM),
        ("within <tool_call></tool_call>: <tool_calls>[{", formats.APRIEL),
        ("<|start_header_id|> … tools … parameters … <function=", formats.GENERIC),
        ("<|im_start|>", formats.GENERIC),
    ],
)
def test_a_template_tells_its_dialect(template: str, dialect: Dialect):
    assert formats.dialect_of(template) is dialect
