"""JSON schemas to grammar rules. Runs in the renderer's process, because a schema, too, may be made to take for ever.

Owns what each kind of schema looks like in a grammar, and the names of its rules. It may leave out what a schema allows; it must let nothing through
that is no JSON, nor what a schema refuses, but for the keywords that the documentation calls not enforced.
"""

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from corral_server.dialects.free_text import literal
from corral_server.grammar_times import COMMA, listed
from corral_server.pattern_rules import lengths_of, pattern_rule
from corral_server.patterns import PatternError
from corral_server.schema_counts import UnusableSchemaError, counted, counts_of, size_of
from corral_server.schema_merging import LARK, plain
from corral_server.schema_names import Free, named
from corral_server.schema_numbers import number_rule
from corral_server.schema_unique import unique_rule, values_of
from corral_server.string_formats import PATTERNS

_DEEPEST = 100
_NAMES = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[A-Za-z][A-Za-z0-9-]*')
_JSON = {
    "space": '" "?',
    "null": '"null" space',
    "boolean": '("true" | "false") space',
    "integral": "[0-9] | [1-9] [0-9]{0,15}",
    "integer": '"-"? integral space',
    # Beyond two digits of an exponent many readers have infinity.
    "number": '"-"? integral ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})? space',
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": r'"\"" char* "\"" space',
    "array": '"[" space ( value ("," space value)* )? "]" space',
    "object": '"{" space ( string ":" space value ("," space string ":" space value)* )? "}" space',
    "value": "object | array | string | number | boolean | null",
}
"""JSON itself; no other rule has these names."""
_ANY_TEXT = "^[^]*$"
_WORD = re.compile(r"[^A-Za-z0-9-]+")


def schema_rules(schema: Any, prefix: str, *, loose: bool = False) -> str:
    """The rules of a schema, all names with the prefix; it begins at `<prefix>root`. `loose`: a pattern that no grammar can hold is left out."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise UnusableSchemaError("a schema has to be an object")
    try:
        text = _Rules(schema, loose=loose).text()
    except UnusableSchemaError:
        raise
    except RecursionError:
        raise UnusableSchemaError("the schema nests too deeply") from None
    except Exception as error:
        raise UnusableSchemaError(f"the schema cannot be made into a grammar: {type(error).__name__}: {error}") from None
    return _NAMES.sub(lambda m: m[0] if m[0][0] in '"[' else prefix + m[0], text)


class _Rules:
    def __init__(self, schema: dict[str, Any], *, loose: bool) -> None:
        self._schema = schema
        self._loose = loose
        self._rules: dict[str, str] = {}
        self._referred: dict[str, str] = {}
        self._waiting: list[tuple[str, str]] = []
        """References whose rules are still to be made."""
        self._places, self._anchors = _parts(schema)
        self._place = ""
        self._depth = 0

    def text(self) -> str:
        self._json("space")
        name = self._visit(self._schema, "root")
        while self._waiting:
            reference, rule = self._waiting.pop()
            self._rules[rule] = self._visit(self._target(reference), f"{rule}-whole")
        if name != "root":
            self._rules["root"] = name
        return "\n".join(f"{name} ::= {rule}" for name, rule in sorted(self._rules.items()))

    # --- names

    def _add(self, name: str, rule: str) -> str:
        """The name that a rule got: the one that it was to have, or one like it."""
        name = _WORD.sub("-", name)
        name = f"{name}-" if name in _JSON or not name[:1].isalpha() else name
        number = 0
        free = name
        while self._rules.get(free, rule) != rule:
            free, number = f"{name}{number}", number + 1
        self._rules[free] = rule
        return free

    def _json(self, kind: str) -> str:
        if kind not in self._rules:
            self._rules[kind] = _JSON[kind]
            for word in _NAMES.findall(_JSON[kind]):
                if word in _JSON:
                    self._json(word)
        return kind

    def _literal(self, value: Any) -> str:
        """A value as JSON, letters beyond ASCII as they are."""
        text = json.dumps(value)
        with contextlib.suppress(UnicodeEncodeError):  # half of a pair stays escaped
            beyond = json.dumps(value, ensure_ascii=False)
            beyond.encode()
            text = beyond
        return literal(text)

    # --- references

    def _target(self, reference: Any) -> Any:
        """The part of the schema that a reference means."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UnusableSchemaError(f"$ref is {str(reference)[:60]!r}; only parts of the schema itself can be referred to", self._place)
        if reference[1:] in self._anchors:
            return self._anchors[reference[1:]]
        found: Any = self._schema
        for step in reference.split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                found = None
                break
        if found is None or reference[1:2] not in ("", "/"):
            raise UnusableSchemaError(f"$ref is {reference[:60]!r}; there is no such part of the schema", self._place)
        return found

    def _reference(self, reference: str) -> str:
        if reference not in self._referred:
            target = self._followed({"$ref": reference})
            if isinstance(target, dict) and target.keys() == {"$ref"}:
                raise UnusableSchemaError(f"$ref is {reference[:60]!r}, which refers to itself only", self._place)
            name = self._referred[reference] = self._add(f"ref-{len(self._referred)}", f"ref-{len(self._referred)}-whole")
            # Looked at when all else has been: it may contain itself, and a long chain of references is no deep nesting.
            self._waiting.append((reference, name))
        return self._referred[reference]

    # --- kinds of schemas

    def _visit(self, schema: Any, name: str) -> str:
        """The name of a schema's rule."""
        outer, self._place = self._place, self._places.get(id(schema), self._place)
        self._depth += 1
        try:
            if self._depth > _DEEPEST:
                raise UnusableSchemaError("the schema nests too deeply", self._place)
            return self._visited(plain(schema, self._target, self._place), name)
        finally:
            self._place = outer
            self._depth -= 1

    def _visited(self, schema: dict[str, Any], name: str) -> str:
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "anyOf" in schema:
            ways = [self._visit(option, f"{name}-{index}") for index, option in enumerate(schema["anyOf"]) if option is not False]
            return self._add(name, " | ".join(ways))
        if "enum" in schema:
            return self._add(name, f"({' | '.join(self._literal(value) for value in schema['enum'])}) space")
        kind = schema.get("type")
        if kind is None:
            # Whoever asks for a schema wants an object, not a lone word.
            return self._json("object" if name == "root" else "value")
        rule = self._of_kind(schema, kind, name)
        return self._json(kind) if rule is None else self._add(name, rule)

    def _of_kind(self, schema: dict[str, Any], kind: str, name: str) -> str | None:
        """The rule of a schema of one type; None where the type is all that it says."""
        try:
            if kind == "object":
                return self._object(schema, name)
            if kind == "array":
                return self._array(schema, name)
            if kind == "string":
                return self._string(schema)
            numbers = number_rule(schema, self._add) if kind in ("integer", "number") else None
        except UnusableSchemaError as error:
            if " of the schema: " in str(error):
                raise
            raise UnusableSchemaError(str(error), self._place) from None
        return None if numbers is None else f"({numbers}) space"

    def _string(self, schema: Mapping[str, Any]) -> str | None:
        if isinstance(definition := schema.get(LARK), str):
            from corral_server.lark_rules import LarkRulesError, lark_rule  # noqa: PLC0415  few requests have one, and each process would keep it

            try:
                return f'"\\"" {lark_rule(definition, self._add)} "\\"" space'
            except LarkRulesError as error:
                raise UnusableSchemaError(f"the Lark grammar: {error}") from None
        low, high = lengths_of(schema)
        if high is not None and high < low:
            raise UnusableSchemaError(f"no text has {low} to {high} characters")
        pattern = schema.get("pattern", PATTERNS.get(str(schema.get("format")), _ANY_TEXT if low or high is not None else None))
        if not isinstance(pattern, str):
            return None
        try:
            return f"{pattern_rule(pattern, low, high, self._rules.__setitem__, f'length-{len(self._rules)}')} space"
        except PatternError as error:
            if self._loose and "pattern" in schema:
                return self._string({key: value for key, value in schema.items() if key != "pattern"})
            raise UnusableSchemaError(str(error)) from None

    def _array(self, schema: dict[str, Any], name: str) -> str | None:
        low, high = size_of(schema, "minItems", self._place), size_of(schema, "maxItems", self._place)
        begin, items = schema.get("prefixItems") or [], schema.get("items")
        if isinstance(items, list):
            begin, items = items, schema.get("additionalItems")
        unique = schema.get("uniqueItems") is True and items is not False
        values = values_of(plain(self._followed(items), self._target, self._place)) if unique and not begin and items is not None else None
        if values is not None:
            rule = unique_rule(values, low or 0, high, self._literal, lambda rule: self._add(f"{name}-unique", rule))
            if rule is not None:
                return rule
            high = min(len(values), len(values) if high is None else high)
        if not begin and items in (None, True) and not low and high is None:
            return None
        if high is not None and high < len(begin):
            begin = begin[:high]
        # A list of kinds means all of them; more only where something is said of what follows.
        low = max(low or 0, len(begin))
        if begin and (items is False or (items is None and low == len(begin))):
            high = len(begin)
        if items is False and not begin:
            high = 0
        if high is not None and high < low:
            raise UnusableSchemaError(f"no array has {low} to {high} items")
        fixed = COMMA.join(f"{self._visit(part, f'{name}-{index}')} " for index, part in enumerate(begin))
        if high == len(begin):
            return f'"[" space {fixed}"]" space'
        item = self._visit(True if items is None else items, f"{name}-item")
        try:
            more = listed(item, low - len(begin), None if high is None else high - len(begin), begun=bool(begin))
        except ValueError as error:
            raise UnusableSchemaError(str(error)) from None
        return f'"[" space {fixed}{more} "]" space'

    def _followed(self, schema: Any) -> Any:
        for _ in range(_DEEPEST):
            if not isinstance(schema, dict) or schema.keys() != {"$ref"}:
                break
            schema = self._target(schema["$ref"])
        return schema

    def _object(self, schema: dict[str, Any], name: str) -> str | None:
        schema, kinds = named(schema, self._followed, self._place)
        counts = counts_of(schema, self._place)
        given, others = dict(schema.get("properties") or {}), schema.get("additionalProperties")
        required = [key for key in schema.get("required") or [] if key in given]
        if any(given[key] is False for key in required):
            raise UnusableSchemaError(f"{next(key for key in required if given[key] is False)!r} is required, and may not be")
        given = {key: value for key, value in given.items() if value is not False}
        if others is None:
            # Left out it means any. Where properties are listed, if only as none, others are left out, unless that is too few.
            others = "properties" not in schema or counts.low > len(given)
        if not given and not counts and not kinds and others in (True, {}):
            return None
        rules = {}
        for key, value in given.items():
            rules[key] = self._add(f"{name}-{key}-kv", f'{self._literal(key)} space ":" space {self._visit(value, f"{name}-{key}")}')
        other = None
        if others is not False:
            pairs = [self._pair(kind, f"{name}-additional") for kind in kinds or [Free({}, others)]]
            other = self._add(f"{name}-additional-kv", " | ".join(pairs))
        inside = counted(
            counts, [rules[key] for key in given if key in required], [rules[key] for key in given if key not in required], other, self._place,
            lambda rule: self._add(f"{name}-rest", rule),
        )  # fmt: skip
        return f'"{{" space {inside} "}}" space'

    def _pair(self, kind: Free, name: str) -> str:
        return f'{self._visit({"type": "string", **kind.name}, f"{name}-name")} ":" space {self._visit(kind.value, f"{name}-value")}'


def _parts(schema: dict[str, Any]) -> tuple[dict[int, str], dict[str, Any]]:
    """Where each part of a schema stands, by its identity (`properties.a`), and the parts that have an anchor."""
    places: dict[int, str] = {}
    anchors: dict[str, Any] = {}
    waiting: list[tuple[Any, str]] = [(schema, "")]
    while waiting:
        part, path = waiting.pop()
        if isinstance(part, dict):
            places[id(part)] = path
            if isinstance(part.get("$anchor"), str):
                anchors[part["$anchor"]] = part
            waiting += [(value, f"{path}.{key}" if path else key) for key, value in part.items()]
        elif isinstance(part, list):
            waiting += [(value, f"{path}[{index}]") for index, value in enumerate(part)]
    return places, anchors
