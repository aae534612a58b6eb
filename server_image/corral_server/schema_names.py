"""Names of properties that a JSON schema does not list one by one: `propertyNames`, `patternProperties`, and names that are only `required`. Pure.

Says them in words that the rules of objects know: properties where the names can be listed, else kinds of free names with what each may hold.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from corral_server.pattern_rules import lengths_of
from corral_server.schema_counts import UnusableSchemaError

_WORDS = {"propertyNames", "patternProperties", "required", "properties", "additionalProperties"}
_OTHERS = {"$ref", "oneOf", "anyOf", "allOf", "enum", "const"}


class Free(NamedTuple):
    """A kind of properties without a fixed name: the schema of its name, and of its value."""

    name: dict[str, Any]
    value: Any


def named(schema: dict[str, Any], referred: Callable[[Any], Any], place: str) -> tuple[dict[str, Any], tuple[Free, ...]]:
    """An object's schema in terms of `properties` and `additionalProperties` alone, and the kinds of its free properties; none: any name.

    `referred` follows a reference. Free names that a pattern forbids (`"^_": false`) are not kept out. UnusableSchemaError where a required name may
    not be.
    """
    if schema.get("type", "object") != "object" or schema.keys() & _OTHERS or not schema.keys() & _WORDS:
        return schema, ()
    listed = dict(schema.get("properties") or {})
    others = schema.get("additionalProperties", True)
    patterns = {pattern: value for pattern, value in _mapping(schema, "patternProperties", place).items() if value is not False}
    if others is not False and all(value in (True, {}) for value in patterns.values()):
        patterns = {}  # any name may hold anything
    for name, value in listed.items():
        also = [each for pattern, each in patterns.items() if _matches(pattern, name)]
        listed[name] = {"allOf": [value, *also]} if also else value
    names = _names(referred(schema.get("propertyNames", True)), place)
    required = [name for name in schema.get("required") or [] if isinstance(name, str)]

    def value_of(name: str) -> Any:
        """What a property of a name that is not listed may hold."""
        fitting = [value for pattern, value in patterns.items() if _matches(pattern, name)]
        return fitting[0] if fitting else others

    closed = others is False and not patterns
    more = {name: value_of(name) for name in required if name not in listed and not closed}
    rest = {key: value for key, value in schema.items() if key not in ("propertyNames", "patternProperties")}
    if isinstance(names, list):
        missing = [name for name in [*required, *listed] if name not in names and name in required]
        if missing:
            raise UnusableSchemaError(f"{missing[0]!r} is required, and propertyNames has no such name", place)
        every = {
            name: listed.get(name, more.get(name, value_of(name)))
            for name in [*(n for n in listed if n in names), *(n for n in names if n not in listed)]
        }
        return {**rest, "properties": {name: value for name, value in every.items() if value is not False}, "additionalProperties": False}, ()
    if wrong := [name for name in required if not _may_be(names, name)]:
        raise UnusableSchemaError(f"{wrong[0]!r} is required, and propertyNames has no such name", place)
    listed = {name: value for name, value in listed.items() if _may_be(names, name)}
    if patterns:
        # A name that matches no pattern may hold anything else: to say what does not match takes more than a grammar, so there are none.
        free = tuple(Free({"pattern": pattern}, value) for pattern, value in patterns.items())
    else:
        free = (Free(names, others),) if names and others is not False else ()
    if not more and not free:
        return {**rest, "properties": listed} if "properties" in schema else rest, ()
    if free or "additionalProperties" in schema or not listed:
        return {**rest, "properties": listed | more, "additionalProperties": True if free else others}, free
    return {**rest, "properties": listed | more}, ()


def _mapping(schema: Mapping[str, Any], key: str, place: str) -> dict[str, Any]:
    found = schema.get(key) or {}
    if not isinstance(found, dict):
        raise UnusableSchemaError(f"{key} is {str(found)[:40]}; it has to be an object", place)
    return found


def _names(schema: Any, place: str) -> list[str] | dict[str, Any]:
    """The names that there may be, if they are listed; else the schema of a name, empty for any."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise UnusableSchemaError(f"propertyNames is {str(schema)[:40]}; it has to be a schema", place)
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(listed, list):
        return list(dict.fromkeys(name for name in listed if isinstance(name, str)))
    return {key: value for key, value in schema.items() if key in ("pattern", "format", "minLength", "maxLength")}


def _may_be(names: Mapping[str, Any], name: str) -> bool:
    low, high = lengths_of(names)
    return low <= len(name) and (high is None or len(name) <= high) and ("pattern" not in names or _matches(str(names["pattern"]), name))


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return False
