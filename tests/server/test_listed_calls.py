"""Calls whose arguments stand in one list, as Gemma and LFM2 write them: read in pieces of every size, and what a grammar lets through."""

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.test_dialects import THINK
from tests.server.test_tagged_calls import FUNCTIONS, PLAN, read
from tests.server.test_tagged_grammars import allows

from corral_server.dialects import formats
from corral_server.dialects.formats import Dialect
from corral_server.dialects.grammars import calls_grammar, ruled_schemas
from corral_server.dialects.pythonic import written
from corral_server.schemas import schema_rules


def gemma(*calls: tuple[str, str], dialect: Dialect = formats.GEMMA) -> str:
    return "".join(f"{dialect.opening}call:{name}{{{inside.replace('~', dialect.quote)}}}{dialect.closing}" for name, inside in calls)


function_gemma = functools.partial(gemma, dialect=formats.FUNCTION_GEMMA)


def lfm(*calls: tuple[str, str]) -> str:
    return f"<|tool_call_start|>[{', '.join(f'{name}({inside})' for name, inside in calls)}]<|tool_call_end|>"


BRACED = [
    ("", "{}"),
    ("city:~Oslo~", '{"city": "Oslo"}'),
    ('city:~a, }{"b" <|\n~,days:-3', '{"city": "a, }{\\"b\\" <|\\n", "days": -3}'),
    ("sure:true,note:null,limit:2.5", '{"sure": true, "note": null, "limit": 2.5}'),
    ("tags:[~a~,~b]~],deep:{x:{y:[1,2]},z:{}}", '{"tags": ["a", "b]"], "deep": {"x": {"y": [1, 2]}, "z": {}}}'),
    ("~city~: ~x~ , days : 7", '{"city": "x", "days": 7}'),
    ("days:many", '{"days": "many"}'),
]
PYTHON = [
    ("", "{}"),
    ('city="Oslo"', '{"city": "Oslo"}'),
    ("city='it\\'s \\\"so\\\"\\n\\x41\\u00e9', days=2", '{"city": "it\'s \\"so\\"\\nAé", "days": 2}'),
    ("city='it's \"so\"), x', days = 2", '{"city": "it\'s \\"so\\"), x", "days": 2}'),
    ("sure=True, note=None, limit=-2.5", '{"sure": true, "note": null, "limit": -2.5}'),
    ("tags=['a', \"b,)]\"], deep={'x': [True, false]}", '{"tags": ["a", "b,)]"], "deep": {"x": [true, false]}}'),
    ("days=range(3)", '{"days": "range(3)"}'),
]
ONE = [
    *((formats.GEMMA, gemma, *c) for c in BRACED),
    *((formats.FUNCTION_GEMMA, function_gemma, *c) for c in BRACED),
    *((formats.LFM, lfm, *c) for c in PYTHON),
]  # fmt: skip
FORMS = {
    formats.GEMMA: (gemma, "city:~Oslo~,days:2"),
    formats.FUNCTION_GEMMA: (function_gemma, "city:~Oslo~,days:2"),
    formats.LFM: (lfm, 'city="Oslo", days=2'),
}
every_form = pytest.mark.parametrize("dialect", FORMS, ids=lambda d: d.name)


@pytest.mark.parametrize(("dialect", "write", "inside", "expected"), ONE, ids=[f"{d.name}-{inside}" for d, _, inside, _ in ONE])
def test_arguments_come_as_json(dialect: Dialect, write, inside: str, expected: str):
    text = f"Hm. {write(('plan', inside))}"
    for size in (1, 2, 5, len(text)):
        assert read(dialect, text, [size] * len(text)) == ("Hm. ", "", [("plan", expected)])
    json.loads(expected)


@every_form
def test_several_calls_after_a_thought(dialect: Dialect):
    write, inside = FORMS[dialect]
    text = f"<think>\nHm.</think>\n\n{write(('plan', inside), ('ping', ''), ('a.b-c', ''))}\nDone."
    for size in (1, 7, len(text)):
        expected = [("plan", '{"city": "Oslo", "days": 2}'), ("ping", "{}"), ("a.b-c", "{}")]
        assert read(dialect, text, [size] * len(text), thinking=THINK) == ("Done.", "Hm.", expected)


@every_form
def test_what_looks_like_a_call_and_is_none_is_said(dialect: Dialect):
    write, inside = FORMS[dialect]
    for words in (
        write(("format_disk", inside)),
        f"I write {dialect.opening} when I call.",
        dialect.opening,
        f"{dialect.opening}call {dialect.closing}",
    ):
        for size in (1, 6, len(words)):
            assert read(dialect, words, [size] * len(words)) == (words, "", [])
    said, _, calls = read(dialect, f"{dialect.opening} oh {write(('ping', ''))}")
    assert (said, calls) == (f"{dialect.opening} oh ", [("ping", "{}")])
    said, _, calls = read(dialect, write(("ping", ""), ("format_disk", "")))
    assert "format_disk" in said
    assert calls == [("ping", "{}")]


@every_form
def test_a_call_that_is_cut_off_gives_what_came(dialect: Dialect):
    write, inside = FORMS[dialect]
    text, whole = write(("plan", inside)), '{"city": "Oslo", "days": 2}'
    for end in range(len(text)):
        said, _, calls = read(dialect, text[:end], [1] * end)
        assert calls or text.startswith(said)
        assert all(arguments == whole or (not said and not arguments.endswith("}")) for _, arguments in calls)
    cut = text[: text.index("slo") + 1]
    assert read(dialect, cut)[2] == [("plan", '{"city": "Os')]


@every_form
def test_a_call_that_breaks_off_is_closed_and_the_rest_is_said(dialect: Dialect):
    write, inside = FORMS[dialect]
    text = write(("plan", inside + (",tags:[~a~ ~b~]" if dialect is not formats.LFM else ", tags=[1], !oh")))
    said, _, ((_, arguments),) = read(dialect, text)
    assert said
    assert json.loads(arguments)["tags"] in (["a"], [1])


PIECES = [
    "<|tool_call>", "<tool_call|>", "<start_function_call>", "<end_function_call>", "<|tool_call_start|>", "<|tool_call_end|>", "call:plan{",
    "call:", "plan(",
    "[plan(", "city", "days:", "city=", '<|"|>', "<escape>", "'", '"', "\\", "\\x4", ",", ", ", ":", "=", "{", "}", "[", "]", "(", ")", "1", "-2.5",
    "True", "nul",
    "l", " ", "\n", "é😀", "<", "<|", "<think>", "</think>", "x",
]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(
    dialect=st.sampled_from(list(FORMS)),
    pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=24),
    begun=st.booleans(),
    sizes=st.lists(st.integers(1, 12), max_size=80),
)
def test_pieces_of_any_size_give_the_same_as_the_whole(dialect: Dialect, pieces: list[str], begun: bool, sizes: list[int]):
    head = dialect.opening + ("[plan(" if dialect is formats.LFM else "call:plan{")
    text = (head if begun else "") + "".join(pieces)
    whole = read(dialect, text, thinking=THINK)
    assert read(dialect, text, sizes, thinking=THINK) == whole
    assert read(dialect, text, [1] * len(text), thinking=THINK) == whole


LEAVES = st.none() | st.booleans() | st.integers(-9, 999) | st.text(max_size=6)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3))


@given(st.dictionaries(st.from_regex(r"[a-z_]\w{0,5}", fullmatch=True), VALUES, max_size=4))
def test_what_is_written_is_read(arguments: dict):
    text = f"<|tool_call_start|>[{written([('plan', arguments), ('ping', {})])}]<|tool_call_end|>"
    said, _, calls = read(formats.LFM, text)
    assert (said, [(name, json.loads(a)) for name, a in calls]) == ("", [("plan", arguments), ("ping", {})])


@functools.cache
def grammar_of(dialect: Dialect) -> str:
    schemas = [*FUNCTIONS.values(), SET]
    rules = "\n".join(schema_rules(schema, f"s{index}-") for index, schema in enumerate(ruled_schemas(dialect, schemas)))
    return calls_grammar(dialect, [*FUNCTIONS, "set"], schemas, rules, parallel=True, thinking=None)


SET = {
    "type": "object", "properties": {"mode": {"enum": ["on", "it's", 3, None]}, "level": {"type": "integer", "minimum": 1, "maximum": 9}, "any": {}},
    "required": ["mode"], "additionalProperties": {"type": "boolean"},
}  # fmt: skip
BRACED_CALLS = {
    True: [
        ("ping", ""), ("plan", "city:~a <|, '~,days:2"), ("plan", "city:~x~,days:2,note:null,sure:true,tags:[~a~,1],unit:~°C~"),
        ("plan", "city:~x~,days:2,deep:{x:{y:1}}"),
        ("set", "mode:~it's~"), ("set", "any:[{x:~y~}],level:3,mode:null,more:true"), ("a.b-c", "x:1,y:~z~"),
    ],
    False: [
        ("ping", "x:1"), ("plan", "city:~x~"), ("plan", "days:2,city:~x~"), ("plan", "city:~x~,days:two"), ("plan", "city:~x~,days:2,unit:~K~"),
        ("plan", "city:x,days:2"),
        ("set", "mode:~off~"), ("set", "level:0,mode:3"), ("set", "mode:3,mode:true"), ("pong", ""),
    ],
}  # fmt: skip
PYTHON_CALLS = {
    True: [
        ("ping", ""), ("plan", 'city="a \\" b", days=2'),
        ("plan", "city='x', days=2, unit=\"°C\", tags=[\"a\"], note=None, limit=1.5, deep={\"x\": 1}, sure=True"),
        ("set", "mode='it\\'s'"), ("set", 'mode="it\'s", level=3, any=[1], more=False'), ("a.b-c", "x=1, y='z'"), ("set", "mode=None"),
    ],
    False: [
        ("ping", "x=1"), ("plan", 'city="x"'), ("plan", 'days=2, city="x"'), ("plan", 'city="x", days="2"'), ("plan", "city='x', days=2, unit='K'"),
        ("plan", "city=x, days=2"),
        ("set", "mode='off'"), ("set", "mode=3, level=0"), ("set", "mode=3, mode=True"), ("pong", ""),
    ],
}  # fmt: skip


@pytest.mark.model
@every_form
def test_a_model_is_held_to_the_form(dialect: Dialect):
    write, grammar = FORMS[dialect][0], grammar_of(dialect)
    for fits, calls in (PYTHON_CALLS if dialect is formats.LFM else BRACED_CALLS).items():
        for call in calls:
            assert allows(write(call), grammar) is fits, call
            if fits and call[0] in FUNCTIONS:
                ((name, arguments),) = read(dialect, write(call))[2]
                assert name == call[0]
                assert not call[1] or json.loads(arguments)
    assert allows(write(*((c[0], c[1]) for c in (PYTHON_CALLS if dialect is formats.LFM else BRACED_CALLS)[True])), grammar)
    assert not allows("Hello", grammar)


def test_gemma_sorts_what_it_writes():
    assert list(PLAN["properties"]) != sorted(PLAN["properties"])
    grammar = grammar_of(formats.GEMMA)
    assert grammar.index('"city:"') < grammar.index('"deep:"') < grammar.index('"unit:"')
