"""Bounds and steps of numbers (`minimum`, `maximum`, both exclusive forms, `multipleOf`) of a JSON schema as grammar expressions. Pure.

Numbers that are bounded are written without an exponent. What no grammar of reasonable size can hold is left to the type alone.
"""

import functools
import math
from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, NamedTuple

from corral_server.schema_counts import UnusableSchemaError

_LIMIT = Decimal(10**15)
"""Beyond it digits no longer say a number exactly."""
_PLACES = 15
"""Digits after the point."""
_MOST_LISTED = 200
_MOST_STATES = 100
_ANY = f"[0-9]{{0,{_PLACES}}}"
_FRACTION = f'("." [0-9]{{1,{_PLACES}}})?'


class Bound(NamedTuple):
    value: Decimal
    excluded: bool = False


class Range(NamedTuple):
    low: Bound | None = None
    high: Bound | None = None
    step: Decimal | None = None


def range_of(schema: Mapping[str, Any]) -> Range:
    """What a schema of a number says; also in the older form, in which `exclusiveMinimum` is true or false."""
    lows = [bound for bound in (_bound(schema, "minimum", "exclusiveMinimum"), _bound(schema, "exclusiveMinimum", "")) if bound is not None]
    highs = [bound for bound in (_bound(schema, "maximum", "exclusiveMaximum"), _bound(schema, "exclusiveMaximum", "")) if bound is not None]
    step = _number(schema.get("multipleOf"))
    return Range(
        max(lows, key=lambda b: (b.value, b.excluded), default=None),
        min(highs, key=lambda b: (b.value, not b.excluded), default=None),
        step if step is not None and step > 0 else None,
    )


def number_rule(schema: Mapping[str, Any], rule: Callable[[str, str], str]) -> str | None:
    """The expression of a schema of type `number` or `integer`; None where the type alone says it. `rule` adds a rule of that name."""
    low, high, step = range_of(schema)
    if schema["type"] == "integer":
        step = Decimal(step.as_integer_ratio()[0]) if step is not None else Decimal(1)
        low, high = _whole(low, ROUND_CEILING, 1), _whole(high, ROUND_FLOOR, -1)
    if low is not None and high is not None and (low.value > high.value or (low.value == high.value and (low.excluded or high.excluded))):
        raise UnusableSchemaError(f"no {schema['type']} is {_said('least', low)} and {_said('most', high)}")
    if any(bound is not None and (abs(bound.value) > _LIMIT or _digits(bound.value) > _PLACES) for bound in (low, high)):
        return None
    if step is not None and step != 1 and low is not None and high is not None and (high.value - low.value) / step <= _MOST_LISTED:
        return _listed(low, high, step, str(schema["type"]))
    if step is not None and step != 1 and high is None and (low is None or low == Bound(Decimal(0))) and (found := _stepped(step, low is None, rule)):
        return found
    if low is None and high is None:
        return None
    if schema["type"] == "integer" or step == 1:
        return integer_range(int(low.value) if low else None, int(high.value) if high else None)
    return decimal_range(low, high)


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return Decimal(repr(value)).normalize()


def _bound(schema: Mapping[str, Any], name: str, flag: str) -> Bound | None:
    value = _number(schema.get(name))
    return None if value is None else Bound(value, schema.get(flag) is True if flag else True)


def _whole(bound: Bound | None, rounding: str, inwards: int) -> Bound | None:
    if bound is None:
        return None
    whole = bound.value.to_integral_value(rounding)
    return Bound(whole + inwards if bound.excluded and whole == bound.value else whole)


def _said(which: str, bound: Bound) -> str:
    than = {"least": "more than", "most": "less than"}[which]
    return f"{than if bound.excluded else f'at {which}'} {_text(bound.value)}"


def _text(value: Decimal) -> str:
    text = f"{value:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) if value else "0"


def _digits(value: Decimal) -> int:
    """After the point."""
    return len(_text(value).partition(".")[2])


# --- steps


def _listed(low: Bound, high: Bound, step: Decimal, kind: str) -> str:
    first, last = (low.value / step).to_integral_value(ROUND_CEILING), (high.value / step).to_integral_value(ROUND_FLOOR)
    values = [n * step for n in range(int(first), int(last) + 1)]
    fitting = [v for v in values if not (low.excluded and v == low.value) and not (high.excluded and v == high.value)]
    if not fitting:
        raise UnusableSchemaError(f"no {kind} that is {_said('least', low)} and {_said('most', high)} is a multiple of {_text(step)}")
    return " | ".join(f'"{_text(value)}"' for value in fitting)


def _stepped(step: Decimal, signed: bool, rule: Callable[[str, str], str]) -> str | None:
    """Multiples of a step, digit by digit: a rule for each remainder and each place after the point."""
    places = _digits(step)
    modulus = int(step.scaleb(places))
    if modulus * (places + 1) > _MOST_STATES:
        return None

    def name(done: int, remainder: int) -> str:
        return f"multiple-{modulus}-{places}-{done}-{remainder}"

    def may_end(done: int, remainder: int) -> bool:
        """What is not written is zeros."""
        return bool(remainder * 10 ** (places - done) % modulus == 0)

    @functools.cache
    def digits_to(done: int, remainder: int) -> str:
        """The digits that may come next and lead to some multiple; then `done` of them stand behind the point. A whole part can always go on."""
        steps = ((digit, (remainder * 10 + digit) % modulus) for digit in range(10 if done <= places else 0))
        fitting = ((digit, rest) for digit, rest in steps if not done or may_end(done, rest) or digits_to(done + 1, rest))
        return " | ".join(f'"{digit}" {name(done, rest)}' for digit, rest in fitting)

    def fraction(remainder: int) -> str:
        digits = digits_to(1, remainder)
        return f'"." ({digits})' if digits else ""

    for remainder in range(modulus):
        for done in range(places + 1):
            more = digits_to(done + 1, remainder) if done else " | ".join(part for part in (digits_to(0, remainder), fraction(remainder)) if part)
            if may_end(done, remainder):
                rule(name(done, remainder), f"({more})?" if more else '""')
            elif more:
                rule(name(done, remainder), more)
    first = " | ".join(f'"{digit}" {name(0, digit % modulus)}' for digit in range(1, 10))
    zero = '"0"' + (f" ({fraction(0)})?" if places else "")
    sign = '"-"? ' if signed else ""
    return f"{sign}({zero} | {first})"


# --- ranges


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


def decimal_range(low: Bound | None, high: Bound | None) -> str:
    """A grammar expression of the numbers from low to high, in plain digits."""
    parts: list[str] = []
    zero = Bound(Decimal(0))
    if low is None or low.value < 0:
        least = zero if high is None or high.value > 0 else Bound(-high.value, high.excluded)
        parts += [f'"-" {p}' for p in _positive(least, None if low is None else Bound(-low.value, low.excluded))]
    if high is None or high.value >= 0:
        parts += _positive(low if low is not None and low.value >= 0 else zero, high)
    return " | ".join(parts)


def _positive(low: Bound, high: Bound | None) -> list[str]:
    """Alternatives for the numbers from low to high, both at least 0."""
    first, above = _parts(low.value)
    begins = [f'"{first}" {_fraction_from(above, low.excluded)}']
    if high is None:
        return begins + [f"{n} {_FRACTION}" for n in _natural(first + 1, None)]
    last, below = _parts(high.value)
    if first == last:
        inside = _fraction_between(above, low.excluded, below, high.excluded)
        return [f'"{first}" {inside}'] if inside is not None else []
    ends = _fraction_to(below, high.excluded)
    middle = [f"{n} {_FRACTION}" for n in _natural(first + 1, last - 1)]
    return begins + middle + ([f'"{last}" {ends}'] if ends is not None else [])


def _parts(value: Decimal) -> tuple[int, str]:
    whole, _, fraction = _text(value).partition(".")
    return int(whole), fraction


_MORE = f'"0"{{0,{_PLACES - 1}}} [1-9] {_ANY}'
"""Digits that are more than zero together."""
_ZEROS = f'"0"{{0,{_PLACES}}}'


def _fraction_from(digits: str, excluded: bool) -> str:
    """What may follow a whole number so that both are at least `.digits` more, or more than that."""
    if not digits:
        return f'"." {_MORE}' if excluded else _FRACTION
    return f'"." ({_from(digits, excluded)})'


def _fraction_to(digits: str, excluded: bool) -> str | None:
    if not digits:
        return None if excluded else f'("." "0"{{1,{_PLACES}}})?'
    return f'("." ({_to(digits, excluded)}))?'


def _from(digits: str, excluded: bool) -> str:
    """Digits that are at least `.digits`; no digits are as many zeros."""
    if not digits:
        return _MORE if excluded else _ANY
    digit = int(digits[0])
    higher = f"[{digit + 1}-9] {_ANY} | " if digit < 9 else ""
    return f'{higher}"{digit}" ({_from(digits[1:], excluded)})'


def _to(digits: str, excluded: bool) -> str:
    """Digits that are at most `.digits`, which does not end with a zero."""
    digit = int(digits[0])
    lower = [f"[0-{digit - 1}] {_ANY}"] if digit else []
    return " | ".join(lower + _ending(digits, excluded))


def _ending(digits: str, excluded: bool) -> list[str]:
    """Of those the ones that begin with the same digit, if there are any."""
    if digits[1:]:
        return [f'"{digits[0]}" ({_to(digits[1:], excluded)})?']
    return [] if excluded else [f'"{digits[0]}" {_ZEROS}']


def _fraction_between(above: str, open_low: bool, below: str, open_high: bool) -> str | None:
    """Between two numbers of the same whole part."""
    if not above and not open_low:
        return _fraction_to(below, open_high)
    inside = _between(above, open_low, below, open_high)
    return f'"." ({inside})' if inside is not None else None


def _between(above: str, open_low: bool, below: str, open_high: bool) -> str | None:
    if not below:
        # Only the same is left.
        return None if above or open_low or open_high else _ZEROS
    first, last = int(above[:1] or 0), int(below[0])
    if first == last:
        rest = _between(above[1:], open_low, below[1:], open_high)
        return f'"{first}" ({rest})' if rest is not None else None
    parts = [f"[{first + 1}-{last - 1}] {_ANY}"] if last - first > 1 else []
    parts.append(f'"{first}" ({_from(above[1:], open_low)})')
    return " | ".join(parts + _ending(below, open_high))


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
