"""Names of properties that a JSON schema does not list one by one: `propertyNames`, `patternProperties`, and names that are only `required`. Pure.

Says them in words that the rules of objects know: properties where the names can be listed, else kinds of free names with what each may hold.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from corral_server.schema_counts import UnusableSchemaError
from corral_server.schema_merging import fits


class Free(NamedTuple):
    """A kind of properties without a fixed name: the schema of its name, and of its value."""

    name: dict[str, Any]
    value: Any


def named(schema: dict[str, Any], referred: Callable[[Any], Any], place: str) -> tuple[dict[str, Any], tuple[Free, ...]]:
    """An object's schema in terms of `properties` and `additionalProperties` alone, and the kinds of its free properties; none: any name.

    `referred` follows a reference. Free names that a pattern forbids (`"^_": false`) are not kept out. UnusableSchemaError where a required name may
    not be.
    """
    given, others = schema.get("properties") or {}, schema.get("additionalProperties", True)
    patterns = {pattern: value for pattern, value in _mapping(schema, "patternProperties", place).items() if value is not False}
    if others is not False and all(value in (True, {}) for value in patterns.values()):
        patterns = {}  # any name may hold anything
    names = _names(referred(schema.get("propertyNames", True)), place)
    required = [name for name in schema.get("required") or [] if isinstance(name, str)]
    if wrong := [name for name in required if not _may_be(names, name)]:
        raise UnusableSchemaError(f"{wrong[0]!r} is required, and propertyNames has no such name", place)

    def value_of(name: str) -> Any:
        """What a property may hold: what is said of its name and of the patterns that the name matches, else what is said of others."""
        said = [*([given[name]] if name in given else []), *(value for pattern, value in patterns.items() if _matches(pattern, name))]
        return {"allOf": said} if len(said) > 1 else said[0] if said else others

    listed = {name: value_of(name) for name in given if _may_be(names, name)}
    rest = {key: value for key, value in schema.items() if key not in ("propertyNames", "patternProperties")}
    if isinstance(names, list):
        every = listed | {name: value_of(name) for name in names if name not in given}
        return {**rest, "properties": {name: value for name, value in every.items() if value is not False}, "additionalProperties": False}, ()
    closed = others is False and not patterns
    more = {name: value_of(name) for name in required if name not in given and not closed}
    if patterns:
        # A name that matches no pattern may hold anything else: to say what does not match takes more than a grammar, so there are none.
        free = tuple(Free({"pattern": pattern}, value) for pattern, value in patterns.items())
    else:
        free = (Free(names, others),) if names and others is not False else ()
    if "properties" in schema or more or free:
        rest["properties"] = listed | more
    if free or (more and not listed):
        rest["additionalProperties"] = True if free else others
    return rest, free


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


def _may_be(names: list[str] | dict[str, Any], name: str) -> bool:
    if isinstance(names, list):
        return name in names
    return fits(name, names) and ("pattern" not in names or _matches(str(names["pattern"]), name))


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return False
