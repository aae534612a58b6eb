"""What the functions of a request take, parameter by parameter: for forms of calls in which every argument stands alone. Pure.

In such a form a string is written as it is, without quotes, and everything else as JSON. So it is the parameter's schema that tells what a value is.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STRING = frozenset({"string"})
ANYTHING = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_ANY_OTHER = {"type": ["object", "array", "number", "boolean", "null"]}
_TELLING = {"object": {"properties", "additionalProperties", "required"}, "array": {"items", "prefixItems"}}
_DEFINED = ("$defs", "definitions")
_DEEPEST = 32


@dataclass(frozen=True)
class Parameter:
    name: str = ""
    kinds: frozenset[str] = ANYTHING
    """The JSON types that a value may have; all of them where the schema does not say."""
    texts: tuple[str, ...] | None = None
    """The strings that a value may be, where they are listed; none where any may come."""
    others: Any = None
    """The schema of the values that are no strings, with the definitions that it refers to; None where only strings may come."""
    required: bool = False

    @property
    def is_text(self) -> bool:
        """Any string, and nothing else."""
        return self.kinds == STRING

    @property
    def is_free(self) -> bool:
        """A string may come that is not in a list."""
        return "string" in self.kinds and self.texts is None


UNKNOWN = Parameter()


@dataclass(frozen=True)
class Signature:
    """The parameters of a function, in the order of its schema; `extra` stands for those that it does not name, where it lets them come."""

    parameters: tuple[Parameter, ...]
    extra: Parameter | None = None

    def named(self, name: str) -> Parameter:
        return next((p for p in self.parameters if p.name == name), self.extra or UNKNOWN)


Root = Callable[[Any], str]
"""The name of the rule that a schema begins at."""


def ruled(schemas: Sequence[Any], needs_rule: Callable[[Parameter], bool]) -> list[Any]:
    """The schemas of which a grammar needs rules, each once: of what the chosen parameters take beside strings."""
    found: dict[str, Any] = {}
    for signature in map(signature_of, schemas):
        for parameter in (*signature.parameters, *([signature.extra] if signature.extra else [])):
            if needs_rule(parameter):
                found.setdefault(_key(parameter.others), parameter.others)
    return list(found.values())


def roots_of(schemas: Sequence[Any]) -> Root:
    """The rules of these schemas, which were made in their order."""
    names = {_key(schema): f"s{index}-root" for index, schema in enumerate(schemas)}
    return lambda schema: names[_key(schema)]


def _key(schema: Any) -> str:
    return json.dumps(schema, sort_keys=True)


def signature_of(schema: Any) -> Signature:
    """The parameters that a function's schema names. One that names none may get any, unless it says that there are no more."""
    whole = schema if isinstance(schema, dict) else {}
    found = _followed(whole, whole)
    named = found.get("properties")
    required = found.get("required")
    needed = required if isinstance(required, list) else ()
    parameters = tuple(
        _parameter(str(name), part, whole, required=name in needed) for name, part in (named.items() if isinstance(named, dict) else ())
    )
    # Most who leave it out mean that there are no others, though JSON Schema has it that anything may come.
    more = found.get("additionalProperties", not isinstance(named, dict))
    return Signature(parameters, _parameter("", more, whole, required=False) if more is not False else None)


def _parameter(name: str, schema: Any, whole: Mapping[str, Any], *, required: bool) -> Parameter:
    kinds, texts, others = _taken_apart(schema, whole, 0)
    return Parameter(name, kinds, texts, _with_definitions(others, whole) if kinds - STRING else None, required)


def _taken_apart(schema: Any, whole: Mapping[str, Any], depth: int) -> tuple[frozenset[str], tuple[str, ...] | None, Any]:
    """The types of a schema's values, the strings among them where they are listed, and a schema of the rest."""
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return ANYTHING, None, _ANY_OTHER
    schema = _followed(schema, whole)
    listed = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else None
    if listed is not None:
        texts, rest = tuple(v for v in listed if isinstance(v, str)), [v for v in listed if not isinstance(v, str)]
        return frozenset(map(kind_of, listed)), texts, {"enum": rest}
    kinds = schema.get("type")
    if kinds is not None:
        named = frozenset(k for k in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(k, str))
        rest = [k for k in kinds if k != "string"] if isinstance(kinds, list) else kinds
        # A name that is no type is left for the maker of rules to refuse.
        return named, None, {**schema, "type": rest}
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return _either([_taken_apart(part, whole, depth + 1) for part in schema[key]])
    parts = schema.get("allOf")
    if isinstance(parts, list) and parts:
        apart = [_taken_apart(part, whole, depth + 1) for part in parts]
        kinds = frozenset.intersection(*(a[0] for a in apart)) or ANYTHING
        # What holds for strings together is not put together here: the first list of them is taken, the rest stays whole.
        return kinds, next((a[1] for a in apart if a[1] is not None), None), apart[0][2] if len(apart) == 1 else schema
    # Strictly anything may come there, but nobody means that.
    told = next((kind for kind, keys in _TELLING.items() if schema.keys() & keys), "")
    return (frozenset({told}), None, {**schema, "type": told}) if told else (ANYTHING, None, _ANY_OTHER)


def _either(parts: list[tuple[frozenset[str], tuple[str, ...] | None, Any]]) -> tuple[frozenset[str], tuple[str, ...] | None, Any]:
    with_strings = [texts for kinds, texts, _ in parts if "string" in kinds]
    free = any(texts is None for texts in with_strings)
    texts = None if free or not with_strings else tuple(dict.fromkeys(t for some in with_strings for t in some or ()))
    return frozenset().union(*(p[0] for p in parts)), texts, {"anyOf": [others for kinds, _, others in parts if kinds - STRING]}


def _followed(schema: dict[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """What a schema that only refers to another one says."""
    for _ in range(_DEEPEST):
        path = schema.get("$ref")
        if not isinstance(path, str) or not path.startswith("#"):
            return schema
        found: Any = whole
        for step in path[1:].strip("/").split("/"):
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) and step else found
        if not isinstance(found, dict):
            return schema
        schema = found
    return {}


def _with_definitions(schema: Any, whole: Mapping[str, Any]) -> Any:
    """A part of a schema that stands alone: with the definitions of the whole. What refers elsewhere in the whole may be anything."""
    if not _refers(schema) or not isinstance(schema, dict):
        return schema
    return _loosened({**{key: whole[key] for key in _DEFINED if key in whole}, **schema})


def _refers(part: Any) -> bool:
    if isinstance(part, dict):
        return "$ref" in part or any(map(_refers, part.values()))
    return isinstance(part, list) and any(map(_refers, part))


def _loosened(part: Any) -> Any:
    if isinstance(part, dict):
        path = part.get("$ref")
        if isinstance(path, str) and not path.startswith(tuple(f"#/{key}/" for key in _DEFINED)):
            return {}
        return {key: _loosened(value) for key, value in part.items()}
    return [_loosened(value) for value in part] if isinstance(part, list) else part


def kind_of(value: Any) -> str:
    """The JSON type of a value."""
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    kinds = ((str, "string"), (int, "integer"), (float, "number"), (list, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "object")
