"""JSON schemas to grammar rules. Runs in the renderer's process, because a schema, too, may be made to take for ever.

Over the converter of the bindings; adds the bounds of numbers that it leaves out, and names that keep several schemas apart.
"""

import re
from typing import Any

_LIMIT = 10**15
_WHOLE = "whole-schema"
_NAMES = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[A-Za-z][A-Za-z0-9-]*')


class UnusableSchemaError(Exception):
    """A JSON schema that cannot be made into a grammar."""


def schema_rules(schema: Any, prefix: str) -> str:
    """The rules of a schema, all names with the prefix; it begins at `<prefix>root`."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise UnusableSchemaError("a schema has to be an object")
    try:
        schema = _self_named(schema)
        converter = _converter()
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


def _converter() -> Any:
    from llama_cpp.llama_grammar import SchemaConverter  # noqa: PLC0415  imported with the first schema only

    class Bounded(SchemaConverter):  # type: ignore[misc]
        def visit(self, schema: Any, name: str) -> Any:
            if schema is True:
                schema = {}
            if not isinstance(schema, dict):
                raise UnusableSchemaError("a schema has to be an object")
            kinds = schema.get("type")
            if isinstance(kinds, list) and kinds and not {"enum", "const"} & schema.keys():
                # One alternative for each type, so that what else is said holds for those that it is about.
                rest = {k: v for k, v in schema.items() if k != "type"}
                return self.visit({"anyOf": [{**rest, "type": kind} for kind in kinds]}, name)
            if schema.get("type") == "integer" and not {"enum", "const"} & schema.keys():
                low, high = _bounds(schema)
                if low is not None or high is not None:
                    return self._add_rule(name or "root", f"({integer_range(low, high)}) space")
            if "type" not in schema and isinstance(schema.get("required"), list) and "properties" not in schema and "$ref" not in schema:
                schema = {"type": "object", **schema}
            return super().visit(_known(schema), name)

    return Bounded(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)


def _known(schema: dict[str, Any]) -> dict[str, Any]:
    """Without what only annotates: the converter takes an object with nothing it knows for an error."""
    plain = {k: v for k, v in schema.items() if k not in ("title", "description", "default", "examples", "$schema", "$comment", "$id", "deprecated")}
    if plain.keys() <= {"nullable", "$defs", "definitions", "readOnly", "writeOnly"}:
        return {}
    if isinstance(plain.get("pattern"), str):
        pattern = plain["pattern"]
        # A pattern may stand anywhere in the text unless it is anchored.
        plain["pattern"] = ("" if pattern.startswith("^") else "^.*") + pattern + ("" if pattern.endswith("$") else ".*$")
    return plain


def _bounds(schema: dict[str, Any]) -> tuple[int | None, int | None]:
    lows, highs = [], []
    for key, step in (("minimum", 0), ("exclusiveMinimum", 1)):
        value = schema.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            lows.append((int(value) + step) if value == int(value) else -(-value // 1))
    for key, step in (("maximum", 0), ("exclusiveMaximum", -1)):
        value = schema.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            highs.append((int(value) + step) if value == int(value) else value // 1)
    low = max((int(v) for v in lows), default=None)
    high = min((int(v) for v in highs), default=None)
    if low is not None and high is not None and low > high:
        raise UnusableSchemaError(f"no integer is at least {low} and at most {high}")
    if any(v is not None and abs(v) > _LIMIT for v in (low, high)):
        # Beyond what a number of this length can say exactly; the type alone holds.
        return None, None
    return low, high


def integer_range(low: int | None, high: int | None) -> str:
    """A grammar expression of the integers from low to high."""
    parts: list[str] = []
    if low is None or low < 0:
        # The negative side, by its magnitudes.
        least = 1 if high is None or high >= 0 else -high
        most = None if low is None else -low
        parts += [f'"-" {p}' for p in _natural(least, most)]
    if high is None or high >= 0:
        parts += _natural(max(low or 0, 0), high)
    return " | ".join(parts)


def _natural(low: int, high: int | None) -> list[str]:
    """Alternatives for the numbers from low to high, both at least 0, no leading zeros."""
    if high is None:
        digits = len(str(low))
        return [*_natural(low, 10**digits - 1), f"[1-9] [0-9]{{{digits},15}}"]
    parts: list[str] = []
    while low <= high:
        # The longest run from `low` in which the last k digits are free.
        free = 0
        while low % 10 ** (free + 1) == 0 and low + 10 ** (free + 1) - 1 <= high and (low != 0):
            free += 1
        unit = 10**free
        digit = (low // unit) % 10
        last = digit
        while last < 9 and low + (last + 1 - digit) * unit + unit - 1 <= high:
            last += 1
        head = str(low // unit)[:-1]
        text = f'"{head}" ' if head else ""
        text += f"[{digit}-{last}]" + (f" [0-9]{{{free}}}" if free else "")
        parts.append(text)
        low += (last - digit + 1) * unit
    return parts
