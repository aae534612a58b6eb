"""Grammars of calls with tagged arguments: strings as they are, up to the tag that ends them; everything else by the rules of its schema. Pure.

The arguments come in the order of the schema; those that it does not require may be left out. Bounds and patterns of free text are not enforced.
"""

from collections.abc import Sequence
from typing import Any

from corral_server.dialects.free_text import literal, name_but, up_to
from corral_server.dialects.parameters import STRING, Parameter, Root, Signature, roots_of, ruled, signature_of
from corral_server.dialects.shapes import Dialect, Tags

_MOST_EXTRA = 16


def parameter_schemas(tags: Tags, schemas: Sequence[Any]) -> list[Any]:
    """The schemas of which rules are needed, each once: of the arguments that may be something else than a string."""
    return ruled(schemas, lambda p: _needs_rule(tags, p))


def tagged_rules(dialect: Dialect, tags: Tags, names: Sequence[str], schemas: Sequence[Any]) -> tuple[list[str], str]:
    """An expression of a call of each of the functions, and the rules that they use beside those of `parameter_schemas`."""
    root = roots_of(parameter_schemas(tags, schemas))
    calls = [_call(dialect, tags, name, signature_of(schema), root) for name, schema in zip(names, schemas, strict=True)]
    return calls, up_to("free-text", tags.valued)


def _needs_rule(tags: Tags, parameter: Parameter) -> bool:
    # Free text has room for any value, and is read as what it is, unless the tag says what it is.
    return bool(parameter.kinds - STRING) and (tags.typed or not parameter.is_free)


def _call(dialect: Dialect, tags: Tags, name: str, signature: Signature, root: Root) -> str:
    nested = tags.nested
    line = _break(tags)
    parts = [] if nested else [literal(dialect.opening), line if tags.call else ""]
    parts += [literal(tags.call + name + tags.named), line]
    parts += [_argument(tags, literal(p.name), p, root) + ("" if p.required else "?") for p in signature.parameters]
    other = name_but([p.name for p in signature.parameters])
    if signature.extra is not None and other:
        parts.append(f"{_argument(tags, other, signature.extra, root)}{{0,{_MOST_EXTRA}}}")
    parts += [literal(tags.called), line] if tags.called else []
    return " ".join(part for part in (*parts, "" if nested else literal(dialect.closing)) if part)


def _argument(tags: Tags, name: str, parameter: Parameter, root: Root) -> str:
    line = _break(tags)
    between = f" {line} ".join(literal(tag) for tag in tags.keyed)
    padding = line if tags.padded else ""
    ways = [
        _parted((literal(f'{kind}">') if tags.typed else "", padding, value))
        for kind, value in (("true", _text(tags, parameter, padding)), ("false", _other(tags, parameter, padding, root)))
        if value
    ]
    value = ways[0] if len(ways) == 1 else f"( {' | '.join(ways)} )"
    return f"( {_parted((literal(tags.key), name, between, value, line))} )"


def _text(tags: Tags, parameter: Parameter, padding: str) -> str:
    if parameter.is_free:
        return "free-text"
    if not parameter.texts:
        return ""
    return _parted((f"( {' | '.join(map(literal, parameter.texts))} )", padding, literal(tags.valued)))


def _other(tags: Tags, parameter: Parameter, padding: str, root: Root) -> str:
    return _parted((root(parameter.others), padding, literal(tags.valued))) if _needs_rule(tags, parameter) else ""


def _break(tags: Tags) -> str:
    """The line break between two tags."""
    return literal(tags.breaks) if tags.breaks else '"\\n"?'


def _parted(parts: Sequence[str]) -> str:
    return " ".join(part for part in parts if part)
