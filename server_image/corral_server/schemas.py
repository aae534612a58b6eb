"""JSON schemas to grammar rules. Runs in the renderer's process, because a schema, too, may be made to take for ever.

Over the converter of the bindings; adds the bounds of numbers and of properties that it leaves out, and names that keep several schemas apart.
"""

import contextlib
import itertools
import json
import re
from typing import Any

from corral_server.pattern_rules import lengths_of, pattern_rule
from corral_server.patterns import PatternError
from corral_server.schema_counts import Counts, UnusableSchemaError, counted, counts_of
from corral_server.schema_names import Free, named
from corral_server.schema_numbers import number_rule
from corral_server.schema_unique import unique_rule, values_of
from corral_server.string_formats import PATTERNS

_WHOLE = "whole-schema"
_OTHERS = {"items", "prefixItems", "pattern", "format"}
"""What makes a schema without a type one of something else than objects."""
_OF_OTHERS = {"properties", "additionalProperties", "required", "allOf", "items", "prefixItems"}
"""What makes one with a pattern something else than a string."""
_NAMES = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[A-Za-z][A-Za-z0-9-]*')


def schema_rules(schema: Any, prefix: str, *, loose: bool = False) -> str:
    """The rules of a schema, all names with the prefix; it begins at `<prefix>root`. `loose`: a pattern that no grammar can hold is left out."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise UnusableSchemaError("a schema has to be an object")
    try:
        schema = _self_named(schema)
        converter = _converter(_places(schema), loose=loose)
        converter.resolve_refs(schema, "")
        converter.visit(schema, "")
        # The converter's strings may hold raw line breaks, which no JSON parser reads.
        text = str(converter.format_grammar()).replace('[^"\\\\] |', '[^"\\\\\\x7F\\x00-\\x1F] |')
    except UnusableSchemaError:
        raise
    except RecursionError:
        raise UnusableSchemaError("the schema nests too deeply") from None
    except Exception as error:
        raise UnusableSchemaError(f"the schema cannot be made into a grammar: {type(error).__name__}: {error}") from None
    return _NAMES.sub(lambda m: m[0] if m[0][0] in '"[' else prefix + m[0], text)


def _self_named(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that refers to its whole self, with a name for that: the converter follows named parts only."""
    if not _mentions_itself(schema):
        return schema
    inner = _renamed({k: v for k, v in schema.items() if k not in ("$defs", "definitions")})
    kept: dict[str, Any] = {k: _renamed(schema[k]) for k in ("$defs", "definitions") if k in schema}
    return {**kept, "$defs": {**kept.get("$defs", {}), _WHOLE: inner}, "$ref": f"#/$defs/{_WHOLE}"}


def _mentions_itself(part: Any) -> bool:
    if isinstance(part, dict):
        return part.get("$ref") == "#" or any(_mentions_itself(v) for v in part.values())
    return isinstance(part, list) and any(_mentions_itself(v) for v in part)


def _renamed(part: Any) -> Any:
    if isinstance(part, dict):
        return {k: f"#/$defs/{_WHOLE}" if k == "$ref" and v == "#" else _renamed(v) for k, v in part.items()}
    return [_renamed(v) for v in part] if isinstance(part, list) else part


def _places(schema: dict[str, Any]) -> dict[int, str]:
    """Where each part of a schema stands, by its identity: `properties.a`."""
    found: dict[int, str] = {}
    waiting: list[tuple[Any, str]] = [(schema, "")]
    while waiting:
        part, path = waiting.pop()
        if isinstance(part, dict):
            found[id(part)] = path.removeprefix(f"$defs.{_WHOLE}").removeprefix(".")
            waiting += [(value, f"{path}.{key}" if path else key) for key, value in part.items()]
        elif isinstance(part, list):
            waiting += [(value, f"{path}[{index}]") for index, value in enumerate(part)]
    return found


def _converter(places: dict[int, str], *, loose: bool) -> Any:
    from llama_cpp.llama_grammar import PRIMITIVE_RULES, RESERVED_NAMES, SchemaConverter  # noqa: PLC0415  imported with the first schema only

    def _free_name(name: str) -> str:
        """The names of the converter's own rules are not for others."""
        return f"{name}-" if name in RESERVED_NAMES else name or "root"

    class Bounded(SchemaConverter):  # type: ignore[misc]
        _place = ""
        _counts = Counts()
        """How many properties the object may have whose rule is made next."""

        _free: tuple[Free, ...] = ()
        """What kinds of names of its own it may have besides; none: any."""

        def __init__(self, **how: Any) -> None:
            super().__init__(**how)
            self._named: dict[str, str] = {}

        def visit(self, schema: Any, name: str) -> Any:
            outer, self._place = self._place, places.get(id(schema), self._place)
            try:
                return self._visited(schema, name)
            finally:
                self._place = outer

        def _visited(self, schema: Any, name: str) -> Any:
            if schema is True:
                schema = {}
            if not isinstance(schema, dict):
                raise UnusableSchemaError("a schema has to be an object")
            kinds = schema.get("type")
            if isinstance(kinds, list) and kinds and not {"enum", "const"} & schema.keys():
                # One alternative for each type, so that what else is said holds for those that it is about.
                rest = {k: v for k, v in schema.items() if k != "type"}
                return self.visit({"anyOf": [{**rest, "type": kind} for kind in kinds]}, name)
            if not {"$ref", "oneOf", "anyOf", "enum", "const"} & schema.keys():
                try:
                    simple = self._simple(schema)
                except PatternError as error:
                    if not loose:
                        raise UnusableSchemaError(str(error), self._place) from None
                    return self.visit({"type": "string"} | {k: v for k, v in schema.items() if k != "pattern"}, name)
                except UnusableSchemaError as error:
                    raise UnusableSchemaError(str(error), self._place) from None
                if simple:
                    return self._add_rule(_free_name(name), f"{simple} space")
            if (unique := self._unique(schema, name)) is not None:
                return self._add_rule(_free_name(name), unique)
            schema, self._free = named(schema, self._referred, self._place)
            if schema.get("type", "object") == "object" and (counts := self._counts_of(schema)):
                schema = self._held(schema, counts)
            if "type" not in schema and isinstance(schema.get("required"), list) and "properties" not in schema and "$ref" not in schema:
                schema = {"type": "object", **schema}
            bare = schema.get("type") == "array" and not {"items", "prefixItems"} & schema.keys()
            if schema.get("items") == {} or (bare and {"minItems", "maxItems"} & schema.keys()):
                # The converter counts only items that something is said about.
                schema = {**schema, "items": True}
            known = _known(schema)
            if name and not known:
                # The converter would have an object where anything may stand.
                return self._add_primitive("value", PRIMITIVE_RULES["value"])
            found = super().visit(known, name)
            if self._counts:
                raise UnusableSchemaError(f"{self._counts} cannot be held beside what else is said there", self._place)
            return found

        def _simple(self, schema: dict[str, Any]) -> str:
            """The rule of numbers with bounds, and of strings with a pattern or a format; empty for all else."""
            kind, pattern = schema.get("type"), schema.get("pattern", PATTERNS.get(str(schema.get("format"))))
            if kind in ("integer", "number"):
                numbers = number_rule(schema, self._add_rule)
                return f"({numbers})" if numbers is not None else ""
            if kind in ("string", None) and isinstance(pattern, str) and (kind or not schema.keys() & _OF_OTHERS):
                return pattern_rule(pattern, *lengths_of(schema), self._rules.__setitem__, f"length-{len(self._rules)}")
            return ""

        def _unique(self, schema: dict[str, Any], name: str) -> str | None:
            """The rule of an array in which none of a few listed values comes twice."""
            if (
                schema.get("type", "array") != "array"
                or schema.get("uniqueItems") is not True
                or schema.keys() & {"$ref", "oneOf", "anyOf", "prefixItems"}
            ):
                return None
            values, high = values_of(self._referred(schema.get("items"))), schema.get("maxItems")
            if values is None:
                return None
            prefix = f"{name}{'-' if name else ''}"
            try:
                return unique_rule(
                    values, int(schema.get("minItems") or 0), None if high is None else int(high), self._generate_constant_rule,
                    lambda rule: str(self._add_rule(f"{prefix}unique", rule)),
                )  # fmt: skip
            except UnusableSchemaError as error:
                raise UnusableSchemaError(str(error), self._place) from None

        def _referred(self, schema: Any) -> Any:
            """The schema, or the one that it refers to."""
            seen: list[Any] = []
            while isinstance(schema, dict) and schema.get("$ref") in self._refs and schema not in seen:
                seen.append(schema)
                schema = self._refs[schema["$ref"]]
            return schema

        def _format_literal(self, literal: str) -> str:
            """A JSON text as it is to be written. What it escapes stays escaped; letters beyond ASCII are written as such."""
            with contextlib.suppress(ValueError, UnicodeEncodeError):
                plain = json.dumps(json.loads(literal), ensure_ascii=False)
                plain.encode()
                literal = plain
            return '"' + re.sub(r'["\\]', r"\\\g<0>", literal) + '"'

        def _resolve_ref(self, ref: str) -> str:
            """A rule of its own for each part that is referred to: the converter takes all whose last names are alike for one."""
            if ref not in self._named:
                name = next(name for name in map("ref-{}".format, itertools.count(len(self._named))) if name not in self._rules)
                self._named[ref] = name
                self._rules[name] = ""
                made = self.visit(self._refs[ref], f"{name}-whole")
                self._rules[name] = made
            return self._named[ref]

        def _counts_of(self, schema: dict[str, Any]) -> Counts:
            """What a schema and those that hold with it say of the number of properties."""
            place = places.get(id(schema), self._place)
            found = counts_of(schema, place)
            for part in _schemas(schema, "allOf"):
                found &= self._counts_of(part)
                if part.get("$ref") in self._refs:
                    found &= self._counts_of(self._refs[part["$ref"]])
                for other in (*_schemas(part, "anyOf"), *_schemas(part, "oneOf")):
                    if counts := self._counts_of(other):
                        raise UnusableSchemaError(f"{counts} cannot be held within allOf", places.get(id(other), place))
            return found

        def _held(self, schema: dict[str, Any], counts: Counts) -> dict[str, Any]:
            """The same with the counts where a rule is made of them: at alternatives, at values, or kept for the object's own rule."""
            if "$ref" in schema:
                raise UnusableSchemaError(f"{counts} cannot be held beside $ref", self._place)
            plain = {k: v for k, v in schema.items() if k not in ("minProperties", "maxProperties")}
            for kind in ("oneOf", "anyOf"):
                if kind in schema:
                    alternatives = [{} if part is True else part for part in schema[kind]]
                    return {**plain, kind: [{**part, **(self._counts_of(part) & counts).keywords()} for part in alternatives]}
            if "const" in schema or isinstance(schema.get("enum"), list):
                values = [schema["const"]] if "const" in schema else schema["enum"]
                fitting = [value for value in values if not isinstance(value, dict) or len(value) in counts]
                if not fitting:
                    raise UnusableSchemaError(f"none of the values has {counts}", self._place)
                return {**{k: v for k, v in plain.items() if k != "const"}, "enum": fitting}
            if schema.get("additionalProperties", True) is True and not {"properties", "allOf"} & schema.keys():
                if "type" not in schema and schema.keys() & _OTHERS:
                    return plain
                plain = {**plain, "type": "object", "properties": {}, "additionalProperties": True}
            self._counts = counts
            return plain

        def _build_object_rule(self, properties: Any, required: Any, name: str, additional_properties: Any) -> str:
            counts, self._counts = self._counts, Counts()
            kinds, self._free = self._free, ()
            listed = dict(properties)
            if additional_properties is None and counts.low > len(listed):
                # Left out it means any. The converter leaves others out, which is too few here.
                additional_properties = True
            free = additional_properties is True or isinstance(additional_properties, dict)
            needed = [key for key in listed if key in required]
            if not kinds and counts.low <= len(needed) and (counts.high is None or (not free and counts.high >= len(listed))):
                return str(super()._build_object_rule(properties, required, name, additional_properties))
            prefix = f"{name}{'-' if name else ''}"
            rules = {}
            for key, value in listed.items():
                rule = f'{self._format_literal(json.dumps(key))} space ":" space {self.visit(value, prefix + key)}'
                rules[key] = self._add_rule(f"{prefix}{key}-kv", rule)
            other = None
            if free:
                ways = [self._pair(kind, f"{prefix}additional") for kind in kinds or [Free({}, additional_properties)]]
                other = self._add_rule(f"{prefix}additional-kv", " | ".join(ways))
            inside = counted(
                counts, [rules[key] for key in needed], [rules[key] for key in listed if key not in required], other, self._place,
                lambda rule: str(self._add_rule(f"{prefix}counted", rule)),
            )  # fmt: skip
            return f'"{{" space {inside} "}}" space'

        def _pair(self, kind: Free, name: str) -> str:
            return f'{self.visit({"type": "string", **kind.name}, f"{name}-name")} ":" space {self.visit(kind.value, f"{name}-value")}'

    return Bounded(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)


def _schemas(schema: dict[str, Any], name: str) -> list[dict[str, Any]]:
    parts = schema.get(name)
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def _known(schema: dict[str, Any]) -> dict[str, Any]:
    """Without what only annotates: the converter takes an object with nothing it knows for an error."""
    plain = {k: v for k, v in schema.items() if k not in ("title", "description", "default", "examples", "$schema", "$comment", "$id", "deprecated")}
    if plain.keys() <= {"nullable", "$defs", "definitions", "readOnly", "writeOnly"}:
        return {}
    return plain
