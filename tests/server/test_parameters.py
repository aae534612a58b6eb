"""What a function's schema says of each of its parameters."""

from typing import Any

import pytest

from corral_server.dialects.parameters import ANYTHING, Parameter, signature_of
from corral_server.schemas import schema_rules

DEFS = {"$defs": {"colour": {"enum": ["red", "blue"]}, "tree": {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}}}}}
REST = {"type": ["object", "array", "number", "boolean", "null"]}


def one(schema: Any, **more: Any) -> Parameter:
    (found,) = signature_of({"type": "object", "properties": {"a": schema}, **DEFS, **more}).parameters
    return found


@pytest.mark.parametrize(
    ("schema", "kinds", "texts", "others"),
    [
        ({"type": "string", "minLength": 2}, {"string"}, None, None),
        ({"type": "integer", "minimum": 1}, {"integer"}, None, {"type": "integer", "minimum": 1}),
        ({"type": ["string", "null"]}, {"string", "null"}, None, {"type": ["null"]}),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, {"string", "integer"}, None, {"anyOf": [{"type": "integer"}]}),
        ({"oneOf": [{"const": "x"}, {"const": 1}, {"enum": ["y", "x"]}]}, {"string", "integer"}, ("x", "y"), {"anyOf": [{"enum": [1]}]}),
        ({"enum": ["a", None, 1.5, True]}, {"string", "null", "number", "boolean"}, ("a",), {"enum": [None, 1.5, True]}),
        ({"$ref": "#/$defs/colour"}, {"string"}, ("red", "blue"), None),
        ({"allOf": [{"$ref": "#/$defs/colour"}]}, {"string"}, ("red", "blue"), None),
        ({"allOf": [{"type": "string"}, {"minLength": 2}]}, {"string"}, None, None),
        ({"properties": {"x": {}}}, {"object"}, None, {"type": "object", "properties": {"x": {}}}),
        ({"items": {}}, {"array"}, None, {"type": "array", "items": {}}),
        ({"description": "any"}, ANYTHING, None, REST),
        (True, ANYTHING, None, REST),
        ({"$ref": "#/$defs/missing"}, ANYTHING, None, REST),
    ],
)
def test_a_schema_is_taken_apart(schema: Any, kinds: set, texts: tuple | None, others: Any):
    found = one(schema)
    assert (found.kinds, found.texts, found.others) == (kinds, texts if "string" in kinds else found.texts, others)
    if others is not None:
        assert "s0-root" in schema_rules(others, "s0-")


def test_definitions_come_along():
    found = one({"$ref": "#/$defs/tree"})
    assert found.others["$defs"] == DEFS["$defs"]
    assert schema_rules(found.others, "")
    inside = one({"type": "array", "items": {"$ref": "#/properties/b"}}, properties={"a": {"type": "array", "items": {"$ref": "#/properties/b"}}})
    assert inside.others["items"] == {}


def test_references_in_a_circle_end():
    found = one({"$ref": "#/$defs/x"}, **{"$defs": {"x": {"$ref": "#/$defs/y"}, "y": {"$ref": "#/$defs/x"}}})
    assert found.kinds == ANYTHING
    deep: Any = {"type": "string"}
    for _ in range(100):
        deep = {"anyOf": [deep]}
    assert "string" in one(deep).kinds


def test_what_a_function_takes_beside():
    assert signature_of({"type": "object", "properties": {}}).extra is None
    assert signature_of({"type": "object"}).extra is not None
    assert signature_of({"type": "object", "additionalProperties": False}).extra is None
    assert signature_of({"properties": {"a": {}}, "additionalProperties": {"type": "integer"}}).extra.kinds == {"integer"}
    assert signature_of(None).named("any").kinds == ANYTHING
    assert signature_of({"properties": {"a": {"type": "string"}}}).named("b").kinds == ANYTHING
    assert [p.required for p in signature_of({"properties": {"a": {}, "b": {}}, "required": ["b"]}).parameters] == [False, True]
    assert [p.name for p in signature_of({"$ref": "#/$defs/f", "$defs": {"f": {"properties": {"z": {}}}}}).parameters] == ["z"]
