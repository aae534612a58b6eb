"""`minProperties` and `maxProperties`: the grammar takes exactly the objects that have as many, and what it cannot hold is refused by its place."""

import itertools
import json
import re
from typing import Any

import jsonschema
import pytest
from tests.server.harness import Server
from tests.server.test_grammar_search import vocabulary

from corral_server.engine.grammar import Grammar
from corral_server.schema_counts import Counts, UnusableSchemaError, counted
from corral_server.schemas import schema_rules

WHOLE = {"type": "integer"}
THREE = {"a": WHOLE, "b": {"enum": ["x"]}, "c": {"type": "boolean"}}


def pattern(required: str, optional: str, free: str | None, counts: Counts) -> re.Pattern[str]:
    """The rules as a regular expression over one letter for each property."""
    rules: dict[str, str] = {}

    def add(rule: str) -> str:
        name = f"R{len(rules)}"
        rules[name] = rule
        return name

    text = counted(counts, required, optional, free, "", add)
    for name in reversed(rules):
        text = re.sub(rf"\b{name}\b", f"( {rules[name]} )", text)
    return re.compile(text.replace('"," space', ",").replace('""', "").replace(" ", ""))


@pytest.mark.parametrize("free", ["z", None])
@pytest.mark.parametrize("needed", [0, 1, 2])
@pytest.mark.parametrize("others", [0, 1, 2, 4])
def test_the_rules_take_exactly_the_objects_of_that_size(needed: int, others: int, free: str | None) -> None:
    required, optional = "pq"[:needed], "abcd"[:others]
    some = [chosen for size in range(others + 1) for chosen in itertools.combinations(optional, size)]
    objects = [[*required, *chosen, *["z"] * more] for chosen in some for more in range(5 if free else 1)]
    for low, high in itertools.product(range(7), [None, *range(7)]):
        counts = Counts(low, high)
        wanted = [found for found in objects if low <= len(found) and (high is None or len(found) <= high)]
        if (low <= high if high is not None else True) and needed <= (7 if high is None else high) and (free or low <= needed + others):
            rules = pattern(required, optional, free, counts)
            assert [found for found in objects if rules.fullmatch(",".join(found))] == wanted
        else:
            assert not wanted
            with pytest.raises(UnusableSchemaError, match="no object has"):
                pattern(required, optional, free, counts)


def test_any_number_of_properties_may_be_optional() -> None:
    assert schema_rules({"type": "object", "properties": {f"p{i}": WHOLE for i in range(600)}}, "")


def test_properties_without_order_or_twice_are_not_taken() -> None:
    rules = pattern("", "abc", None, Counts(2))
    assert not any(rules.fullmatch(text) for text in ("a", "b,a", "a,a", "a,b,", ",a,b", "a,b,c,c"))


def held(schema: dict[str, Any], text: str) -> bool:
    words = vocabulary("smollm2")
    grammar = Grammar(words, schema_rules(schema, ""))
    try:
        for token in words.tokenize(text, add_special=False, parse_special=False):
            if not grammar.allows(token):
                return False
            grammar.accept(token)
        return any(grammar.allows(token) for token in range(words.size) if words.ends(token))
    finally:
        grammar.close()


@pytest.mark.model
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        pytest.param({"maxProperties": 1}, [{}, {"k": 1}], [{"k": 1, "l": 2}], id="no type"),
        pytest.param(
            {"type": "object", "additionalProperties": WHOLE, "minProperties": 2, "maxProperties": 3},
            [{"k": 1, "l": 2}, {"k": 1, "l": 2, "m": 3}], [{}, {"k": 1}, {"k": 1, "l": "x"}, {"k": 1, "l": 2, "m": 3, "n": 4}], id="map",
        ),
        pytest.param({"type": "object", "properties": THREE, "maxProperties": 1}, [{}, {"a": 1}, {"c": True}], [{"a": 1, "b": "x"}], id="known"),
        pytest.param(
            {"type": "object", "properties": {"a": WHOLE}, "minProperties": 2}, [{"a": 1, "k": {}}, {"k": 1, "l": []}], [{}, {"a": 1}], id="opened",
        ),
        pytest.param(
            {"anyOf": [{"type": "object", "properties": THREE}, {"type": "null"}, True], "minProperties": 3},
            [{"a": 1, "b": "x", "c": True}, None, {"k": 1, "l": 2, "m": 3}], [{"a": 1}, {}], id="any of",
        ),
        pytest.param({"type": ["object", "integer"], "properties": THREE, "maxProperties": 0}, [{}, 5], [{"a": 1}], id="types"),
        pytest.param({"enum": [{"a": 1}, {"a": 1, "b": 2}, "x"], "minProperties": 2}, [{"a": 1, "b": 2}, "x"], [{"a": 1}], id="values"),
        pytest.param(
            {"allOf": [{"properties": {"a": WHOLE}}, {"$ref": "#/$defs/b"}], "$defs": {"b": {"properties": {"b": WHOLE}, "minProperties": 2}}},
            [{"a": 1, "b": 2}], [{"a": 1}], id="all of",
        ),
        pytest.param(
            {"properties": {"v": WHOLE, "next": {"$ref": "#"}}, "minProperties": 1, "maxProperties": 1, "additionalProperties": False},
            [{"v": 1}, {"next": {"next": {"v": 2}}}], [{}, {"v": 1, "next": {"v": 1}}, {"next": {}}], id="itself",
        ),
        pytest.param(
            {"properties": {"x": {"$ref": "#/$defs/t", "maxProperties": 1}}, "required": ["x"], "$defs": {"t": {"type": "object"}}},
            [{"x": {}}, {"x": {"k": 1}}], [{}, {"x": {"k": 1, "l": 2}}], id="beside a reference",
        ),
        pytest.param(
            {"allOf": [{"properties": THREE}, {"anyOf": [{"properties": {}, "maxProperties": 1}]}]}, [{}, {"a": 1}], [{"a": 1, "b": "x"}],
            id="any of all of",
        ),
        pytest.param({"type": "object", "maxProperties": 1000}, [{}, {str(i): i for i in range(30)}], [[]], id="many"),
        pytest.param({"items": WHOLE, "maxProperties": 1}, [[1, 2]], [{}], id="of no object"),
    ],
)  # fmt: skip
def test_a_schema_is_held(schema: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not held(schema, json.dumps(value))] == []
    assert [value for value in bad if held(schema, json.dumps(value))] == []


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "object", "maxProperties": -1}, "maxProperties is -1"),
        ({"type": "object", "minProperties": "2"}, "minProperties is 2"),
        ({"type": "object", "minProperties": 3, "maxProperties": 2}, "no object has minProperties 3 and maxProperties 2"),
        ({"type": "object", "maxProperties": 5000}, "maxProperties 5000 cannot be held"),
        ({"type": "array", "items": {"properties": THREE, "required": ["a", "b"], "maxProperties": 1}}, "items of the schema: no object"),
        ({"anyOf": [{"$ref": "#"}, {"properties": THREE, "additionalProperties": False, "minProperties": 4}]}, "anyOf[1] of the schema: no object"),
        ({"properties": {"x": {"const": {}, "minProperties": 1}}}, "properties.x of the schema: none of the values fits"),
        ({"properties": {f"p{i}": WHOLE for i in range(60)}, "maxProperties": 20}, "maxProperties 20 cannot be held"),
    ],
)
def test_what_cannot_be_held_is_refused_by_its_place(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(UnusableSchemaError) as caught:
        schema_rules(schema, "")
    assert str(caught.value).startswith(says)


@pytest.mark.model
def test_items_that_nothing_is_said_about_are_counted() -> None:
    for schema in ({"type": "array", "items": {}, "minItems": 2}, {"type": "array", "minItems": 2}, {"items": True, "minItems": 2}):
        assert held(schema, '[1, "x"]')
        assert not held(schema, "[1]")
    assert held({"type": "object", "properties": {"x": {"description": "anything"}}}, '{"x": "y"}')


def test_bounds_that_say_nothing_change_nothing() -> None:
    for schema in ({"type": "object", "properties": THREE, "required": ["a"]}, {"type": "object"}, {"type": "string"}):
        assert schema_rules({**schema, "minProperties": 0}, "") == schema_rules(schema, "")
    bounded = {"type": "object", "properties": THREE, "required": ["a"], "minProperties": 1, "maxProperties": 3}
    assert schema_rules(bounded, "") == schema_rules({"type": "object", "properties": THREE, "required": ["a"]}, "")


ASK = {"messages": [{"role": "user", "content": "Answer in JSON."}], "max_tokens": 60, "temperature": 1.0}


@pytest.mark.model
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_answer_has_as_many_properties(smol: Server, seed: int) -> None:
    schema = {"type": "object", "properties": THREE, "minProperties": 2, "maxProperties": 2, "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    choice = smol.http.post("/v1/chat/completions", json={**ASK, "seed": seed, "response_format": form}).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["message"]["content"]), schema)


@pytest.mark.model
def test_a_tool_whose_schema_cannot_be_held_is_named(smol: Server) -> None:
    bad = {"type": "object", "properties": {"x": {"type": "object", "maxProperties": 5000}}}
    tools = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in (("good", {"type": "object"}), ("wide", bad))]
    refused = smol.http.post("/v1/chat/completions", json={**ASK, "tools": tools, "tool_choice": "required"})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "tools")
    assert "wide: properties.x of the schema: maxProperties 5000 cannot be held" in error["message"]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": bad}}
    refused = smol.http.post("/v1/chat/completions", json={**ASK, "response_format": form})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
