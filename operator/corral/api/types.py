"""The scalar types of the API: quantities of bytes, durations, times, decimals, and what they look like in a schema.

In Python they are plain values (bytes as `int`, `timedelta`, aware `datetime`); in YAML they are what Kubernetes users write. Parsing takes
what the API server takes and nothing more, so that a manifest means the same on a laptop and on a cluster.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainSerializer, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from corral.api.errors import PATTERN_BROKEN, RULES_BROKEN, WRONG_TYPE

KI, MI, GI, TI = 1 << 10, 1 << 20, 1 << 30, 1 << 40

BYTES_PATTERN = r"^[0-9]{1,18}(\.[0-9]{1,9})?(k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"
CPU_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,3})?m?$"
DURATION_PATTERN = r"^([0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m|h))+$"
DECIMAL_PATTERN = r"^-?[0-9]+(\.[0-9]+)?$"

_SUFFIXES = {
    "": Decimal(1), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15),
    "Ki": Decimal(KI), "Mi": Decimal(MI), "Gi": Decimal(GI), "Ti": Decimal(TI), "Pi": Decimal(1 << 50),
}  # fmt: skip
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}


@dataclass(frozen=True)
class Rule:
    """One validation rule, written twice: in CEL for the API server, in Python for `corral up`. The message is the same."""

    cel: str
    message: str
    holds: Callable[[Any], bool]

    def as_schema(self) -> dict[str, str]:
        return {"rule": self.cel, "message": self.message}


@dataclass(frozen=True)
class Rules:
    """Rules on a scalar, list or map; used inside `Annotated`."""

    rules: tuple[Rule, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any) -> Any:
            broken = [rule.message for rule in self.rules if not rule.holds(value)]
            if broken:
                raise PydanticCustomError(RULES_BROKEN, "{messages}", {"messages": broken})
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        told = handler(schema)
        told["x-kubernetes-validations"] = [rule.as_schema() for rule in self.rules]
        return told


def parse_quantity(text: str | int) -> int:
    """Bytes of a Kubernetes quantity; a fraction of a byte counts as a whole one."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text) if isinstance(text, str) and re.match(BYTES_PATTERN, text) else None
    if found is None:
        raise ValueError(f"{text!r} is not a quantity: a number with Ki, Mi, Gi, Ti, k, M, G or T after it is, such as 512Mi")
    return int((Decimal(found[1]) * _SUFFIXES[found[2]]).to_integral_value(ROUND_CEILING))


def format_quantity(count: int) -> str:
    """The exact quantity, in the largest binary unit that shows it whole."""
    for suffix, unit in (("Ti", TI), ("Gi", GI), ("Mi", MI), ("Ki", KI)):
        if count and count % unit == 0:
            return f"{count // unit}{suffix}"
    return str(count)


def format_mebibytes(count: int) -> str:
    """Whole mebibytes, rounded up: exact enough to be counted with, short enough to be read."""
    return f"{-(-count // MI)}Mi"


def format_rounded(count: int) -> str:
    """For people: one digit after the point below a hundred, none above, as in 536Mi or 5.1Gi."""
    for suffix, unit in (("Ti", TI), ("Gi", GI), ("Mi", MI), ("Ki", KI)):
        if count >= unit:
            shown = count / unit
            return f"{shown:.0f}{suffix}" if shown >= 99.95 or round(shown, 1) == round(shown) else f"{shown:.1f}{suffix}"
    return str(count)


def parse_duration(text: str) -> timedelta:
    if not isinstance(text, str) or not re.match(DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is not a duration: numbers with h, m, s or ms after them are, such as 30s or 1h30m")
    total = sum((Decimal(number) * _SECONDS[unit] for number, _, unit in re.findall(r"([0-9]+(\.[0-9]+)?)(ms|s|m|h)", text)), Decimal(0))
    return timedelta(microseconds=int(total * 1_000_000))


def format_duration(value: timedelta) -> str:
    """The shortest exact text: 30s, 5m, 1h30m, 250ms."""
    left, text = value // timedelta(milliseconds=1), ""
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)):
        count, left = divmod(left, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_time(text: str | datetime) -> datetime:
    found = text if isinstance(text, datetime) else datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone: RFC 3339 with Z is right, such as 2026-01-02T03:04:05Z")
    return found.astimezone(UTC)


def format_time(value: datetime) -> str:
    """RFC 3339 in UTC; milliseconds only where there are any."""
    told = value.astimezone(UTC)
    spec = "milliseconds" if told.microsecond >= 1000 else "seconds"
    return told.replace(tzinfo=None).isoformat(timespec=spec) + "Z"


def _int_or_string(value: Any, pattern: str) -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise PydanticCustomError("greater_than_equal", "negative", {"ge": 0})
        return
    if not isinstance(value, str):
        raise PydanticCustomError(WRONG_TYPE, "wrong type", {"wanted": "integer,string"})
    if not re.match(pattern, value):
        raise PydanticCustomError(PATTERN_BROKEN, "no quantity", {"pattern": pattern})


def _bytes(value: Any) -> Any:
    _int_or_string(value, BYTES_PATTERN)
    return parse_quantity(value)


def _cpu(value: Any) -> Any:
    _int_or_string(value, CPU_PATTERN)
    return str(value)


def _duration(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError(WRONG_TYPE, "wrong type", {"wanted": "string"})
    if not re.match(DURATION_PATTERN, value):
        raise PydanticCustomError(PATTERN_BROKEN, "no duration", {"pattern": DURATION_PATTERN})
    return parse_duration(value)


def int_or_string(pattern: str) -> WithJsonSchema:
    either = [{"type": "integer"}, {"type": "string"}]
    return WithJsonSchema({"x-kubernetes-int-or-string": True, "anyOf": either, "pattern": pattern, "maxLength": 32, "minimum": 0})


Bytes = Annotated[int, BeforeValidator(_bytes), PlainSerializer(format_quantity, return_type=str), int_or_string(BYTES_PATTERN)]
"""A quantity of bytes that a user wrote."""

Mebibytes = Annotated[int, BeforeValidator(_bytes), PlainSerializer(format_mebibytes, return_type=str), int_or_string(BYTES_PATTERN)]
"""A quantity of bytes that Corral measured or computed."""

RoundedBytes = Annotated[int, BeforeValidator(_bytes), PlainSerializer(format_rounded, return_type=str), int_or_string(BYTES_PATTERN)]
"""A quantity of bytes for people's eyes."""

Cpu = Annotated[str, BeforeValidator(_cpu), int_or_string(CPU_PATTERN)]
"""A quantity of processor time, kept as it was written: it only passes through to a pod."""

Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN, "maxLength": 20}),
]

Time = Annotated[
    datetime,
    BeforeValidator(parse_time),
    PlainSerializer(format_time, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 64}),
]
