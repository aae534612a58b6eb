"""Several JSON schemas that hold at once as one: `allOf`, what stands beside `$ref`, `anyOf` and `oneOf`, values that other keywords rule out. Pure.

Only what a schema says of itself is merged; what it says of its parts (properties, items) is put side by side with `allOf`, to be merged when these
are looked at. So a schema that contains itself ends. Two patterns at once, or two steps of numbers that do not divide each other: the first holds.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from corral_server.schema_counts import UnusableSchemaError

Schema = dict[str, Any]
LARK = "x-lark"
"""A string's text follows this grammar, in Lark's language: our own keyword."""
_DEEPEST = 60
_MOST_WAYS = 200
_SAYING_NOTHING = {
    "title", "description", "default", "examples", "$schema", "$comment", "$id", "$anchor", "deprecated", "readOnly", "writeOnly", "nullable",
    "$defs", "definitions", "not", "if", "then", "else", "contains", "minContains", "maxContains", "dependentRequired", "dependentSchemas",
    "unevaluatedProperties", "unevaluatedItems", "contentEncoding", "contentMediaType", "contentSchema", "discriminator", "xml", "externalDocs",
    "strict",
}  # fmt: skip
"""Annotations, and what is not enforced."""
_WAYS = ("anyOf", "oneOf")
_LARGEST = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
_SMALLEST = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
_OF_TYPE = {
    "string": {"minLength", "maxLength", "pattern", "format", LARK},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "array": {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"},
    "object": {"properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties", "maxProperties"},
}
_TELLING = {
    "object": {"properties", "required", "additionalProperties", "patternProperties", "propertyNames"}, "array": {"items", "prefixItems"},
    "string": {"pattern", "format"},
}  # fmt: skip


def plain(schema: Any, referred: Callable[[str], Any], place: str = "") -> Schema:
    """A schema that holds for the same values, and is of one kind: values (`enum`), ways (`anyOf`), a bare `$ref`, one type, or `{}` for any value.

    `referred` finds what a reference means. UnusableSchemaError where nothing fits.
    """
    found = _whole(schema, referred, place, 0)
    if found is False:
        raise UnusableSchemaError("nothing fits it", place)
    if not found or found.keys() & {"enum", "anyOf", "$ref", "type"}:
        return dict(found)
    # It holds for all other types what it says of one; whoever writes so means that one.
    kind = next(kind for words in (_TELLING, _OF_TYPE) for kind in words if words[kind] & found.keys())
    return _about({**found, "type": kind})


def _whole(schema: Any, referred: Callable[[str], Any], place: str, depth: int, *, deep: bool = False) -> Any:
    """The schema, which may still be of several types; False where nothing fits. `deep`: ways, too, are what they say by themselves."""
    if isinstance(schema, bool):
        return {} if schema else False
    if not isinstance(schema, dict):
        raise UnusableSchemaError("a schema has to be an object", place)
    if depth > _DEEPEST:
        raise UnusableSchemaError("the schema nests too deeply", place)
    schema = {key: value for key, value in schema.items() if key not in _SAYING_NOTHING}
    if schema.keys() == {"$ref"}:
        return schema

    def followed(part: Any) -> Any:
        found, deeper = _whole(part, referred, place, depth + 1, deep=True), depth + 2
        while isinstance(found, dict) and "$ref" in found:
            found, deeper = _whole(referred(found["$ref"]), referred, place, deeper, deep=True), deeper + 1
        return found

    found = _of_types({key: value for key, value in schema.items() if key not in ("$ref", "allOf", *_WAYS)}, place)
    parts = [*([{"$ref": schema["$ref"]}] if "$ref" in schema else []), *_list(schema, "allOf", place)]
    ways = [[option for option in _list(schema, key, place) if option is not False] for key in _WAYS if key in schema]
    if found == {} and len(parts) + len(ways) == 1 and not deep:
        # What nothing stands beside stays as it is: it may contain the schema itself.
        alone = parts or ways[0]
        return _whole(alone[0], referred, place, depth + 1) if len(alone) == 1 else _any(alone)
    for part in parts:
        found = _both(found, followed(part), place)
    for options in ways:
        found = _both(found, _any([followed(option) for option in options]), place)
    return found


def _list(schema: Mapping[str, Any], key: str, place: str) -> list[Any]:
    found = schema.get(key, [])
    if not isinstance(found, list) or (key in schema and not found):
        raise UnusableSchemaError(f"{key} is {str(found)[:40]}; it has to be a list of schemas", place)
    return found


def _any(options: list[Any]) -> Any:
    """One way of several; ways within a way are ways."""
    flat = [
        way
        for option in options
        if option is not False
        for way in (option["anyOf"] if isinstance(option, dict) and option.keys() == {"anyOf"} else [option])
    ]
    if not flat:
        return False
    return flat[0] if len(flat) == 1 else {"anyOf": flat}


def _of_types(schema: Schema, place: str) -> Any:
    """A schema without references and ways in which each type stands alone, and values fit what else is said."""
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        if not isinstance(values, list):
            raise UnusableSchemaError(f"enum is {str(values)[:40]}; it has to be a list", place)
        if "const" in schema:
            values = [value for value in values if _key(value) == _key(schema["const"])]
        fitting = [value for value in values if fits(value, schema)]
        if not fitting:
            raise UnusableSchemaError("none of the values fits what else is said" if values else "enum is empty", place)
        return {"enum": fitting}
    kinds = schema.get("type")
    if isinstance(kinds, list):
        if not kinds:
            raise UnusableSchemaError("type is []; it has to be a type, or several", place)
        return _any([_of_types({**schema, "type": kind}, place) for kind in kinds])
    if kinds is None:
        return {key: value for key, value in schema.items() if any(key in words for words in _OF_TYPE.values())}
    if kinds not in ("string", "number", "integer", "boolean", "null", "array", "object"):
        raise UnusableSchemaError(f"type is {str(kinds)[:40]}; it has to be string, number, integer, boolean, null, array or object", place)
    return _about(schema)


def _about(schema: Schema) -> Schema:
    """What it says of its type."""
    words = _OF_TYPE.get("number" if schema["type"] == "integer" else schema["type"], set())
    return {"type": schema["type"], **{key: value for key, value in schema.items() if key in words}}


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value fits what a schema says of its type, its size and its properties' names."""
    kinds = schema.get("type")
    if kinds is not None and not any(_is(value, kind) for kind in (kinds if isinstance(kinds, list) else [kinds])):
        return False
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, (int, float)):
        edges = [schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")]
        return (
            _within(value, schema.get("minimum"), schema.get("maximum"))
            and _within(value, *edges)
            and not any(_number(e) and e == value for e in edges)
        )
    kind = "Length" if isinstance(value, str) else "Items" if isinstance(value, list) else "Properties"
    return _within(len(value), schema.get(f"min{kind}"), schema.get(f"max{kind}")) and not (
        isinstance(value, dict) and any(name not in value for name in schema.get("required") or [])
    )


def _within(size: float, low: Any, high: Any) -> bool:
    return (not _number(low) or low <= size) and (not _number(high) or size <= high)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is(value: Any, kind: Any) -> bool:
    if kind == "integer":
        return _number(value) and value == math.floor(value)
    types: dict[Any, Any] = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}
    return _number(value) if kind == "number" else isinstance(value, types.get(kind, ()))


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# --- two at once


def _both(one: Any, other: Any, place: str) -> Any:
    """Both of them at once; each is what `_whole` gives, without references."""
    if one is False or other is False:
        return False
    if not one or not other:
        return one or other
    if "anyOf" in one or "anyOf" in other:
        ways = [(mine, theirs) for mine in one.get("anyOf", [one]) for theirs in other.get("anyOf", [other])]
        if len(ways) > _MOST_WAYS:
            raise UnusableSchemaError(f"it has {len(ways)} ways at once, which are too many", place)
        return _any([_both(mine, theirs, place) for mine, theirs in ways])
    if "enum" in one or "enum" in other:
        values, rest = (one, other) if "enum" in one else (other, one)
        allowed = {_key(value) for value in rest["enum"]} if "enum" in rest else None
        fitting = [value for value in values["enum"] if fits(value, rest) and (allowed is None or _key(value) in allowed)]
        return {"enum": fitting} if fitting else False
    kinds = {schema["type"] for schema in (one, other) if "type" in schema}
    if len(kinds) == 2 and kinds != {"integer", "number"}:
        return False
    joined = {**_rest(one, other), **_object(one, other), **_items(one, other)}
    return _about({**joined, "type": "integer" if "integer" in kinds else kinds.pop()}) if kinds else joined


def _rest(one: Schema, other: Schema) -> Schema:
    """Bounds, patterns and the like."""
    found: Schema = {}
    for key in {**one, **other}:
        mine, theirs = one.get(key), other.get(key)
        if mine is None or theirs is None:
            found[key] = theirs if mine is None else mine
        elif key in _LARGEST and _number(mine) and _number(theirs):
            found[key] = max(mine, theirs)
        elif key in _SMALLEST and _number(mine) and _number(theirs):
            found[key] = min(mine, theirs)
        elif key == "multipleOf" and isinstance(mine, int) and isinstance(theirs, int):
            found[key] = math.lcm(mine, theirs)
        elif key == "uniqueItems":
            found[key] = bool(mine or theirs)
        else:
            found[key] = mine
    found.pop("type", None)
    return found


def _object(one: Schema, other: Schema) -> Schema:
    found: Schema = {}
    names = {**(one.get("properties") or {}), **(other.get("properties") or {})}
    if names:
        found["properties"] = {name: _all(_property(one, name), _property(other, name)) for name in names}
    needed = list(dict.fromkeys([*(one.get("required") or []), *(other.get("required") or [])]))
    if needed:
        found["required"] = needed
    for key in ("additionalProperties", "propertyNames"):
        if key in one or key in other:
            found[key] = _all(one.get(key, True), other.get(key, True))
    patterns = {**(one.get("patternProperties") or {}), **(other.get("patternProperties") or {})}
    if patterns:
        mine, theirs = one.get("patternProperties") or {}, other.get("patternProperties") or {}
        found["patternProperties"] = {pattern: _all(mine.get(pattern, True), theirs.get(pattern, True)) for pattern in patterns}
    return found


def _property(schema: Schema, name: str) -> Any:
    """What it says of a property: by its name, or as of one more."""
    listed = schema.get("properties") or {}
    return listed[name] if name in listed else True if schema.get("patternProperties") else schema.get("additionalProperties", True)


def _items(one: Schema, other: Schema) -> Schema:
    mine, theirs = one.get("prefixItems") or [], other.get("prefixItems") or []
    found: Schema = {}
    if mine or theirs:
        found["prefixItems"] = [
            _all(*(first[index] if index < len(first) else each.get("items", True) for each, first in ((one, mine), (other, theirs))))
            for index in range(max(len(mine), len(theirs)))
        ]
    if "items" in one or "items" in other:
        found["items"] = _all(one.get("items", True), other.get("items", True))
    return found


def _all(one: Any, other: Any) -> Any:
    if one is False or other is False:
        return False
    if one in (True, {}) or one == other:
        return other
    return one if other in (True, {}) else {"allOf": [one, other]}
