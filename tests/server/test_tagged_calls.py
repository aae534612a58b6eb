"""Calls whose arguments stand in tags of their own, as models write them: read in pieces of every size, with the types that the schemas say."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.test_dialects import THINK, taken_apart

from corral_server.dialects import formats, reader
from corral_server.dialects.formats import Dialect

PLAN = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["°C", "°F"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "limit": {"type": ["number", "string"]},
        "deep": {"$ref": "#/$defs/deep"},
        "sure": {"type": "boolean"},
    },
    "required": ["city", "days"],
    "$defs": {"deep": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}
FUNCTIONS = {"plan": PLAN, "ping": {"type": "object", "properties": {}}, "a.b-c": {"type": "object"}}
Call = tuple[str, dict[str, str]]


def read(dialect: Dialect, text: str, sizes: list[int] | None = None, **more) -> tuple[str, str, list[tuple[str, str]]]:
    """Words, thoughts and calls."""
    return taken_apart(reader.Reader(dialect, list(FUNCTIONS), list(FUNCTIONS.values()), **more), text, sizes)


def qwen(*calls: Call) -> str:
    def one(name: str, arguments: dict[str, str]) -> str:
        inner = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments.items())
        return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"

    return "\n".join(one(*call) for call in calls)


def seed(*calls: Call) -> str:
    def one(name: str, arguments: dict[str, str]) -> str:
        inner = "".join(f"<parameter={k}>{v}</parameter>\n" for k, v in arguments.items())
        return f"<seed:tool_call>\n<function={name}>\n{inner}</function>\n</seed:tool_call>"

    return "\n".join(one(*call) for call in calls)


def glm(*calls: Call) -> str:
    def one(name: str, arguments: dict[str, str]) -> str:
        inner = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in arguments.items())
        return f"<tool_call>{name}\n{inner}</tool_call>"

    return "\n".join(one(*call) for call in calls)


def glm_tight(*calls: Call) -> str:
    inner = ("".join(f"<arg_key>{k}</arg_key><arg_value>{v}</arg_value>" for k, v in arguments.items()) for _, arguments in calls)
    return "".join(f"<tool_call>{name}{arguments}</tool_call>" for (name, _), arguments in zip(calls, inner, strict=True))


def minimax(*calls: Call) -> str:
    inner = "".join(
        f'<invoke name="{name}">\n' + "".join(f'<parameter name="{k}">{v}</parameter>\n' for k, v in arguments.items()) + "</invoke>\n"
        for name, arguments in calls
    )
    return f"<minimax:tool_call>\n{inner}</minimax:tool_call>"


def dsml(*calls: Call, section: str = "function_calls") -> str:
    mark = "｜DSML｜"  # noqa: RUF001

    def argument(key: str, value: str) -> str:
        text = (
            "false"
            if key in ("days", "tags", "deep", "sure") or (key, value) == ("note", "null") or (key == "limit" and value[:1].isdigit())
            else "true"
        )
        return f'<{mark}parameter name="{key}" string="{text}">{value}</{mark}parameter>\n'

    inner = "".join(
        f'<{mark}invoke name="{name}">\n' + "".join(argument(k, v) for k, v in arguments.items()) + f"</{mark}invoke>\n" for name, arguments in calls
    )
    return f"<{mark}{section}>\n{inner}</{mark}{section}>"


def dsml_4(*calls: Call) -> str:
    return dsml(*calls, section="tool_calls")


FORMS = [
    (formats.QWEN_CODER, qwen), (formats.SEED, seed), (formats.GLM, glm), (formats.GLM, glm_tight), (formats.MINIMAX, minimax),
    (formats.DSML, dsml), (formats.DSML_4, dsml_4),
]  # fmt: skip
every_form = pytest.mark.parametrize(("dialect", "write"), FORMS, ids=lambda f: getattr(f, "__name__", ""))
VALUES = [
    ("city", "Oslo", '"Oslo"'),
    ("city", 'São "Paulo"\\\n\tx', '"São \\"Paulo\\"\\\\\\n\\tx"'),
    ("city", "5", '"5"'),
    ("city", "null", '"null"'),
    ("city", "", '""'),
    ("city", "\nx\n", '"\\nx\\n"'),
    ("city", "<b>a</b> </parameter> </arg_value> <parameter=", '"<b>a</b> </parameter> </arg_value> <parameter="'),
    ("days", "3", "3"),
    ("days", " -3 ", "-3"),
    ("days", "many", '"many"'),
    ("unit", "°C", '"°C"'),
    ("tags", '["a", "b>]"]', '["a", "b>]"]'),
    ("tags", "['a', 'it\\'s']", '["a", "it\'s"]'),
    ("note", "null", "null"),
    ("note", "nullify", '"nullify"'),
    ("note", "[1]", '"[1]"'),
    ("limit", "2.5", "2.5"),
    ("limit", "2", "2"),
    ("limit", "2 or 3", '"2 or 3"'),
    ("deep", '{"x": {"y": [1, 2]}}', '{"x": {"y": [1, 2]}}'),
    ("sure", "True", "true"),
    ("sure", "false", "false"),
]


@every_form
@pytest.mark.parametrize(("key", "value", "said"), VALUES, ids=[f"{k}={v!r}" for k, v, _ in VALUES])
def test_a_value_is_text_where_its_schema_says_so_and_json_elsewhere(dialect: Dialect, write, key: str, value: str, said: str):
    text = write(("plan", {"city": "A", key: value, "days": "1"})) if key == "tags" else write(("plan", {key: value}))
    _, _, ((name, arguments),) = read(dialect, text)
    assert name == "plan"
    assert f'"{key}": {said}' in arguments
    json.loads(arguments)
    for size in (1, 3, 7):
        assert read(dialect, text, [size] * len(text)) == read(dialect, text)


@every_form
def test_calls_come_apart_from_words_and_thoughts(dialect: Dialect, write):
    calls = write(("plan", {"city": "Oslo", "days": "2"}), ("ping", {}), ("a.b-c", {"any": "1"}))
    expected = [("plan", '{"city": "Oslo", "days": 2}'), ("ping", "{}"), ("a.b-c", '{"any": 1}' if dialect.name[:4] != "deep" else '{"any": "1"}')]
    text = f"<think>\nHm.</think>\n\nI look.\n{calls}\n"
    dice = random.Random(3)
    for sizes in ([len(text)], [1] * len(text), *([dice.randint(1, 9) for _ in text] for _ in range(20))):
        assert read(dialect, text, sizes, thinking=THINK) == ("I look.\n", "Hm.", expected)
    assert read(dialect, calls + " Done.")[0] == "Done."


@every_form
def test_what_looks_like_a_call_and_is_none_is_said(dialect: Dialect, write):
    unknown = write(("format_disk", {"city": "Oslo"}))
    for size in (1, 5, len(unknown)):
        assert read(dialect, unknown, [size] * len(unknown)) == (unknown, "", [])
    for words in (f"I write {dialect.opening} when I call.", dialect.opening, f"{dialect.opening} {dialect.opening}{dialect.closing}"):
        assert read(dialect, words) == (words, "", [])
    good = write(("ping", {}))
    assert read(dialect, f"{dialect.opening} oh {good}") == (f"{dialect.opening} oh ", "", [("ping", "{}")])
    said, _, calls = read(dialect, write(("ping", {}), ("format_disk", {})))
    assert "format_disk" in said
    assert calls == [("ping", "{}")]


@every_form
def test_a_call_that_is_cut_off_gives_what_came(dialect: Dialect, write):
    text = write(("plan", {"city": "Oslo", "days": "2"}))
    whole = '{"city": "Oslo", "days": 2}'
    for end in range(len(text)):
        said, _, calls = read(dialect, text[:end], [1] * end)
        assert calls or text.startswith(said)
        for _, arguments in calls:
            assert arguments == whole or not arguments or arguments.startswith('{"city": ')
            assert not arguments.endswith("}") or arguments == whole
    cut = text[: text.index("slo") + 1]
    assert read(dialect, cut)[2] == [("plan", '{"city": "Os')]


@every_form
def test_strings_stream_as_they_come(dialect: Dialect, write):
    value = 'He said "<b>no\n</b>".'
    head, _, tail = write(("plan", {"city": value})).partition(value)
    made = reader.Reader(dialect, list(FUNCTIONS), list(FUNCTIONS.values()))
    assert "".join(p.text for p in made.feed(head)) == 'plan{"city": "'
    came = ""
    for at, character in enumerate(value):
        came += "".join(json.loads(f'"{p.text}"') for p in made.feed(character))
        # Only what may be the tag's beginning is kept back.
        assert came == value[: at + 1].removesuffix("<").removesuffix("</").removesuffix("\n" if dialect.tags.padded else "<")
    assert "".join(p.text for p in made.feed(tail)) == '"}'


@every_form
@pytest.mark.parametrize("name", [" ", "a<b", ""])
def test_a_call_that_breaks_off_is_closed_and_the_rest_is_said(dialect: Dialect, write, name: str):
    text = write(("plan", {"city": "Oslo", "note": "x"})).replace("note", name) + " So."
    for size in (1, 6, len(text)):
        said, _, calls = read(dialect, text, [size] * len(text))
        assert calls == [("plan", '{"city": "Oslo"}')]
        assert said in text
        assert said.startswith(dialect.tags.key)
        assert said.endswith(" So.")


def test_the_tag_around_a_call_may_be_missing():
    bare = qwen(("plan", {"city": "Oslo"})).removeprefix("<tool_call>\n")
    assert read(formats.QWEN_CODER, "So: " + bare) == ("So: ", "", [("plan", '{"city": "Oslo"}')])
    assert read(formats.QWEN_CODER, bare.removesuffix("\n</tool_call>")) == ("", "", [("plan", '{"city": "Oslo"}')])
    for words in ("#include <functional> and <function=other>", "<function=", "<function=plan"):
        assert read(formats.QWEN_CODER, words) == (words, "", [])


@pytest.mark.parametrize(("dialect", "write"), [(formats.QWEN_CODER, qwen), (formats.DSML, dsml)], ids=["qwen", "dsml"])
def test_a_call_ends_a_thought_that_was_left_open(dialect: Dialect, write):
    text = "I call." + write(("ping", {}))
    for sizes in ([len(text)], [1] * len(text)):
        assert read(dialect, text, sizes, thinking=THINK, open_thought=True) == ("", "I call.", [("ping", "{}")])


PIECES = [
    "<tool_call>", "</tool_call>", "<seed:tool_call>", "</seed:tool_call>", "<minimax:tool_call>", "</minimax:tool_call>", "<function=plan>",
    "<function=", "</function>", "<parameter=city>", "<parameter=days>", "<parameter=", "</parameter>", "plan", "ping", '<invoke name="plan">',
    "</invoke>", '<parameter name="note">', '<parameter name="', "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "city", "limit", "\n", " ",
    "nul", "l", "tru", "e", "1", "[", "]", "{", "}", '"', "'", "\\", "<", "</", ">", "é😀", "<think>", "</think>",
    *dsml(("plan", {"limit": "1"})).split("\n"),
    "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "functions.plan:0", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
    "<|tool_calls_section_end|>", '{"city": "x"}',
]  # fmt: skip
SPOKEN = st.one_of(st.sampled_from(PIECES), st.text(max_size=3))


@settings(max_examples=500, deadline=None)
@given(
    form=st.sampled_from([*FORMS, (formats.KIMI, qwen)]),
    pieces=st.lists(SPOKEN, max_size=20),
    given=st.dictionaries(st.sampled_from(sorted(PLAN["properties"])), st.lists(SPOKEN, max_size=4).map("".join), max_size=4),
    sizes=st.lists(st.integers(1, 12), max_size=80),
    opened=st.booleans(),
)
def test_pieces_of_any_size_give_the_same_as_the_whole(form: tuple, pieces: list[str], given: dict[str, str], sizes: list[int], opened: bool):
    dialect, write = form
    half = len(pieces) // 2
    text = "".join(pieces[:half]) + write(("plan", given)) + "".join(pieces[half:])
    more = {"thinking": THINK, "open_thought": opened}
    whole = read(dialect, text, **more)
    assert read(dialect, text, sizes, **more) == whole
    assert read(dialect, text, [1] * len(text), **more) == whole


KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.plan:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    '<|tool_call_begin|>functions.a.b-c:1<|tool_call_argument_begin|>{"x": "<|tool_call_end|>"}<|tool_call_end|><|tool_calls_section_end|>'
)


def test_calls_in_a_section():
    expected = [("plan", "{}"), ("a.b-c", '{"x": "<|tool_call_end|>"}')]
    for size in (1, 4, len(KIMI)):
        assert read(formats.KIMI, "So." + KIMI, [size] * len(KIMI)) == ("So.", "", expected)
        bare = KIMI.removeprefix("<|tool_calls_section_begin|>")
        assert read(formats.KIMI, "Hm. " + bare, [size] * len(KIMI), thinking=THINK, open_thought=True) == ("", "Hm. ", expected)
    for none in (
        KIMI.replace("functions.plan", "functions.other"), KIMI.replace("{}", "[]"), KIMI[:60],
        "<|tool_calls_section_begin|><|tool_calls_section_end|>",
    ):  # fmt: skip
        said, _, calls = read(formats.KIMI, none)
        assert said.startswith(none[:60])
        assert calls in ([], expected[1:])
    assert read(formats.KIMI, KIMI[: KIMI.index("{}") + 1])[2] == [("plan", "{")]
