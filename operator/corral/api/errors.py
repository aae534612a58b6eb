"""Errors of the API: an object that is not valid, told in the API server's own words.

`corral up` has no API server, and whoever moves a manifest from a laptop to a cluster should read the same sentence in both places.
So what pydantic found is put into the texts of Kubernetes' validation. Nothing here decides what is valid: the models do.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

JSON_TYPES: dict[type, str] = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}

EXPECTED_TYPES = {
    "string_type": "string",
    "int_type": "integer",
    "int_from_float": "integer",
    "bool_type": "boolean",
    "list_type": "array",
    "dict_type": "object",
    "model_type": "object",
    "model_attributes_type": "object",
}

RULES_BROKEN = "rules_broken"
PATTERN_BROKEN = "pattern_broken"
WRONG_TYPE = "wrong_type"
DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Cause:
    """One thing that is wrong: where, and what would be right."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class InvalidObjectError(ValueError):
    """An object that the API refuses; `causes` lists everything that is wrong with it."""

    def __init__(self, kind: str, name: str, causes: Iterable[Cause]) -> None:
        self.kind = kind
        self.name = name
        self.causes = tuple(causes)
        told = "; ".join(str(cause) for cause in self.causes)
        super().__init__(f'{kind} "{name}" is invalid: {told}')


def json_type(value: object) -> str:
    return "null" if value is None else JSON_TYPES.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """A value as the API server prints it inside an error."""
    if isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def path_of(location: Iterable[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def causes_of(error: ValidationError) -> list[Cause]:
    causes: list[Cause] = []
    for found in error.errors(include_url=False):
        causes.extend(_translate(found["type"], tuple(found["loc"]), found.get("input"), found.get("ctx") or {}, found["msg"]))
    # An object's own rules are judged only when its form is right, as the API server does.
    return list(dict.fromkeys(causes))


def _translate(kind: str, location: tuple[str | int, ...], value: Any, ctx: Mapping[str, Any], message: str) -> Iterable[Cause]:
    path = path_of(location)
    if kind == RULES_BROKEN:
        # The API server shows the value of a scalar, and leaves out what would fill the screen.
        told = f"{shown(value)}: " if isinstance(value, str | int) else ""
        return [Cause(path, f"Invalid value: {told}{broken}") for broken in ctx["messages"]]
    if kind == PATTERN_BROKEN:
        return [Cause(path, f"Invalid value: {shown(value)}: {path} in body should match '{ctx['pattern']}'")]
    if kind == WRONG_TYPE or kind in EXPECTED_TYPES:
        wanted = ctx["wanted"] if kind == WRONG_TYPE else EXPECTED_TYPES[kind]
        return [Cause(path, f"Invalid value: {shown(json_type(value))}: {path} in body must be of type {wanted}: {shown(json_type(value))}")]
    if kind == "missing":
        return [Cause(path, "Required value")]
    if kind in {"literal_error", "enum"}:
        supported = ", ".join(f'"{item}"' for item in re.findall(r"'([^']*)'", str(ctx["expected"])))
        return [Cause(path, f"Unsupported value: {shown(value)}: supported values: {supported}")]
    if kind == "greater_than_equal":
        return [Cause(path, f"Invalid value: {shown(value)}: {path} in body should be greater than or equal to {ctx['ge']}")]
    if kind == "less_than_equal":
        return [Cause(path, f"Invalid value: {shown(value)}: {path} in body should be less than or equal to {ctx['le']}")]
    if kind == "string_pattern_mismatch":
        return [Cause(path, f"Invalid value: {shown(value)}: {path} in body should match '{ctx['pattern']}'")]
    if kind == "string_too_short":
        return [Cause(path, f"Invalid value: {shown(value)}: {path} in body should be at least {ctx['min_length']} chars long")]
    if kind == "string_too_long":
        return [Cause(path, f"Too long: may not be more than {ctx['max_length']} bytes")]
    if kind == "too_long":
        if isinstance(value, dict):
            return [Cause(path, f"Too many: {len(value)}: must have at most {ctx['max_length']} items")]
        return [Cause(path, f"Too many: {ctx['actual_length']}: must have at most {ctx['max_length']} items")]
    if kind == DUPLICATE:
        return [Cause(f"{path}[{ctx['index']}]", f"Duplicate value: {shown(ctx['value'])}")]
    return [Cause(path, f"Invalid value: {shown(value)}: {message}")]
