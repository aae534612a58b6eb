"""Grammars of calls with tagged arguments, asked of llama.cpp itself: what a model may write then, and that it is read as what was meant."""

import functools
import json

import pytest
from tests.server import test_tagged_calls as tagged
from tests.support.models import smollm2

from corral_server.dialects import formats
from corral_server.dialects.formats import Dialect, Thinking
from corral_server.dialects.free_text import literal, name_but
from corral_server.dialects.grammars import calls_grammar, ruled_schemas
from corral_server.engine.grammar import Grammar
from corral_server.engine.library import Log
from corral_server.engine.model import load_model
from corral_server.engine.vocabulary import Vocabulary
from corral_server.schemas import schema_rules

pytestmark = pytest.mark.model

NAMES, SCHEMAS = list(tagged.FUNCTIONS), list(tagged.FUNCTIONS.values())
SET = {
    "type": "object",
    "properties": {
        "mode": {"enum": ["on", "off", 3, None]}, "where": {"anyOf": [{"const": "a <b>"}, {"type": "integer", "minimum": 1, "maximum": 9}]},
        "again": {"$ref": "#"},
    },
    "required": ["mode"], "additionalProperties": {"type": "integer"},
}  # fmt: skip


@functools.cache
def vocabulary() -> Vocabulary:
    return Vocabulary(load_model(str(smollm2()), Log(), vocab_only=True))


@functools.cache
def grammar_of(dialect: Dialect, thinking: Thinking | None = None, *, parallel: bool = True, own: bool = False) -> str:
    names, schemas = (["set"], [SET]) if own else (NAMES, SCHEMAS)
    rules = "\n".join(schema_rules(schema, f"s{index}-") for index, schema in enumerate(ruled_schemas(dialect, schemas)))
    return calls_grammar(dialect, names, schemas, rules, parallel=parallel, thinking=thinking)


def allows(text: str, grammar: str) -> bool:
    """Whether a whole answer may be this text."""
    words = vocabulary()
    made = Grammar(words, grammar)
    try:
        for token in words.tokenize(text, add_special=False, parse_special=False):
            if not made.allows(token):
                return False
            made.accept(token)
        return made.allows(words.tokenize("<|im_end|>", add_special=False, parse_special=True)[0])
    finally:
        made.close()


CITY = {"city": "Oslo 'x' <b>\n</", "days": "2"}
GOOD = [
    [("ping", {})],
    [("plan", CITY)],
    [("plan", {**CITY, "unit": "°F", "tags": '["a"]', "note": "null", "limit": "2.5", "deep": '{"x": 1}', "sure": "true"})],
    [("ping", {}), ("plan", CITY)],
    [("a.b-c", {"what": "ever", "more": "1"})],
]
BAD = [
    [("plan", {"days": "2"})],
    [("plan", {"days": "2", "city": "Oslo"})],
    [("plan", {**CITY, "unit": "K"})],
    [("plan", {**CITY, "days": "two"})],
    [("plan", {**CITY, "sure": "maybe"})],
    [("plan", {**CITY, "other": "1"})],
    [("ping", {"x": "1"})],
    [("pong", {})],
]


@tagged.every_form
def test_a_model_is_held_to_the_form(dialect: Dialect, write):
    grammar = grammar_of(dialect)
    for calls in GOOD:
        text = write(*calls)
        assert allows(text, grammar), text
        read = tagged.read(dialect, text)
        assert (read[0], [name for name, _ in read[2]]) == ("", [name for name, _ in calls])
        assert all(json.loads(arguments).keys() == given.keys() for (_, arguments), (_, given) in zip(read[2], calls, strict=True))
    for calls in BAD:
        assert not allows(write(*calls), grammar), write(*calls)
    assert not allows("", grammar)
    assert not allows("Hello", grammar)


@tagged.every_form
def test_one_call_is_one(dialect: Dialect, write):
    grammar = grammar_of(dialect, parallel=False)
    assert allows(write(("ping", {})), grammar)
    assert not allows(write(("ping", {}), ("ping", {})), grammar)


@tagged.every_form
def test_listed_strings_stand_as_they_are(dialect: Dialect, write):
    if dialect.tags.typed:
        write = functools.partial(typed, dialect)
    grammar = grammar_of(dialect, own=True)
    for given in ({"mode": "on"}, {"mode": "3"}, {"mode": "null", "where": "a <b>"}, {"mode": "off", "where": "7", "x_1": "5", "y": "6"}):
        assert allows(write(("set", given)), grammar), given
    for given in ({"mode": '"on"'}, {"mode": "4"}, {"mode": "on", "where": "0"}, {"mode": "on", "x": "y"}):
        assert not allows(write(("set", given)), grammar), given


def typed(dialect: Dialect, *calls: tagged.Call) -> str:
    """DSML with the attribute that these values have."""
    text = tagged.dsml(*calls, section=dialect.opening.split("｜")[-1][:-1])  # noqa: RUF001
    for value in ("3", "null", "4", "7", "0", "5", "6"):
        text = text.replace(f'string="true">{value}<', f'string="false">{value}<')
    return text


@pytest.mark.parametrize("closing", ["</think>", "[/THINK]", "--aab--"])
def test_a_thought_may_hold_anything_but_its_end(closing: str):
    grammar = grammar_of(formats.QWEN_CODER, Thinking("<think>", closing))
    call = tagged.qwen(("ping", {}))
    for thought in ("", "Hm.", f"a {closing[:-1]} b", closing[:2] * 3, "a" * 5):
        assert allows(f"{thought}{closing}\n\n{call}", grammar), thought
        assert not allows(f"{thought}{closing} so {closing}{call}", grammar), thought


def test_calls_in_a_section():
    grammar = grammar_of(formats.KIMI)
    text = "<|tool_calls_section_begin|><|tool_call_begin|>functions.plan:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
    assert allows(text.replace("{}", '{"city": "x", "days": 2}'), grammar)
    assert allows(text.replace("plan:0", "ping:12"), grammar)
    assert not allows(text, grammar)
    assert not allows(text.replace("plan", "pong"), grammar)


def test_a_name_that_is_taken_is_no_other():
    grammar = f"root ::= {name_but(['city', 'cities', 'x', 'no name', 'a' * 100])}"
    for name in ("c", "cit", "citie", "cityx", "y", "xx", "c-1", "no"):
        assert allows(name, grammar), name
    for name in ("city", "cities", "x", "", "1 2"):
        assert not allows(name, grammar), name
    # A grammar may not grow beyond its bound for what hardly ever comes.
    assert name_but([f"parameter_{i}" for i in range(100)]) == ""


def test_any_text_is_a_literal():
    text = 'a"b\\c\nd\te\x0b\x0c\x1f\x7f[é]'
    assert allows(text, f"root ::= {literal(text)}")


def test_rules_are_made_of_what_is_no_free_text():
    assert ruled_schemas(formats.QWEN_CODER, [tagged.FUNCTIONS["ping"], {"type": "object", "properties": {"a": {"type": "string"}}}]) == []
    two = ruled_schemas(formats.QWEN_CODER, [tagged.PLAN, tagged.PLAN])
    assert [s.get("type") for s in two] == ["integer", "array", "object", "boolean"]
    assert ruled_schemas(formats.HERMES, [tagged.PLAN]) == [tagged.PLAN]
