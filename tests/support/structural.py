"""What an API server does with a structural schema, as far as the unit tests need it: nulls, defaults, and a walk over every field."""

import copy
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]


def fields(node: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Every node of a schema that stands for a value, with its path."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from fields(child, f"{path}.{name}" if path else name)
    if "items" in node:
        yield from fields(node["items"], f"{path}[]")
    if "additionalProperties" in node:
        yield from fields(node["additionalProperties"], f"{path}{{}}")


def defaulted(schema: Json, value: Any) -> Any:
    """The object as it would be stored: nulls of fields that are not nullable pruned, then defaults, from the outside in."""
    if isinstance(value, list) and "items" in schema:
        return [defaulted(schema["items"], item) for item in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return copy.deepcopy(value)
    kept = {name: item for name, item in value.items() if item is not None}
    for name, child in schema["properties"].items():
        if name not in kept and "default" in child:
            kept[name] = copy.deepcopy(child["default"])
    return {name: defaulted(schema["properties"].get(name, {}), item) for name, item in kept.items()}
