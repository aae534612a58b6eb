"""How many properties an object may have: `minProperties` and `maxProperties` of a JSON schema as grammar rules. Pure.

What is counted are the names that are written. A grammar cannot tell that a free name is written twice.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from corral_server.grammar_times import COMMA, listed

_MOST = 1000
"""How far is counted: llama.cpp's grammars repeat a rule up to 2000 times."""
_MOST_RULES = 500
"""A grammar may have 64 KiB."""


class UnusableSchemaError(Exception):
    """A JSON schema that cannot be made into a grammar; `place` is the part that is wrong, as in `properties.a`."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(f"{place} of the schema: {message}" if place else message)


class Counts(NamedTuple):
    """The fewest and the most properties; None: any number."""

    low: int = 0
    high: int | None = None

    def __bool__(self) -> bool:
        return self.low > 0 or self.high is not None

    def __str__(self) -> str:
        return " and ".join([f"minProperties {self.low}"] * (self.low > 0) + [f"maxProperties {self.high}"] * (self.high is not None))


def counts_of(schema: Mapping[str, Any], place: str) -> Counts:
    """What the schema itself says; `place` is where it stands."""
    return Counts(size_of(schema, "minProperties", place) or 0, size_of(schema, "maxProperties", place))


def size_of(schema: Mapping[str, Any], name: str, place: str) -> int | None:
    """A keyword that counts something; None: it is not there."""
    value = schema.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != int(value):
        raise UnusableSchemaError(f"{name} is {str(value)[:40]}; it has to be a whole number of at least 0", place)
    return int(value)


def counted(counts: Counts, required: Sequence[str], optional: Sequence[str], free: str | None, place: str, add: Callable[[str], str]) -> str:
    """What stands between an object's braces: the rules of its properties, each optional one or not, then as many free ones as there may be.

    `free` is the rule of a property of any name, if there are any; `add` keeps a rule and says its name. UnusableSchemaError where there is no such
    object, or no grammar of it.
    """
    need = len(required)
    most = None if free else need + len(optional)
    if counts.high is not None and counts.high < max(need, counts.low):
        raise UnusableSchemaError(f"no object has {counts}" + (f" and the {need} properties that are required" if need else ""), place)
    if most is not None and counts.low > most:
        raise UnusableSchemaError(f"no object has {counts}: it has {most} properties", place)
    low, high = max(0, counts.low - need), None if counts.high is None else counts.high - need
    # From here on there is nothing to count: it is enough and a comma comes before the next, or no more may come.
    last = max(low, 1) if high is None else high
    if counts and ((free and last > _MOST) or sum(min(last, index) + 1 for index in range(len(optional))) > _MOST_RULES):
        raise UnusableSchemaError(f"{counts} cannot be held: it takes too large a grammar", place)

    def free_ones(taken: int) -> str | None:
        """What may end an object that has so many of those that need not be there; None: it cannot end."""
        if free is None:
            return "" if taken >= low else None
        return listed(free, max(0, low - taken), None if high is None else high - taken, begun=need + taken > 0)

    endings = {taken: free_ones(taken) for taken in range(min(last, len(optional)) + 1)}
    for index in reversed(range(len(optional))):
        begun: dict[int, str | None] = {}
        for taken in range(min(last, index) + 1):
            comma = COMMA if need + taken else ""
            more = endings[last if high is None and taken == last else taken + 1] if high is None or taken < high else None
            ways = [] if more is None else [f"{comma}{optional[index]} {more}".rstrip()]
            without = endings[taken]
            if without is not None:
                ways.append(without or '""')
            begun[taken] = None if not ways else add(" | ".join(ways)) if ways != ['""'] else ""
        endings = begun
    return " ".join(part for part in (COMMA.join(f"{rule} " for rule in required).strip(), endings[0]) if part)
