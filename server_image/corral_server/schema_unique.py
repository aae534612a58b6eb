"""Arrays in which no value comes twice (`uniqueItems`), of a few listed values, as grammar expressions. Pure.

A grammar remembers what has come only by having a rule for each set of what is left, so there may be few values. They come in any order.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from corral_server.grammar_times import COMMA
from corral_server.schema_counts import UnusableSchemaError

_MOST = 8
"""Values: their sets are 256."""


def values_of(items: Mapping[str, Any]) -> list[Any] | None:
    """The different values that an item may have, if they are listed; its schema is one of a kind (`schema_merging.plain`)."""
    listed = [False, True] if items.get("type") == "boolean" else items.get("enum")
    return None if listed is None else list({json.dumps(value, sort_keys=True): value for value in listed}.values())


def unique_rule(values: Sequence[Any], low: int, high: int | None, literal: Callable[[Any], str], add: Callable[[str], str]) -> str | None:
    """The expression of an array of `low` to `high` of the values, each at most once; None where there are too many of them.

    `literal` writes one value, `add` keeps a rule and says its name. UnusableSchemaError where there are too few.
    """
    most = len(values) if high is None else min(high, len(values))
    if low > most:
        raise UnusableSchemaError(f"no array has {low} of {len(values)} different values, each once")
    if len(values) > _MOST:
        return None
    written = [f"{literal(value)} space" for value in values]
    rules: dict[frozenset[int], str] = {}

    def behind(left: frozenset[int]) -> str:
        """What may follow when these are left; empty: the end."""
        if left not in rules:
            rules[left] = _named(_ways(left, begun=True), add)
        return rules[left]

    def _ways(left: frozenset[int], *, begun: bool) -> list[str]:
        taken = len(values) - len(left)
        ways = [f"{COMMA if begun else ''}{written[index]} {behind(left - {index})}".rstrip() for index in sorted(left)] if taken < most else []
        return [*ways, '""'] if taken >= low else ways

    return f'"[" space ( {" | ".join(_ways(frozenset(range(len(values))), begun=False))} ) "]" space'


def _named(ways: list[str], add: Callable[[str], str]) -> str:
    return "" if ways == ['""'] else add(" | ".join(ways))
