"""Bounds and steps of numbers as grammars: exactly the numbers that the schema allows, in any of their spellings without an exponent."""

import json
import re
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tests.server.harness import Server

from corral_server.schema_counts import UnusableSchemaError
from corral_server.schema_numbers import number_rule
from corral_server.schemas import schema_rules

TOKEN = re.compile(r'\s*("[^"]*"|\[[^\]]*\]|\{[\d,]+\}|[()|?]|[a-z][a-z0-9-]*)')


def matcher(schema: dict[str, Any]) -> re.Pattern[str] | None:
    """A regular expression of the same language; only for expressions without rules of their own."""
    expression = number_rule(schema, lambda name, text: pytest.fail(f"a rule {name}: {text}"))
    if expression is None:
        return None
    found, place = [], 0
    while place < len(expression):
        token = TOKEN.match(expression, place)
        assert token, expression[place:]
        place = token.end()
        found.append(f"(?:{re.escape(token[1][1:-1])})" if token[1].startswith('"') else token[1])
    return re.compile("".join(found))


def says(schema: dict[str, Any], value: Decimal) -> bool:
    """What JSON Schema says of a number."""

    def number(name: str) -> Decimal | None:
        return Decimal(repr(schema[name])) if name in schema else None

    low, high, over, under, step = (number(n) for n in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"))
    whole = schema["type"] == "number" or value == value.to_integral_value()
    inside = (low is None or value >= low) and (high is None or value <= high) and (over is None or value > over) and (under is None or value < under)
    return whole and inside and (step is None or (Fraction(value) / Fraction(step)).denominator == 1)


decimals = st.decimals(min_value=-2000, max_value=2000, places=3) | st.integers(-2000, 2000).map(Decimal)
bounds = decimals.map(float) | st.integers(-300, 300)
spellings = st.tuples(st.booleans(), st.integers(0, 2500), st.none() | st.text("0123456789", min_size=1, max_size=5)).map(
    lambda t: ("-" if t[0] else "") + str(t[1]) + (f".{t[2]}" if t[2] is not None else "")
)


@given(
    st.sampled_from(["minimum", "exclusiveMinimum", None]), bounds, st.sampled_from(["maximum", "exclusiveMaximum", None]), bounds,
    st.sampled_from(["number", "integer"]), spellings,
)  # fmt: skip
@example("minimum", 0, "maximum", 1, "number", "1.0")
@example("exclusiveMinimum", 0, "maximum", 1, "number", "0.0")
@example("minimum", 0.25, "exclusiveMaximum", 0.5, "number", "0.5")
@example("exclusiveMinimum", -1.5, "exclusiveMaximum", -1.25, "number", "-1.3")
@example("minimum", 1.05, "maximum", 1.05, "number", "1.05")
def test_a_spelling_fits_when_its_number_is_within_the_bounds(
    low: str | None, a: float, high: str | None, b: float, kind: str, spelling: str
) -> None:
    schema: dict[str, Any] = {"type": kind, **({low: a} if low else {}), **({high: b} if high else {})}
    try:
        pattern = matcher(schema)
    except UnusableSchemaError:
        # Then there is none at all.
        assert not says(schema, Decimal(spelling))
        return
    assume(pattern is not None)
    assert pattern is not None
    assume(kind == "number" or "." not in spelling)
    # Nobody needs to write minus nothing; whether one may is left open.
    assume(not (spelling.startswith("-") and Decimal(spelling) == 0))
    assert bool(pattern.fullmatch(spelling)) == says(schema, Decimal(spelling))


@given(st.sampled_from(["minimum", "exclusiveMinimum"]), bounds, st.sampled_from(["maximum", "exclusiveMaximum"]), bounds)
def test_the_ends_themselves_are_told_apart(low: str, a: float, high: str, b: float) -> None:
    assume(a < b)
    schema = {"type": "number", low: a, high: b}
    pattern = matcher(schema)
    assert pattern is not None
    for end in (a, b):
        for nudge in ("0", "0.0001", "-0.0001"):
            value = Decimal(repr(end)) + Decimal(nudge)
            assert bool(pattern.fullmatch(f"{value:f}")) == says(schema, value), value


@given(st.sampled_from([5, 7, 0.5, 0.25, 10, 0.1, 3]), st.integers(-20, 20), st.integers(0, 15), st.decimals(-40, 40, places=2))
def test_a_short_range_in_steps_is_listed(step: float, low: int, more: int, value: Decimal) -> None:
    schema = {"type": "number", "minimum": low, "maximum": low + more, "multipleOf": step}
    text = f"{value.normalize():f}" if value else "0"
    try:
        pattern = matcher(schema)
    except UnusableSchemaError:
        assert not says(schema, value)
        return
    assert pattern is not None
    assert bool(pattern.fullmatch(text)) == says(schema, value)


def walk(rules: dict[str, str], text: str, spelling: str) -> bool:
    """Whether an expression of literals, alternatives, options and names matches the whole spelling."""

    def ends(text: str, at: set[int]) -> set[int]:
        alternatives, depth, last, quoted = [], 0, 0, False
        for place, char in enumerate(text):
            quoted ^= char == '"'
            depth += (char == "(") - (char == ")") if not quoted else 0
            if char == "|" and depth == 0 and not quoted:
                alternatives.append(text[last:place])
                last = place + 1
        found: set[int] = set()
        for alternative in [*alternatives, text[last:]]:
            found |= sequence(alternative.strip(), at)
        return found

    def sequence(text: str, at: set[int]) -> set[int]:
        while text and at:
            if text.startswith('"'):
                close = text.index('"', 1)
                literal, text = text[1:close], text[close + 1 :]
                after = {p + len(literal) for p in at if spelling.startswith(literal, p)}
            elif text.startswith("("):
                depths = accumulate((char == "(") - (char == ")") for char in text)
                close = next(place for place, depth in enumerate(depths) if not depth)
                inner, text = text[1:close], text[close + 1 :]
                after = ends(inner, at)
            elif text.startswith("["):
                return set()
            else:
                name, _, text = text.partition(" ")
                after = {end for p in at if p <= len(spelling) for end in ends(rules[name], {p})}
            if text.startswith("?"):
                after, text = after | at, text[1:]
            at, text = after, text.strip()
        return at

    return len(spelling) in ends(text, {0})


@pytest.mark.parametrize(
    ("kind", "step"), [("integer", 7), ("integer", 4), ("integer", 0.5), ("number", 0.25), ("number", 0.1), ("number", 5), ("number", 1.5)]
)
@pytest.mark.parametrize("more", [{}, {"minimum": 0}], ids=["any", "not negative"])
def test_steps_without_an_end_are_counted_digit_by_digit(kind: str, step: float, more: dict[str, int]) -> None:
    schema = {"type": kind, "multipleOf": step, **more}
    rules: dict[str, str] = {}

    def add(name: str, text: str) -> str:
        rules[name] = text
        return name

    start = number_rule(schema, add)
    if start is None:
        assert kind == "integer"  # a step that every integer has
        assert more == {}
        return
    for text in rules.values():
        # No digit may lead where no number ends: the answer could not go on.
        assert set(re.findall(r"multiple-[\d-]+", text)) <= rules.keys()
        assert text
    for hundredths in [*range(-320, 3200), 123_400, 99_975]:
        value = Decimal(hundredths) / 100
        text = f"{value.normalize():f}" if value else "0"
        if not rules:
            continue
        assert walk(rules, start, text) == says(schema, value), text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number"},
        {"type": "number", "minimum": True},
        {"type": "number", "minimum": "1"},
        {"type": "number", "maximum": 1e300},
        {"type": "number", "minimum": 1e-30},
        {"type": "number", "multipleOf": 0},
        {"type": "number", "multipleOf": -3},
        {"type": "number", "multipleOf": 123_457},
    ],
)
def test_what_says_nothing_or_too_much_is_left_to_the_type(schema: dict[str, Any]) -> None:
    assert number_rule(schema, lambda *_: pytest.fail("a rule")) is None


def test_the_older_form_of_exclusive_bounds() -> None:
    pattern = matcher({"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": False})
    assert pattern is not None
    assert [n for n in range(-2, 12) if pattern.fullmatch(str(n))] == list(range(1, 10))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "number", "minimum": 2, "exclusiveMaximum": 2}, "no number is at least 2 and less than 2"),
        ({"type": "integer", "exclusiveMinimum": 2, "exclusiveMaximum": 3}, "no integer is at least 3 and at most 2"),
        ({"type": "number", "minimum": 1, "maximum": 4, "multipleOf": 5}, "is a multiple of 5"),
    ],
)
def test_bounds_that_nothing_fits_are_refused_with_their_place(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(UnusableSchemaError, match=words) as caught:
        schema_rules({"type": "object", "properties": {"share": schema}}, "a-")
    assert str(caught.value).startswith("properties.share of the schema: ")


@pytest.mark.model
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "number", "exclusiveMinimum": 0.5, "exclusiveMaximum": 0.75},
        {"type": "number", "minimum": -90, "maximum": -89.5},
        {"type": "number", "multipleOf": 0.25},
        {"type": "integer", "multipleOf": 7},
        {"type": "integer", "minimum": 10, "maximum": 60, "multipleOf": 25},
    ],
)
def test_an_answer_keeps_them(smol: Server, schema: dict[str, Any]) -> None:
    whole = {"type": "object", "properties": {"share": schema}, "required": ["share"], "additionalProperties": False}
    for seed in range(6):
        body = {
            "messages": [{"role": "user", "content": "Give me a number."}], "temperature": 2, "top_k": 0, "top_p": 1, "min_p": 0, "seed": seed,
            "max_tokens": 60, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": whole}},
        }  # fmt: skip
        choice = smol.http.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]
        if choice["finish_reason"] == "stop":
            share = json.loads(choice["message"]["content"], parse_float=Decimal, parse_int=Decimal)["share"]
            assert says(schema, share), share
