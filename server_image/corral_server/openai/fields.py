"""Fields of a request body: each known one is checked, an error names it, its value and what would be right. Unknown fields are let pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from corral_server.openai.errors import ApiError, invalid

Body = Mapping[str, Any]
_MOST_NESTED = 100


def parse_body(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "invalid_json", "the body has to be a JSON object")
    if raw.count(b"{") + raw.count(b"[") > _MOST_NESTED and _depth(body) > _MOST_NESTED:
        raise ApiError(400, "invalid_json", f"the body nests deeper than {_MOST_NESTED}")
    return body


def _depth(body: Any) -> int:
    """How deep it nests, level by level: what is too deep must not go through anything recursive."""
    depth, level = 0, [body]
    while level and depth <= _MOST_NESTED:
        depth += 1
        inner = (child for value in level for child in (value.values() if isinstance(value, dict) else value))
        level = [child for child in inner if isinstance(child, (dict, list))]
    return depth


def number(body: Body, name: str, low: float, high: float, default: float | None = None) -> float | None:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise invalid(name, f"{name} is {shown(value)}; it has to be a number from {low:g} to {high:g}")
    return float(value)


def whole(body: Body, name: str, low: int, high: int, default: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(name, f"{name} is {shown(value)}; it has to be a whole number from {low} to {high}")
    return value


def flag(body: Body, name: str, *, default: bool = False, within: str = "") -> bool:
    """`within` is the field that `body` is the value of."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        full = f"{within}.{name}" if within else name
        raise invalid(full, f"{full} is {shown(value)}; it has to be true or false")
    return value


def text(body: Body, name: str, default: str | None = None, *, within: str = "") -> str | None:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        full = f"{within}.{name}" if within else name
        raise invalid(full, f"{full} is {shown(value)}; it has to be a string")
    return value


def choice(body: Body, name: str, allowed: Sequence[str], default: str, *, within: str = "") -> str:
    """One of a few words; `within` is the field that `body` is the value of."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or value not in allowed:
        full = f"{within}.{name}" if within else name
        raise invalid(full, f"{full} is {shown(value)}; it has to be one of {', '.join(allowed)}")
    return value


def texts(body: Body, name: str) -> list[str]:
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise invalid(name, f"{name} is {shown(value)}; it has to be a list of strings")
    return value


def mapping(body: Body, name: str, *, within: str = "") -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        full = f"{within}.{name}" if within else name
        raise invalid(full, f"{full} is {shown(value)}; it has to be an object")
    return value


def stops(body: Body, name: str = "stop") -> list[str]:
    value = body.get(name)
    if value is None:
        return []
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or len(items) > 64 or not all(isinstance(s, str) and len(s) <= 4096 for s in items):
        raise invalid(name, f"{name} is {shown(value)}; it has to be a string or a list of strings")
    return [s for s in items if s]


def stream_usage(body: Body) -> bool:
    options = mapping(body, "stream_options")
    if options and not flag(body, "stream"):
        raise invalid("stream_options", "stream_options is only allowed when stream is true")
    return flag(options, "include_usage", within="stream_options")


def variant(body: Body) -> str:
    """What follows the last colon of the model's name; empty where there is none."""
    model = body.get("model")
    return model.rpartition(":")[2] if isinstance(model, str) and ":" in model else ""


def shown(value: Any) -> str:
    try:
        rendered = orjson.dumps(value).decode()
    except (TypeError, orjson.JSONEncodeError):
        rendered = repr(value)
    return rendered if len(rendered) <= 80 else rendered[:77] + "..."
