"""What JSON schemas say beyond types: names of properties, values that come once, references, constants with signs that JSON escapes.

Each grammar takes just the values that the schema takes; and whatever a grammar lets a model write, at random, is valid by an independent validator.
"""

import json
from typing import Any

import jsonschema_rs
import numpy as np
import numpy.typing as npt
import pytest
from tests.server.test_grammar_search import vocabulary
from tests.server.test_schema_counts import held

from corral_server.engine.grammar import Grammar
from corral_server.schema_counts import UnusableSchemaError
from corral_server.schemas import schema_rules

Schema = dict[str, Any]
WHOLE = {"type": "integer"}
COLOURS = ["red", "green", "blue"]

CASES = [
    pytest.param(
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": WHOLE},
        [{}, {"a": 1}, {"a": 1, "b": 2}, {"b": 2}], [{"c": 1}, {"a": "x"}], id="listed names",
    ),
    pytest.param(
        {"type": "object", "propertyNames": {"$ref": "#/$defs/K"}, "required": ["a", "b"], "$defs": {"K": {"enum": ["a", "b"]}}},
        [{"a": 1, "b": "x"}], [{}, {"a": 1}, {"a": 1, "b": 1, "c": 1}], id="listed names that are required",
    ),
    pytest.param(
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$", "maxLength": 3}, "additionalProperties": WHOLE, "minProperties": 1},
        [{"ab": 1}, {"x": 1, "y": 2}], [{}, {"A": 1}, {"abcd": 1}], id="names by a pattern",
    ),
    pytest.param(
        {"properties": {"a": WHOLE, "long": WHOLE}, "propertyNames": {"maxLength": 2}}, [{"a": 1}], [{"long": 1}], id="a listed name may not be",
    ),
    pytest.param(
        {"properties": {"n_a": {"minimum": 3}}, "patternProperties": {"^n_": WHOLE}, "required": ["n_a"]},
        [{"n_a": 3}, {"n_a": 4, "n_b": 1}], [{"n_a": 2}, {"n_a": 3.5}], id="a listed name of a pattern",
    ),
    pytest.param({"enum": [1, 2, 3, "x"], "exclusiveMinimum": 1, "exclusiveMaximum": 3}, [2, "x"], [1, 3], id="values within bounds"),
    pytest.param(
        {
            "type": "array", "anyOf": [{"anyOf": [{"type": "null"}, {"maxItems": 1}]}, {"$ref": "#/$defs/A"}],
            "$defs": {"A": {"anyOf": [{"const": [1, 2]}]}},
        },
        [[], [1], [1, 2]], [None, [1, 3]], id="ways within ways",
    ),
    pytest.param({"type": "object", "patternProperties": {"^x-": WHOLE}}, [{}, {"x-a": 1}, {"x-a": 1, "x-b": 2}], [{"x-a": "b"}], id="patterns"),
    pytest.param(
        {
            "type": "object", "properties": {"id": WHOLE}, "required": ["id"], "additionalProperties": False,
            "patternProperties": {"^x-": {}, "^n_": WHOLE},
        },
        [{"id": 1}, {"id": 1, "x-q": [1]}, {"id": 2, "n_a": 3, "x-": None}], [{"x-a": 1}, {"id": 1, "n_a": "s"}, {"id": 1, "y": 1}],
        id="closed but for patterns",
    ),
    pytest.param({"type": "object", "required": ["q"]}, [{"q": 1}, {"q": {"a": []}}], [{}, {"p": 1}], id="only required"),
    pytest.param({"properties": {"a": WHOLE}, "required": ["a", "z"]}, [{"a": 1, "z": "t"}], [{"a": 1}], id="required and not listed"),
    pytest.param(
        {"type": "array", "items": {"enum": COLOURS}, "uniqueItems": True, "minItems": 2},
        [["red", "green"], ["blue", "red", "green"]], [["red"], ["red", "red"], ["red", "green", "red"], []], id="unique",
    ),
    pytest.param(
        {"items": {"enum": ["a", "bb", "cc"], "minLength": 2}, "uniqueItems": True}, [[], ["cc", "bb"]], [["a"], ["bb", "bb"]], id="unique that fit",
    ),
    pytest.param({"items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 1}, [[], [True]], [[True, True], [True, False]],
        id="unique booleans"),
    pytest.param(
        {
            "type": "object", "required": ["status", "x", "y"], "properties": {
                "status": {"enum": ["a"]}, "x": {"$ref": "#/$defs/status"}, "y": {"$ref": "#/$defs/Deep/properties/status"},
            }, "$defs": {"status": {"enum": ["b"]}, "Deep": {"properties": {"status": {"enum": ["c"]}}}},
        },
        [{"status": "a", "x": "b", "y": "c"}], [{"status": "a", "x": "a", "y": "c"}, {"status": "a", "x": "b", "y": "b"}],
        id="references of one last name",
    ),
    pytest.param(
        {"type": "object", "required": ["value", "o"], "properties": {"value": {"type": "integer", "minimum": 3}, "o": {"type": "object"}}},
        [{"value": 3, "o": {"k": "text"}}], [{"value": 2, "o": {}}], id="a name of the converter's own",
    ),
    pytest.param(
        {"$ref": "#/$defs/value", "$defs": {"value": {"type": "object", "properties": {"string": {"$ref": "#/$defs/value"}}, "required": []}}},
        [{}, {"string": {"string": {}}}], [{"string": "x"}, 1], id="a reference of the converter's own names",
    ),
    pytest.param({"enum": ['a"b', "c\\d", "e\nf", "grün", "\u2028"]}, ['a"b', "c\\d", "e\nf", "grün", "\u2028"], ["ab", "e"], id="constants"),
    pytest.param(
        {"type": "object", "properties": {'a"b\\': WHOLE, "ü": WHOLE}, "required": ['a"b\\']},
        [{'a"b\\': 1}, {'a"b\\': 1, "ü": 2}], [{}, {"ab": 1}], id="names with signs",
    ),
    pytest.param(
        {"type": "object", "properties": {"when": {"type": "string", "format": "date"}, "to": {"format": "email"}}, "required": ["when", "to"]},
        [{"when": "2024-02-29", "to": "a@b.org"}], [{"when": "2023-02-29", "to": "a@b.org"}, {"when": "2024-02-29", "to": "b.org"}], id="formats",
    ),
    pytest.param(
        {"properties": {"c": {"allOf": [{"$ref": "#/$defs/C"}], "default": "x"}}, "required": ["c"], "$defs": {"C": {"enum": ["x", "y"]}}},
        [{"c": "x"}], [{"c": "z"}, {"c": {}}], id="all of one reference",
    ),
    pytest.param({"type": ["string", "null"], "enum": ["a", None, 1]}, ["a", None], [1, "b"], id="values of two types"),
    pytest.param({"type": "integer", "const": 3, "enum": [3, 4]}, [3], [4], id="a value of several"),
    pytest.param(
        {"type": "object", "properties": {"a": WHOLE, "b": WHOLE}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 2}], [{}], id="one of two is required",
    ),
    pytest.param(
        {
            "properties": {"k": WHOLE}, "required": ["k"],
            "oneOf": [{"properties": {"x": {"maximum": 5}}, "required": ["x"]}, {"$ref": "#/$defs/Y"}],
            "allOf": [{"properties": {"x": {"type": "integer", "minimum": 3}}}],
            "$defs": {"Y": {"properties": {"x": False, "y": WHOLE}, "required": ["y"]}},
        },
        [{"k": 1, "x": 4}, {"k": 1, "y": 9}], [{"k": 1}, {"k": 1, "x": 2}, {"k": 1, "x": 6}, {"x": 4}], id="all at once",
    ),
    pytest.param(
        {"properties": {"a": {"$ref": "#/$defs/A", "maximum": 3}}, "required": ["a"], "$defs": {"A": {"type": "number", "minimum": 1}}},
        [{"a": 1}, {"a": 2.5}], [{"a": 4}, {"a": 0}], id="beside a reference",
    ),
    pytest.param(
        {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"items": {"$ref": "#x"}, "maxItems": 1}, "X": {"$anchor": "x", "type": "null"}}},
        [[], [None]], [[1], [None, None], {}], id="references by pointer and by anchor",
    ),
    pytest.param({"prefixItems": [WHOLE, {"type": "null"}], "items": {"type": "boolean"}, "maxItems": 3}, [[1, None], [1, None, True]],
                 [[1], [None, 1], [1, None, 1], [1, None, True, True]], id="kinds of items in a row"),
    pytest.param({"type": "array", "prefixItems": [WHOLE, WHOLE, WHOLE], "maxItems": 2}, [[1, 2]], [[1, 2, 3], [1]], id="fewer items than kinds"),
    pytest.param(
        {"$schema": "http://json-schema.org/draft-07/schema#", "items": [WHOLE, {"type": "null"}], "additionalItems": {"type": "boolean"}},
        [[1, None], [1, None, True]], [[1], [1, None, 1]], id="kinds of items as they were written before",
    ),
    pytest.param({"minLength": 3, "maxLength": 3}, ["abc"], ["ab", "abcd", 1], id="lengths and no type"),
    pytest.param({"properties": {"a": {"minimum": 3}, "n": False}, "required": ["a"]}, [{"a": 3}], [{"a": 2}, {"a": 3, "n": 1}], id="no type, never"),
    pytest.param(
        {"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"], "additionalProperties": False},
        [{"next": None}, {"next": {"next": None}}], [{}, {"next": 1}, {"next": {}}], id="itself or nothing",
    ),
    pytest.param({"type": "string", "minLength": 600, "maxLength": 5001}, [600 * "x", 5001 * "x"], [599 * "x", 5002 * "x"], id="long texts"),
    pytest.param({"items": {"type": "null"}, "minItems": 2, "maxItems": 777}, [[None] * 2, [None] * 777], [[None], [None] * 778], id="long lists"),
    pytest.param({"anyOf": [True]}, [{}, {"a": 1}], ["x"], id="one way is any"),
    pytest.param({"type": "number"}, [1, 1.5, -2e10], [True], id="numbers"),
    pytest.param({"properties": {"long": WHOLE}, "propertyNames": {"maxLength": 2}, "required": []}, [{}], [{"long": 1}], id="no listed name"),
    pytest.param({"type": "object", "properties": {}}, [{}], [{"a": 1}], id="no properties"),
    pytest.param({"type": "object"}, [{}, {"a": 1}], [1], id="any properties"),
    pytest.param({"not": {"type": "null"}, "if": {}, "then": {}}, [{}, {"a": 1}], [], id="what is not enforced refuses nothing"),
]  # fmt: skip


@pytest.mark.model
@pytest.mark.parametrize(("schema", "good", "bad"), CASES)
def test_a_grammar_takes_just_what_a_schema_takes(schema: Schema, good: list[Any], bad: list[Any]) -> None:
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    assert all(validator.is_valid(value) for value in good)
    assert [value for value in [*good, *bad] if held(schema, json.dumps(value, ensure_ascii=False))] == good


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "object", "propertyNames": {"enum": ["a"]}, "required": ["b"]}, "'b' is required, and propertyNames has no such name"),
        ({"type": "object", "propertyNames": {"maxLength": 1}, "required": ["bb"]}, "'bb' is required, and propertyNames has no such name"),
        ({"type": "array", "items": {"enum": ["a", "a"]}, "uniqueItems": True, "minItems": 2}, "no array has 2 of 1 different values"),
        ({"type": "object", "patternProperties": []}, None),
        ({"type": "object", "patternProperties": ["x"]}, "patternProperties"),
        ({"type": "object", "propertyNames": 7}, "propertyNames is 7"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "nothing fits it"),
        ({"anyOf": [{"oneOf": [{"const": "x", "type": "array"}]}]}, "none of the values fits"),
        ({"$defs": {"a": {"$ref": "#/properties/deep/$defs/a"}}, "$ref": "#/properties/deep/$defs/a"}, "refers to itself only"),
        ({"enum": []}, "enum is empty"),
        ({"enum": ["a"], "type": "integer"}, "none of the values fits"),
        ({"enum": 3}, "enum is 3"),
        ({"type": "text"}, "type is text; it has to be string, number"),
        ({"type": []}, "type is"),
        ({"anyOf": []}, "anyOf is"),
        ({"$ref": "#/$defs/none"}, "there is no such part"),
        ({"$ref": "https://example.org/s.json"}, "only parts of the schema itself"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "no array has 3 to 2 items"),
        ({"type": "array", "maxItems": -1}, "maxItems is -1"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "no text has 3 to 2 characters"),
        ({"properties": {"a": False}, "required": ["a"]}, "'a' is required, and may not be"),
        ({"allOf": [{"anyOf": [{"maxLength": n} for n in range(20)]}] * 3}, "too many"),
    ],
)
def test_what_nothing_fits_is_refused_by_its_place(schema: Schema, says: str | None) -> None:
    whole = {"type": "object", "properties": {"deep": schema}}
    if says is None:
        assert schema_rules(whole, "")
        return
    with pytest.raises(UnusableSchemaError, match=f"^properties.deep of the schema: .*{says}"):
        schema_rules(whole, "")


def test_a_long_chain_of_references_is_no_deep_nesting() -> None:
    chain = {f"d{i}": {"type": "object", "properties": {"next": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(300)}
    assert schema_rules({"$ref": "#/$defs/d0", "$defs": {**chain, "d300": WHOLE}}, "")
    deep: Schema = WHOLE
    for _ in range(60):
        deep = {"type": "object", "properties": {"a": {"items": deep}}}
    with pytest.raises(UnusableSchemaError, match="nests too deeply"):
        schema_rules(deep, "")


WRITTEN = [
    *(case.values[0] for case in CASES),
    {
        "type": "object", "required": ["name", "phone", "tags", "at", "net"], "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "pattern": r"^[A-Z]\w+( [A-Z]\w+)*$", "maxLength": 30},
            "phone": {"type": "string", "pattern": r"^\+?\d{3}-\d{4}$"},
            "tags": {"type": "array", "items": {"enum": COLOURS}, "uniqueItems": True, "minItems": 1},
            "at": {"type": "string", "format": "date-time"},
            "net": {"anyOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}]},
        },
    },
    {"type": "array", "minItems": 2, "maxItems": 3, "items": {"type": "string", "pattern": r'^a["\\]+\n?é$', "minLength": 5, "maxLength": 9}},
    {"type": "object", "properties": {"kind": {"const": 'x"\\'}, "left": {"$ref": "#"}, "right": {"$ref": "#"}}, "required": ["kind"]},
]  # fmt: skip


@pytest.fixture(scope="module")
def likely() -> npt.NDArray[np.float32]:
    """Ends first, no words without text (a grammar reads the names of control words); and, the second row, what closes likelier with every step."""
    words = vocabulary("smollm2")
    closing = [token for text in ('"', "}", "]", '"}', '",') for token in words.tokenize(text, add_special=False, parse_special=False)]
    found = np.zeros((2, words.size), dtype=np.float32)
    found[0, [token for token in range(words.size) if not words.piece(token)]] = -99
    found[0, [token for token in range(words.size) if words.ends(token)]] = 9
    found[1, closing] = 0.05
    return found


@pytest.mark.model
@pytest.mark.parametrize("index", range(len(WRITTEN)))
def test_whatever_a_grammar_lets_a_model_write_is_valid(likely: npt.NDArray[np.float32], index: int) -> None:
    """Words at random: most texts come to an end, and those are valid."""
    words, schema = vocabulary("smollm2"), WRITTEN[index]
    rules, validator = schema_rules(schema, ""), jsonschema_rs.validator_for(schema, validate_formats=True)
    random, complete = np.random.default_rng(index), 0
    for _ in range(6):
        grammar, written = Grammar(words, rules), b""
        try:
            for step in range(400):
                row = random.normal(size=words.size).astype(np.float32) + likely[0] + step * likely[1]
                token = int(np.argmax(grammar.masked(row)))
                if words.ends(token):
                    complete += 1
                    validator.validate(json.loads(written))
                    break
                grammar.accept(token)
                written += words.piece(token)
        finally:
            grammar.close()
    assert complete
